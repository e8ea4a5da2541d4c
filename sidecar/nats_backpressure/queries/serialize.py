"""From what the service knows to the messages of the wire."""

from __future__ import annotations

import heapq
import math
from datetime import UTC, datetime
from functools import lru_cache

import msgspec
from msgspec.structs import asdict

from nats_backpressure import __version__
from nats_backpressure.core.admission import binary
from nats_backpressure.core.model import Admission, Alert, Event, Marks, MarkSet, Member, Reading
from nats_backpressure.core.signals import forecast
from nats_backpressure.core.status import thresholds
from nats_backpressure.core.status.freshness import Limits, freshness, limits
from nats_backpressure.core.subject import stored_state
from nats_backpressure.core.subject.next_record import reported_diagnosis
from nats_backpressure.core.subject.state import Record, SubjectState, Writing
from nats_backpressure.policy.parse import policy_document
from nats_backpressure.policy.schema import Override, in_force
from nats_backpressure.protocol import messages
from nats_backpressure.protocol.subjects import Names, encode
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Freshness, Signal
from nats_backpressure.queries.subject_view import SubjectView, bounds, proved, subject_view
from nats_backpressure.runtime.view import ServiceView

LONGEST_AGE = 86_400.0
"""Seconds; what was proved longer ago, or never, is as old as this."""
CONSUMERS_SHOWN = 20
"""Consumers in a status, the worst first."""


def moment(unix: float | None) -> str | None:
    """RFC 3339 in UTC with milliseconds and a Z."""
    if unix is None:
        return None
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def number(value: float | None, digits: int = 1) -> float | None:
    """Rounded for the wire; what is not finite is not known."""
    return None if value is None or not math.isfinite(value) else round(value, digits)


def mark(value: float) -> float:
    """A mark as people write it: 1000 and not 1000.0."""
    return int(value) if value == int(value) else round(value, 3)


@lru_cache(maxsize=65_536)
def places(prefix: str, subject: str) -> tuple[str, str]:
    """The state key and the event subject a client would watch."""
    tail = encode(subject)
    return tail, f"{prefix}.event.*.{tail}"


def metrics(reading: Reading | None, marks: Marks | None) -> messages.Metrics:
    if reading is None:
        return messages.Metrics()
    overload_in = forecast.overload_in(reading, marks.pending.overload) if marks else None
    return messages.Metrics(
        pending_messages=reading.pending,
        inflight_messages=reading.inflight,
        latency_p50_ms=number(reading.p50),
        latency_p95_ms=number(reading.p95),
        latency_p99_ms=number(reading.p99),
        latency_source=reading.latency_source,
        stall_ms=number(reading.stall),
        arrival_rate=number(reading.arrival_rate),
        ack_rate=number(reading.ack_rate),
        drain_seconds=number(reading.drain, 2),
        overload_in_seconds=number(overload_in),
        oldest_age_seconds=number(reading.oldest_age),
        redelivery_ratio=number(reading.redelivery_ratio, 3),
        stream_fill=number(reading.stream_fill, 4),
    )


def marks(found: Marks | None) -> messages.Thresholds | None:
    if found is None:
        return None

    def three(of: MarkSet) -> tuple[float, float, float]:
        return mark(of.warn), mark(of.critical), mark(of.overload)

    inflight: tuple[float | None, float | None, float | None] = (None, None, None)
    if found.inflight:
        inflight = three(found.inflight)
    return messages.Thresholds(*three(found.pending), *three(found.latency), *inflight, *three(found.drain))


def override(found: Override | None) -> messages.Override | None:
    return None if found is None else messages.Override(found.action, moment(found.until) or "")


def alert(found: Alert) -> messages.AlertChange:
    since = moment(found.since) or ""
    return messages.AlertChange(found.name, found.severity, found.state, found.when, found.value, since)


def levels(member: Member | None) -> messages.Levels:
    if member is None or member.reading is None or member.marks is None:
        return messages.Levels()
    reading, found = member.reading, member.marks

    def level(signal: Signal) -> str:
        mark: MarkSet | None = thresholds.mark_of(found, signal)
        return thresholds.level(thresholds.value_of(reading, found, signal), mark).value

    return messages.Levels(*(level(signal) for signal in Signal))


def recovery(record: Record | None) -> messages.Recovery:
    if record is None:
        return messages.Recovery(False, None, None, None, 0, None)
    found = record.recoveries
    lasted = None if found.began is None or found.ended is None else round(1000 * max(0.0, found.ended - found.began))
    mean = round(1000 * found.total_seconds / found.total) if found.total else None
    return messages.Recovery(
        recovered=found.ended is not None,
        recovery_time=moment(found.ended),
        incident=found.incident,
        duration_ms=lasted,
        recoveries_total=found.total,
        mean_time_to_recover_ms=mean,
    )


def consumers(state: SubjectState, limits: Limits, now: Now) -> tuple[messages.ConsumerStatus, ...]:
    shown = heapq.nsmallest(CONSUMERS_SHOWN, state.members.values(), key=lambda m: (-m.status, -m.pressure, m.key))
    return tuple(
        messages.ConsumerStatus(
            stream=m.key.stream,
            consumer=m.key.consumer,
            status=m.status.word,
            latched=tuple(s.value for s in m.latches.signals),
            diagnosis=reported_diagnosis(m, m.status),
            metrics=metrics(m.reading, m.marks),
            freshness=freshness(m.proof, now.mono, limits).value,
        )
        for m in shown
    )


def status(
    found: SubjectView,
    record: Record | None,
    verdict: Admission,
    reasons: tuple[str, ...],
    known: tuple[Freshness, str | None],
    book: ServiceView,
    now: Now,
) -> messages.Status:
    """A subject as it is known: the verdict is the stored one, the numbers are the worst consumer's newest."""
    state, member = found.state, found.worst_member
    fresh_, why = known
    judged = record if fresh_ is not Freshness.UNKNOWN else None
    key, events = places(Names(book.settings.name).prefix, state.subject)
    policy = member.policy if member else state.policy
    return messages.Status(
        subject=state.subject,
        status=judged.status.word if judged else "unknown",
        since=moment(record.since) if record else None,
        incident=record.incident if record else None,
        pressure=number(member.pressure, 3) if member and judged else None,
        reasons=reasons,
        metrics=metrics(member.reading, member.marks) if member else messages.Metrics(),
        levels=levels(member),
        thresholds=marks(member.marks) if member else None,
        thresholds_from=dict(thresholds.derivations(policy, member.reading)) if member and member.reading else {},
        diagnosis=reported_diagnosis(member, judged.status) if judged else None,
        admit_ratio=verdict.admit_ratio,
        mode=policy.mode,
        override=override(in_force(policy, now)),
        consumers=consumers(state, bounds(state, book), now),
        consumers_total=len(state.members),
        matched=(state.subject,),
        state_keys=(key,),
        event_subjects=(events,),
        freshness=fresh_.value,
        stale_reason=why,
        sampled_at=moment(found.sampled_at),
        age_ms=None if found.age_from is None else round(1000 * max(0.0, now.mono - found.age_from)),
        policy=policy_document(policy, now),
        recovery=recovery(record),
    )


def state_value(state: SubjectState, writing: Writing, book: ServiceView, now: Now) -> bytes:
    """The value of the subject's key: what a gateway needs to decide alone, and what a restart needs to go on."""
    record = writing.record
    # Once it is written it is what is known; how old it is, a watcher takes from the heartbeat. Where that proves
    # nothing of this one subject it is said here, once.
    found = subject_view(state)
    fresh_ = Freshness.UNKNOWN if record.unknown else Freshness.STALE if record.stale else Freshness.KNOWN
    known = (fresh_, "age" if record.stale else None)
    policy = found.worst_member.policy if found.worst_member else state.policy
    verdict = binary.with_override(record.admission, record.override, policy)
    shown = asdict(status(found, record, verdict, record.reasons, known, book, now))
    for field in ("age_ms", "policy", "recovery"):
        shown[field] = msgspec.UNSET
    value = messages.State(
        **shown,
        proof_age_ms=None if fresh_ is Freshness.KNOWN else proof_age(found, bounds(state, book), now),
        action=verdict.action.value,
        would=verdict.would.value if verdict.would else None,
        retry_after_seconds=verdict.retry_after,
        max_retry_attempts=policy.max_retry_attempts,
        backoff_strategy=policy.backoff_strategy,
        on_unknown=policy.on_unknown,
        hold_seconds=policy.hold_seconds,
        epoch=record.epoch,
        seq=record.seq,
        schema=messages.SCHEMA,
        record=stored_state.encode(record, writing.nonce),
    )
    return msgspec.json.encode(value)


def proof_age(found: SubjectView, limits: Limits, now: Now) -> int:
    """Milliseconds since what is said was last proved. Where that was before this process, since its beginning."""
    return round(1000 * min(LONGEST_AGE, max(0.0, now.mono - proved(found, limits, now))))


def event(told: Event, instance: str) -> messages.Event:
    return messages.Event(
        id=told.id,
        type=told.type.value,
        subject=told.subject,
        timestamp=moment(told.at) or "",
        epoch=told.epoch,
        seq=told.seq,
        incident=told.incident,
        from_=told.was.word,
        to=told.now.word,
        reasons=told.reasons,
        diagnosis=told.diagnosis,
        pressure=number(told.pressure, 3),
        metrics=metrics(told.reading, told.marks),
        thresholds=marks(told.marks),
        retry_after_seconds=told.retry_after,
        admit_ratio=told.admit_ratio,
        instance=instance,
        version=__version__,
        lost=msgspec.UNSET if told.lost is None else told.lost,
        override=override(told.override),
        alert=msgspec.UNSET if told.alert is None else alert(told.alert),
        errors=tuple(messages.Problem(*error) for error in told.errors) or msgspec.UNSET,
        policy_revision=told.policy_revision or msgspec.UNSET,
    )


def heartbeat(book: ServiceView, instance: str, now: Now, leaving: bool = False) -> bytes:
    """The heartbeat: what the states say held at `sampled_at`, and when to stop believing it without another."""
    observe = book.settings.observe
    intervals = [book.interval(subject) for subject in tuple(book.subjects)]
    interval = max(intervals, default=observe.min_interval_ms / 1000)
    found = limits(observe.stale_after_seconds, observe.unknown_after_seconds, interval)
    swept = book.swept_at
    return msgspec.json.encode(
        messages.Heartbeat(
            schema=messages.SCHEMA,
            instance=instance,
            sampled_at=None if swept is None else moment(now.wall - (now.mono - swept)),
            subjects=len(intervals),
            interval_ms=round(1000 * interval),
            heartbeat_ms=round(1000 * book.settings.publish.heartbeat_seconds),
            stale_after_ms=round(1000 * found.stale_after),
            unknown_after_ms=round(1000 * found.unknown_after),
            leaving=leaving,
        )
    )
