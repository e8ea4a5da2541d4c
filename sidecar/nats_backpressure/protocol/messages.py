"""The messages that a sidecar publishes, stores and answers with: one Struct each, for the server and its clients.

Every field has a description, which the JSON Schemas and docs/protocol.md show. `decoding` reads messages of newer
versions: unknown fields are ignored, and an unknown value is read as the most harmless one.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from nats_backpressure.protocol.values import (
    ActionName,
    AlertState,
    BackoffStrategy,
    DiagnosisName,
    EventTypeName,
    FreshnessName,
    KnownStatusName,
    LatencySource,
    LevelName,
    Mode,
    OnUnknown,
    OverrideAction,
    Role,
    StaleReason,
    StatusName,
)

SCHEMA = 1
"""Version of what is stored in the state bucket: of a state's `record`, and of the heartbeat."""

Subject = Annotated[str, Meta(min_length=1, max_length=1024)]
Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
"""RFC 3339 in UTC, with milliseconds and a `Z`."""
Count = Annotated[int, Meta(ge=0)]
Amount = Annotated[float, Meta(ge=0)]
Mark = Count | Amount
"""A whole one stays whole when it is decoded and encoded: to some readers 10 and 10.0 are not the same."""
Ratio = Annotated[float, Meta(ge=0, le=1)]


class Pull(Struct, frozen=True):
    """How much a consumer may pull now."""

    max_messages: Annotated[Count, Meta(description="Messages that may be pulled now. 0: none.")]
    wait_ms: Annotated[
        Count, Meta(description="Milliseconds to wait before the next request, after a 0. 0 after a grant.")
    ] = 0


class Decision(Struct, frozen=True):
    """The answer to `decide.gateway` and `decide.consumer`."""

    subject: Annotated[Subject, Meta(description="The subject that was asked about.")]
    role: Annotated[Role, Meta(description="Which of the two endpoints answered.")]
    status: Annotated[StatusName, Meta(description="Status of the subject that decides.")] = "unknown"
    action: Annotated[
        ActionName,
        Meta(
            description="What to do. A gateway: admit, admit the share `admit_ratio`, or refuse. A consumer: `reject` "
            "exactly when `pull.max_messages` is 0, `throttle` when it is less than was asked for."
        ),
    ] = "continue"
    reasons: Annotated[
        tuple[str, ...],
        Meta(
            description="Why the status is what it is: signals whose latch is set (`pending`, `inflight`, "
            "`latency_p95`, `drain`), a diagnosis that counts as one, `shedding`."
        ),
    ] = ()
    pressure: Annotated[
        Amount | None,
        Meta(description="Largest value divided by its overload mark; above 1 is overload. null while unknown."),
    ] = None
    retry_after_seconds: Annotated[
        Count, Meta(description="For a refused caller: seconds before it tries again. 0 with `continue`.")
    ] = 0
    max_retry_attempts: Annotated[Count, Meta(description="How many attempts the policy allows a refused caller.")] = 0
    backoff_strategy: Annotated[BackoffStrategy, Meta(description="How `retry_delay_ms` grows with the attempt.")] = (
        "constant"
    )
    retry_delay_ms: Annotated[
        Count | None,
        Meta(
            description="Milliseconds before the next attempt, for the `attempt` of the request, without jitter. null "
            "after the last attempt, and where nothing is to be retried."
        ),
    ] = None
    admit_ratio: Annotated[
        Ratio,
        Meta(
            description="Share of the requests to admit: 1 `continue`, 0 `reject`. For a gateway; in an answer to a "
            "consumer it has no meaning (`pull` counts)."
        ),
    ] = 1.0
    pull: Annotated[Pull | None, Meta(description="For the role consumer: what may be pulled. null for a gateway.")] = (
        None
    )
    alert: Annotated[bool, Meta(description="Whether the policy asks for an alert in this status.")] = False
    would: Annotated[
        ActionName | None,
        Meta(description="With `mode: observe`: the action that enforcement would have answered. Else null."),
    ] = None
    freshness: Annotated[
        FreshnessName, Meta(description="Whether the status is proven: `known`, `stale` or `unknown`.")
    ] = "unknown"
    sampled_at: Annotated[
        Time | None,
        Meta(
            description="When all behind the answer was last proved: the oldest of its consumers counts. null: never."
        ),
    ] = None
    valid_for_ms: Annotated[
        Count,
        Meta(description="Milliseconds for which a gateway may reuse the answer. 0: not at all, as for every grant."),
    ] = 0
    incident: Annotated[
        str | None, Meta(description="Id of the incident: shared by all events from a rise to the return to inactive.")
    ] = None
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

    pending: Annotated[LevelName, Meta(description="Of the pending messages.")] = "normal"
    inflight: Annotated[LevelName, Meta(description="Of the messages in flight.")] = "normal"
    latency_p95: Annotated[LevelName, Meta(description="Of the p95 latency.")] = "normal"
    drain: Annotated[LevelName, Meta(description="Of the seconds of waiting work.")] = "normal"


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

    action: Annotated[OverrideAction, Meta(description="`open` admits everything, `reject` refuses everything.")]
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


class AlertChange(Struct, frozen=True):
    """An alert, as it is now."""

    name: Annotated[str, Meta(description="Its name in the policy.")]
    severity: Annotated[str, Meta(description="Its severity in the policy.")]
    state: Annotated[
        AlertState, Meta(description="`pending`: its condition holds, but not long enough yet for `firing`.")
    ]
    when: Annotated[str, Meta(description="Its condition, such as `pending_above: 5000`.")]
    value: Annotated[int | float | str | None, Meta(description="The value that was compared. null: not known.")]
    since: Annotated[Time, Meta(description="When it got this `state`.")]


class Problem(Struct, frozen=True):
    """One thing that is wrong with a policy."""

    path: Annotated[str, Meta(description="Where, such as `pending.warn`. Empty: the whole document.")]
    message: Annotated[str, Meta(description="What is wrong there.")]


class Event(Struct, frozen=True):
    """Something that happened to a subject; published once for each change, in the order of `seq`."""

    id: Annotated[str, Meta(description="`<encoded subject>:<epoch>:<seq>`, also the header `Nats-Msg-Id`.")]
    type: Annotated[EventTypeName, Meta(description="What happened.")]
    subject: Annotated[
        str,
        Meta(
            description="The watched subject; with `policy_rejected` the decoded key: a subject or pattern, for an "
            "override `=override.<subject or pattern>`."
        ),
    ]
    timestamp: Annotated[Time, Meta(description="When the sidecar concluded it.")]
    epoch: Annotated[
        str, Meta(description="Changes only when the stored state was lost; `seq` then goes on from the stream's last.")
    ]
    seq: Annotated[int, Meta(ge=1, description="Rises by one per subject, without a gap.")]
    incident: Annotated[
        str | None, Meta(description="Shared by all events from the first rise to the return to inactive.")
    ]
    from_: Annotated[KnownStatusName, Meta(description="The last known status before.")] = field(name="from")
    to: Annotated[KnownStatusName, Meta(description="The status from then on; as before for types that move none.")]
    reasons: Annotated[
        tuple[str, ...],
        Meta(description="Why: the signals of the status that was reached, or that a recovery leaves; `data_loss`."),
    ]
    diagnosis: Annotated[DiagnosisName | None, Meta(description="What was going on. null: not known.")]
    pressure: Annotated[Amount | None, Meta(description="Largest value divided by its overload mark. null: unknown.")]
    metrics: Annotated[Metrics, Meta(description="The measurements of the worst consumer at that time.")]
    thresholds: Annotated[Thresholds | None, Meta(description="The marks that were in force for it.")]
    retry_after_seconds: Annotated[Count, Meta(description="What a refused caller was answered from then on. 0: none.")]
    admit_ratio: Annotated[Ratio, Meta(description="Share of the requests that was admitted from then on.")]
    instance: Annotated[str, Meta(description="The replica that published it.")]
    version: Annotated[str, Meta(description="Its version.")]
    lost: Annotated[
        Count | UnsetType, Meta(description="With `data_loss`: messages that the stream dropped before delivery.")
    ] = UNSET
    override: Annotated[Override | None, Meta(description="The override in force then. null: there was none.")] = None
    alert: Annotated[
        AlertChange | UnsetType, Meta(description="With `alert_firing` and `alert_resolved`: the alert.")
    ] = UNSET
    errors: Annotated[
        tuple[Problem, ...] | UnsetType,
        Meta(description="With `policy_rejected`: what is wrong with the policy, or ignored."),
    ] = UNSET
    policy_revision: Annotated[
        str | UnsetType, Meta(description="With `policy_rejected`: identifies the refused policy.")
    ] = UNSET


class Forgotten(Struct, frozen=True):
    """The answer to `forget`."""

    subject: Annotated[str, Meta(description="The subject without consumers whose state is removed now.")]


class Heartbeat(Struct, frozen=True):
    """Value of the key `=heartbeat` in the state bucket: the stored states were still true at `sampled_at`."""

    schema: Annotated[Count, Meta(description="Version of what is stored; no proof for states of a higher one.")] = 0
    instance: Annotated[str, Meta(description="The replica that wrote it.")] = ""
    sampled_at: Annotated[
        Time | None,
        Meta(
            description="When it last read a stream. It proves something only where this moved since its last "
            "heartbeat. null: it has read none yet."
        ),
    ] = None
    subjects: Annotated[Count, Meta(description="How many subjects are watched.")] = 0
    interval_ms: Annotated[Count, Meta(description="Longest time between two readings of a stream, in ms.")] = 0
    heartbeat_ms: Annotated[Count, Meta(description="Milliseconds to the next heartbeat.")] = 0
    stale_after_ms: Annotated[
        int, Meta(gt=0, description="Milliseconds without a proof after which a status is `stale`.")
    ] = 10_000
    unknown_after_ms: Annotated[
        int, Meta(gt=0, description="Milliseconds without a proof after which a status is `unknown`.")
    ] = 30_000
    leaving: Annotated[
        bool, Meta(description="The last replica stops: no sidecar checks from now on whether the states still hold.")
    ] = False


class State(Status, frozen=True, kw_only=True):
    """Value of a subject's key in the state bucket: its status, what a gateway needs, and one field of ours."""

    proof_age_ms: Annotated[
        Count | None,
        Meta(
            description="Milliseconds since its newest proof when it was written. null while `freshness` is `known`: "
            "heartbeats are its proof."
        ),
    ] = None
    action: Annotated[
        ActionName,
        Meta(
            description="What a gateway does: admit, admit `admit_ratio`, or refuse. Does not age in the bucket: the "
            "reader ages it."
        ),
    ]
    would: Annotated[
        ActionName | None,
        Meta(description="With `mode: observe`: the action that enforcement would have answered. Else null."),
    ] = None
    retry_after_seconds: Annotated[
        Count, Meta(description="For a refused caller: seconds before it tries again. 0 with `continue`.")
    ] = 0
    max_retry_attempts: Annotated[Count, Meta(description="How many attempts the policy allows a refused caller.")] = 0
    backoff_strategy: Annotated[BackoffStrategy, Meta(description="How the delay between attempts grows.")] = "constant"
    on_unknown: Annotated[
        OnUnknown, Meta(description="What a gateway does without proofs: `hold` the answer, then open; or one action.")
    ] = "hold"
    hold_seconds: Annotated[
        Amount, Meta(description="With `hold`: seconds after the last proof at which a refusal begins to open.")
    ] = 10.0
    epoch: Annotated[str, Meta(description="As in events.")] = ""
    seq: Annotated[Count, Meta(description="Of the newest event of the subject. 0 before the first.")] = 0
    schema: Annotated[Count, Meta(description="Version of what is stored; 0 in states of versions before 1.")] = 0
    record: Annotated[Raw, Meta(description="Ours, do not read: it may change with any version.")] = field(
        default_factory=Raw
    )

    @property
    def renewed(self) -> bool:
        """Whether heartbeats prove that it still holds. An override holds for as long as a sidecar is there to end it,
        whatever is known of the consumers."""
        return self.override is not None or (self.freshness == "known" and self.status != "unknown")
