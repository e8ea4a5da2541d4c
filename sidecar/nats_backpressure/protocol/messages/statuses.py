"""The status of a subject with its measurements and marks, and the answers to `get.status` and `forget`."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from nats_backpressure.protocol.messages.fields import Amount, Count, Mark, Ratio, Subject, Time
from nats_backpressure.protocol.values import (
    DiagnosisName,
    FreshnessName,
    LatencySource,
    MarkLevelName,
    Mode,
    OverrideAction,
    StaleReason,
    StatusName,
)


class Metrics(Struct, frozen=True):
    """The newest measurements of one consumer; null where there is no evidence."""

    pending_messages: Annotated[Count | None, Meta(description="Messages that wait for the consumer.")] = None
    inflight_messages: Annotated[
        Count | None, Meta(description="Messages delivered and not acknowledged. null without acknowledgements.")
    ] = None
    latency_p50_ms: Annotated[
        Amount | None, Meta(description="Half of the messages were acknowledged within this many milliseconds.")
    ] = None
    latency_p95_ms: Annotated[
        Amount | None,
        Meta(description="95 % of the messages were acknowledged within this many milliseconds; at least `stall_ms`."),
    ] = None
    latency_p99_ms: Annotated[
        Amount | None, Meta(description="99 % of the messages were acknowledged within this many milliseconds.")
    ] = None
    latency_source: Annotated[
        LatencySource | None,
        Meta(
            description="Where the latency is from: `sampled` acknowledgements, `estimated` from in flight and "
            "rate, or the `stall`."
        ),
    ] = None
    stall_ms: Annotated[
        Amount | None, Meta(description="Milliseconds without any acknowledgement while messages are in flight.")
    ] = None
    arrival_rate: Annotated[Amount | None, Meta(description="Messages per second that arrive for it.")] = None
    ack_rate: Annotated[Amount | None, Meta(description="Messages per second that it acknowledges.")] = None
    drain_seconds: Annotated[
        Amount | None, Meta(description="Seconds of work that wait: pending messages divided by the measured rate.")
    ] = None
    overload_in_seconds: Annotated[
        Amount | None, Meta(description="Seconds until pending passes its overload mark, if all goes on as now.")
    ] = None
    oldest_age_seconds: Annotated[
        Amount | None, Meta(description="Seconds for which the oldest waiting message has waited.")
    ] = None
    redelivery_ratio: Annotated[Amount | None, Meta(description="Redeliveries per delivery, lately: 0 is none.")] = None
    stream_fill: Annotated[
        Amount | None, Meta(description="Largest share of its limits that the stream holds, 0 to 1. null: no limits.")
    ] = None


class Thresholds(Struct, frozen=True):
    """The marks in force, after a consumer's cap. A value is over a mark when it is above it, not at it."""

    queue_warn: Annotated[Mark, Meta(description="Pending messages, for the level `warn`.")]
    queue_critical: Annotated[Mark, Meta(description="Pending messages, for the level `critical`.")]
    queue_overload: Annotated[Mark, Meta(description="Pending messages, for overload.")]
    latency_warn_ms: Annotated[Mark, Meta(description="p95 latency in milliseconds, for the level `warn`.")]
    latency_critical_ms: Annotated[Mark, Meta(description="p95 latency in milliseconds, for the level `critical`.")]
    latency_overload_ms: Annotated[Mark, Meta(description="p95 latency in milliseconds, for overload.")]
    inflight_warn: Annotated[
        Mark | None, Meta(description="Messages in flight, for the level `warn`. null: the signal does not count.")
    ]
    inflight_critical: Annotated[
        Mark | None,
        Meta(description="Messages in flight, for the level `critical`. null: the signal does not count."),
    ]
    inflight_overload: Annotated[
        Mark | None, Meta(description="Messages in flight, for overload. null: the signal does not count.")
    ]
    drain_warn_seconds: Annotated[Mark, Meta(description="Seconds of waiting work, for the level `warn`.")]
    drain_critical_seconds: Annotated[Mark, Meta(description="Seconds of waiting work, for the level `critical`.")]
    drain_overload_seconds: Annotated[Mark, Meta(description="Seconds of waiting work, for overload.")]


class Levels(Struct, frozen=True):
    """The highest mark that each signal is above; for display, only `overload` moves the status."""

    pending: Annotated[MarkLevelName, Meta(description="Of the pending messages.")] = "normal"
    inflight: Annotated[MarkLevelName, Meta(description="Of the messages in flight.")] = "normal"
    latency_p95: Annotated[MarkLevelName, Meta(description="Of the p95 latency.")] = "normal"
    drain: Annotated[MarkLevelName, Meta(description="Of the seconds of waiting work.")] = "normal"


class Recovery(Struct, frozen=True):
    """The last incident of a subject, and the mean of all."""

    recovered: Annotated[bool, Meta(description="Whether the last incident has ended. false where there was none.")]
    recovery_time: Annotated[Time | None, Meta(description="When it ended. null while it lasts, or without one.")]
    incident: Annotated[str | None, Meta(description="Its id. null where there was none.")]
    duration_ms: Annotated[Count | None, Meta(description="How long it lasted, in milliseconds. null while it lasts.")]
    recoveries_total: Annotated[
        Count, Meta(description="How many incidents have ended, since the stored state was last lost (a new epoch).")
    ]
    mean_time_to_recover_ms: Annotated[
        Count | None, Meta(description="Mean duration of these incidents, in milliseconds. null: none has ended.")
    ]


class Override(Struct, frozen=True):
    """An operator's decision that replaces the status of a subject for some time."""

    action: Annotated[
        OverrideAction, Meta(description="`open` admits all requests, `reject` none but `critical` ones.")
    ]
    until: Annotated[Time, Meta(description="When it ends by itself.")]


class ConsumerStatus(Struct, frozen=True):
    """One consumer under a subject."""

    stream: Annotated[str, Meta(description="Name of its stream.")]
    consumer: Annotated[str, Meta(description="Its name.")]
    status: Annotated[StatusName, Meta(description="Its last known status; `unknown` before its first sample.")]
    latched: Annotated[tuple[str, ...], Meta(description="Signals above their overload mark and not yet released.")]
    diagnosis: Annotated[DiagnosisName | None, Meta(description="What is going on with it. null: not known yet.")]
    metrics: Annotated[Metrics, Meta(description="Its newest measurements.")]
    freshness: Annotated[FreshnessName, Meta(description="Whether these are proven now.")]


class Status(Struct, frozen=True):
    """The answer to `get.status`. Status, reasons, metrics, marks and diagnosis are those of the worst consumer."""

    subject: Annotated[Subject, Meta(description="The subject that was asked about.")]
    status: Annotated[StatusName, Meta(description="`active`: overloaded, hold back. `unknown`: nothing proves it.")]
    since: Annotated[Time | None, Meta(description="When this status began. null before the first.")] = None
    incident: Annotated[
        str | None, Meta(description="Id of the incident: shared by all events from a rise to the return to inactive.")
    ] = None
    pressure: Annotated[
        Amount | None,
        Meta(description="Largest value divided by its overload mark; above 1 is overload. null while unknown."),
    ] = None
    reasons: Annotated[
        tuple[str, ...],
        Meta(
            description="Why the status is what it is: signals whose latch is set (`pending`, `inflight`, "
            "`latency_p95`, `drain`), a diagnosis that counts as one, `shedding`."
        ),
    ] = ()
    metrics: Annotated[Metrics, Meta(description="The newest measurements of the worst consumer.")] = Metrics()
    levels: Annotated[Levels, Meta(description="The highest mark that each of its signals is above.")] = Levels()
    thresholds: Annotated[
        Thresholds | None, Meta(description="The marks in force for it. null while no consumer was read.")
    ] = None
    diagnosis: Annotated[DiagnosisName | None, Meta(description="What is going on with it. null: not known yet.")] = (
        None
    )
    admit_ratio: Annotated[Ratio, Meta(description="Share of the requests to admit: 1 `continue`, 0 `reject`.")] = 1.0
    mode: Annotated[Mode, Meta(description="`observe`: nothing is refused, `would` shows what would be.")] = "enforce"
    override: Annotated[Override | None, Meta(description="The override in force. null: there is none.")] = None
    consumers: Annotated[
        tuple[ConsumerStatus, ...], Meta(description="Its consumers, at most 20, the worst first.")
    ] = ()
    consumers_total: Annotated[Count, Meta(description="How many consumers it has.")] = 0
    matched: Annotated[
        tuple[str, ...],
        Meta(description="The watched subjects that the request matched, at most 256, the asked one first."),
    ] = ()
    state_keys: Annotated[
        tuple[str, ...], Meta(description="Their keys in the state bucket, in the same order: what to watch.")
    ] = ()
    event_subjects: Annotated[
        tuple[str, ...], Meta(description="Where their events are published, in the same order: what to subscribe to.")
    ] = ()
    freshness: Annotated[
        FreshnessName, Meta(description="Whether the status is proven: `known`, `stale` or `unknown`.")
    ] = "known"
    stale_reason: Annotated[
        StaleReason | None,
        Meta(description="With `stale`: a consumer was not proved for too long (`age`), or the server has no quorum."),
    ] = None
    sampled_at: Annotated[
        Time | None, Meta(description="When all its consumers were last proved: the oldest one counts. null: never.")
    ] = None
    age_ms: Annotated[
        Count | UnsetType | None,
        Meta(description="Milliseconds since then. null without a proof; not in a stored state."),
    ] = UNSET
    thresholds_from: Annotated[
        dict[str, str], Meta(description="Signal to how its marks came about, where they are not simply the policy's.")
    ] = {}
    policy: Annotated[
        dict[str, Any] | UnsetType, Meta(description="The policy in force, see docs/policy.md; not in a stored state.")
    ] = UNSET
    recovery: Annotated[Recovery | UnsetType, Meta(description="The last incident; not in a stored state.")] = UNSET


class StatusList(Struct, frozen=True):
    """The answer to `get.status` without a subject: one page, by subject."""

    total: Annotated[Count, Meta(description="How many subjects are watched.")]
    offset: Annotated[Count, Meta(description="How many of them are before this page.")]
    next_offset: Annotated[Count | None, Meta(description="`offset` of the next page. null: this is the last one.")]
    subjects: Annotated[tuple[Status, ...], Meta(description="Their statuses, as many as fit.")]


class Forgotten(Struct, frozen=True):
    """The answer to `forget`."""

    subject: Annotated[str, Meta(description="The subject without consumers whose state is removed now.")]
