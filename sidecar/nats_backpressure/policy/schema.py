"""The words of a policy: every field, its unit, its bounds and its default."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Diagnosis

SMALLEST_MARK: Final = 0.001
LARGEST_MARK: Final = 1e15
Mark = Annotated[float, Meta(ge=SMALLEST_MARK, le=LARGEST_MARK)]
"""Bounded on both sides so that no value divided by its mark leaves the finite numbers."""
Share = Annotated[float, Meta(ge=0, le=1)]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]


class MarkRule(Struct, frozen=True, forbid_unknown_fields=True):
    """Three marks of one signal, warn <= critical <= overload; a value counts when it is above its mark."""

    warn: Mark
    critical: Mark
    overload: Mark


class PendingRule(MarkRule, frozen=True, forbid_unknown_fields=True):
    """Marks of the backlog; with `overload_seconds` the overload mark is that many seconds of work at the measured
    rate, kept within `min` and `max`, and `overload` holds until the rate is known."""

    overload_seconds: Annotated[float, Meta(ge=0.001, le=86_400)] | None = None
    min: Mark | None = None
    max: Mark | None = None


class InflightRule(MarkRule, frozen=True, forbid_unknown_fields=True):
    """Marks in flight; with `overload_ratio` the overload mark is that share of the consumer's max_ack_pending, and
    `overload` holds where there is no such cap."""

    overload_ratio: Annotated[float, Meta(ge=0.001, le=1)] | None = None


class AdmissionRule(Struct, frozen=True, forbid_unknown_fields=True):
    """How a gateway is told to shed; `binary` is all or nothing, `adaptive` a share."""

    mode: Literal["binary", "adaptive"] = "binary"
    floor: Annotated[float, Meta(gt=0, le=1)] = 0.01
    """The smallest share admitted in adaptive mode."""
    target_drain_seconds: Annotated[float, Meta(gt=0, le=3600)] = 2
    """The backlog adaptive admission holds, in seconds of work."""


class When(Struct, frozen=True, forbid_unknown_fields=True):
    """The condition of an alert: exactly one of these is given."""

    status: Literal["warning", "active"] | None = None
    """This status or worse."""
    diagnosis: Diagnosis | None = None
    pending_above: Annotated[float, Meta(ge=0, le=1e15)] | None = None
    inflight_above: Annotated[float, Meta(ge=0, le=1e15)] | None = None
    latency_p95_above_ms: Annotated[float, Meta(ge=0, le=1e15)] | None = None
    stream_fill_above: Share | None = None

    def __post_init__(self) -> None:
        if sum(getattr(self, name) is not None for name in self.__struct_fields__) != 1:
            raise ValueError(f"must hold exactly one of {', '.join(self.__struct_fields__)}")


class AlertRule(Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]
    when: When
    for_seconds: Seconds = 0
    severity: Annotated[str, Meta(min_length=1, max_length=32, pattern=r"^[A-Za-z0-9_.-]+$")] = "warning"


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """What counts as overload for a subject, and what is answered then. The defaults are the router's."""

    mode: Literal["enforce", "observe"] = "enforce"
    pending: PendingRule = PendingRule(10, 100, 1000)
    latency_p95: MarkRule = MarkRule(500, 2000, 5000)
    """Milliseconds."""
    inflight: InflightRule = InflightRule(50, 200, 500)
    drain_seconds: MarkRule = MarkRule(0.5, 2, 5)
    active_signals: Annotated[int, Meta(ge=1, le=4)] = 2
    alone_factor: Annotated[float, Meta(ge=1, le=1e6)] = 10
    recovery_threshold: Share = 0.5
    recovery_hold_seconds: Seconds = 1.0
    stall_seconds: Seconds = 10
    retry_after_seconds: Annotated[int, Meta(ge=1, le=86_400)] = 30
    max_retry_attempts: Annotated[int, Meta(ge=1, le=1000)] = 3
    backoff_strategy: Literal["constant", "linear", "exponential"] = "exponential"
    alert_on_active: bool = True
    alert_on_warning: bool = False
    on_unknown: Literal["hold", "continue", "reject"] = "hold"
    hold_seconds: Seconds = 10
    on_paused: Literal["judge", "ignore"] = "judge"
    count_backfill: bool = True
    admission: AdmissionRule = AdmissionRule()
    alerts: Annotated[tuple[AlertRule, ...], Meta(max_length=64)] = ()
    override: tuple[Override, ...] = ()
    """No field of a policy that anybody writes: the layer above all of them, the most specific override first."""


def in_force(policy: Policy, now: Now) -> Override | None:
    """The most specific override that is not over yet."""
    return next((one for one in policy.override if now.wall < one.until), None)


class Guard(Struct, frozen=True, forbid_unknown_fields=True):
    """What policies in the bucket and in consumer metadata may not go beyond; it stands in the file only."""

    allow_bucket: bool = True
    min_pending_overload: Mark | None = None
    max_pending_overload: Mark | None = None


class Effective(Struct, frozen=True):
    """A policy after all layers, and which layer each field came from (dotted field -> layer).

    Shared by all consumers for which the same is in force: never change `sources`.
    """

    policy: Policy
    sources: dict[str, str]


class Override(Struct, frozen=True, forbid_unknown_fields=True):
    """An operator's word over the judgement, until it expires by itself."""

    action: Literal["open", "reject"]
    until: Annotated[float, Meta(ge=0, le=32_503_680_000)]
    """Unix seconds."""


class Rejection(Struct, frozen=True):
    """A policy for the subject that was refused. `mark` tells this refusal from every other."""

    mark: str
    errors: tuple[tuple[str, str], ...]
