"""The reply of the status alias: a subject's status in the router's own format, in whole numbers."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from nats_backpressure.protocol.messages import Count, Subject
from nats_backpressure.protocol.values import StatusName


class AliasMetrics(Struct, frozen=True):
    """The newest measurements of the worst consumer; null where nothing was read."""

    pending_messages: Annotated[Count | None, Meta(description="Messages that wait for the consumer.")] = None
    latency_p95_ms: Annotated[Count | None, Meta(description="p95 latency in milliseconds. 0: not measured.")] = None
    inflight_messages: Annotated[
        Count | None, Meta(description="Messages delivered and not acknowledged. 0: not measured.")
    ] = None


class AliasThresholds(Struct, frozen=True):
    """The overload marks in force, rounded down."""

    queue_overload: Annotated[Count, Meta(description="Pending messages, for overload.")]
    latency_overload_ms: Annotated[Count, Meta(description="p95 latency in milliseconds, for overload.")]
    inflight_overload: Annotated[Count, Meta(description="Messages in flight, for overload.")]


class AliasPolicy(Struct, frozen=True):
    """What the policy says to a refused caller."""

    retry_after_seconds: Annotated[Count, Meta(description="Seconds before it tries again.")]
    max_retry_attempts: Annotated[Count, Meta(description="How many attempts it has.")]


class AliasStatus(Struct, frozen=True):
    """The status of a subject, as the router reports it."""

    subject: Annotated[Subject, Meta(description="The subject that was asked about.")]
    status: Annotated[StatusName, Meta(description="`unknown` also where nobody watches the subject.")]
    metrics: Annotated[AliasMetrics, Meta(description="The newest measurements.")]
    thresholds: Annotated[AliasThresholds, Meta(description="The overload marks in force.")]
    policy: Annotated[AliasPolicy, Meta(description="What a refused caller does.")]
    timestamp: Annotated[Count, Meta(description="When it was answered, in milliseconds since 1970 (UTC).")]


class AliasError(Struct, frozen=True):
    """Why there is no status."""

    code: Annotated[str, Meta(description="`invalid_request` or `internal_error`.")]
    message: Annotated[str, Meta(description="What is wrong.")]


class AliasReply(Struct, frozen=True):
    """The answer of the status alias."""

    success: Annotated[bool, Meta(description="true: `data` is there. false: `error` is.")]
    data: Annotated[AliasStatus | UnsetType, Meta(description="With `success`: the status.")] = UNSET
    error: Annotated[AliasError | UnsetType, Meta(description="Without `success`: what is wrong.")] = UNSET
