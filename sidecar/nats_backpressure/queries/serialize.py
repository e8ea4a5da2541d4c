"""Builds the messages that are published, stored and returned (status, state, event, heartbeat) from the state."""

from __future__ import annotations

import heapq
import math
from typing import cast

import msgspec
from msgspec.structs import asdict

from nats_backpressure import __version__
from nats_backpressure.core.admission import gateway_admission
from nats_backpressure.core.model.admission import GatewayAdmission
from nats_backpressure.core.model.event import SubjectAlert, SubjectEvent
from nats_backpressure.core.model.marks import Marks, MarkSet
from nats_backpressure.core.model.member import Member
from nats_backpressure.core.model.proofs import Proofs, newest_proof
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.signals import forecast
from nats_backpressure.core.status import thresholds
from nats_backpressure.core.status.freshness import Limits, freshness, limits
from nats_backpressure.core.subject import stored_state
from nats_backpressure.core.subject.record import Record, Writing
from nats_backpressure.core.subject.record_builder import reported_diagnosis
from nats_backpressure.core.subject.state import SubjectState, deciding_policy
from nats_backpressure.policy.parse import policy_document
from nats_backpressure.policy.schema import Override, in_force
from nats_backpressure.protocol import messages
from nats_backpressure.protocol.subjects import Names, encode
from nats_backpressure.protocol.timestamps import Now, format_rfc3339
from nats_backpressure.protocol.values import (
    Diagnosis,
    DiagnosisName,
    Freshness,
    KnownStatusName,
    MarkLevelName,
    Signal,
    StaleReason,
)
from nats_backpressure.queries.lookup import SubjectView, age_starts_at, freshness_limits, subject_view
from nats_backpressure.runtime.view import ServiceView

OLDEST_AGE = 86_400.0
"""Seconds; the age written for a proof that is older, or for none."""
CONSUMERS_SHOWN = 20
"""Consumers in a status, the worst first."""


def format_time(unix: float | None) -> str | None:
    return None if unix is None else format_rfc3339(unix)


def round_finite(value: float | None, digits: int = 1) -> float | None:
    """Rounded for a message; None if it is not finite."""
    return None if value is None or not math.isfinite(value) else round(value, digits)


def mark_number(value: float) -> float:
    """A mark as people write it: 1000, not 1000.0."""
    return int(value) if value == int(value) else round(value, 3)


def diagnosis_name(diagnosis: Diagnosis | None) -> DiagnosisName | None:
    return None if diagnosis is None else diagnosis.value


def state_key_and_event_subject(prefix: str, subject: str) -> tuple[str, str]:
    """The key in the state bucket and the event subject that a client would watch."""
    tail = encode(subject)
    return tail, f"{prefix}.event.*.{tail}"


def metrics_message(reading: Reading | None, marks: Marks | None) -> messages.Metrics:
    if reading is None:
        return messages.Metrics()
    overload_in = forecast.overload_in(reading, marks.pending.overload) if marks else None
    return messages.Metrics(
        pending_messages=reading.pending,
        inflight_messages=reading.inflight,
        latency_p50_ms=round_finite(reading.p50),
        latency_p95_ms=round_finite(reading.p95),
        latency_p99_ms=round_finite(reading.p99),
        latency_source=reading.latency_source,
        stall_ms=round_finite(reading.stall),
        arrival_rate=round_finite(reading.arrival_rate),
        ack_rate=round_finite(reading.ack_rate),
        drain_seconds=round_finite(reading.drain, 2),
        overload_in_seconds=round_finite(overload_in),
        oldest_age_seconds=round_finite(reading.oldest_age),
        redelivery_ratio=round_finite(reading.redelivery_ratio, 3),
        stream_fill=round_finite(reading.stream_fill, 4),
    )


def thresholds_message(marks: Marks | None) -> messages.Thresholds | None:
    if marks is None:
        return None

    def numbers(signal: MarkSet) -> tuple[float, float, float]:
        return mark_number(signal.warn), mark_number(signal.critical), mark_number(signal.overload)

    inflight: tuple[float | None, float | None, float | None] = (None, None, None)
    if marks.inflight:
        inflight = numbers(marks.inflight)
    return messages.Thresholds(*numbers(marks.pending), *numbers(marks.latency), *inflight, *numbers(marks.drain))


def override_message(override: Override | None) -> messages.Override | None:
    return None if override is None else messages.Override(override.action, format_time(override.until) or "")


def alert_message(alert: SubjectAlert) -> messages.AlertChange:
    since = format_time(alert.since) or ""
    return messages.AlertChange(alert.name, alert.severity, alert.state, alert.when, alert.value, since)


def levels_message(member: Member | None) -> messages.Levels:
    if member is None or member.reading is None or member.marks is None:
        return messages.Levels()
    reading, marks = member.reading, member.marks

    def level(signal: Signal) -> MarkLevelName:
        mark: MarkSet | None = thresholds.mark_of(marks, signal)
        return thresholds.level(thresholds.value_of(reading, marks, signal), mark).value

    return messages.Levels(*(level(signal) for signal in Signal))


def recovery_message(record: Record | None) -> messages.Recovery:
    if record is None:
        return messages.Recovery(False, None, None, None, 0, None)
    recoveries = record.recoveries
    duration = (
        None
        if recoveries.began is None or recoveries.ended is None
        else round(1000 * max(0.0, recoveries.ended - recoveries.began))
    )
    mean = round(1000 * recoveries.total_seconds / recoveries.total) if recoveries.total else None
    return messages.Recovery(
        recovered=recoveries.ended is not None,
        recovery_time=format_time(recoveries.ended),
        incident=recoveries.incident,
        duration_ms=duration,
        recoveries_total=recoveries.total,
        mean_time_to_recover_ms=mean,
    )


def consumer_messages(
    state: SubjectState, limits: Limits, proofs: Proofs, now: Now
) -> tuple[messages.ConsumerStatus, ...]:
    shown = heapq.nsmallest(CONSUMERS_SHOWN, state.members.values(), key=lambda m: (-m.status, -m.pressure, m.key))
    return tuple(
        messages.ConsumerStatus(
            stream=m.key.stream,
            consumer=m.key.consumer,
            status=m.status.word,
            latched=tuple(s.value for s in m.latches.signals),
            diagnosis=diagnosis_name(reported_diagnosis(m, m.status)),
            metrics=metrics_message(m.reading, m.marks),
            freshness=freshness(newest_proof(m, proofs), now.mono, limits).value,
        )
        for m in shown
    )


def status_message(
    view: SubjectView,
    record: Record | None,
    admission: GatewayAdmission,
    reasons: tuple[str, ...],
    freshness: tuple[Freshness, StaleReason | None],
    service: ServiceView,
    now: Now,
) -> messages.Status:
    """`record` is the stored one; the numbers are the newest of the worst consumer."""
    state, member = view.state, view.worst_member
    known, stale_reason = freshness
    certain = record if known is not Freshness.UNKNOWN else None
    key, events = state_key_and_event_subject(Names(service.settings.name).prefix, state.subject)
    policy = deciding_policy(state)
    return messages.Status(
        subject=state.subject,
        status=certain.status.word if certain else "unknown",
        since=format_time(record.since) if record else None,
        incident=record.incident if record else None,
        pressure=round_finite(member.pressure, 3) if member and certain else None,
        reasons=reasons,
        metrics=metrics_message(member.reading, member.marks) if member else messages.Metrics(),
        levels=levels_message(member),
        thresholds=thresholds_message(member.marks) if member else None,
        thresholds_from=dict(thresholds.derivations(member.policy, member.reading))
        if member and member.reading
        else {},
        diagnosis=diagnosis_name(reported_diagnosis(member, certain.status)) if certain else None,
        admit_ratio=admission.admit_ratio,
        mode=policy.mode,
        override=override_message(in_force(policy, now)),
        consumers=consumer_messages(state, freshness_limits(state, service), service.proofs(state.subject), now),
        consumers_total=len(state.members),
        matched=(state.subject,),
        state_keys=(key,),
        event_subjects=(events,),
        freshness=known.value,
        stale_reason=stale_reason,
        sampled_at=format_time(view.sampled_at),
        age_ms=None if view.oldest_proof is None else round(1000 * max(0.0, now.mono - view.oldest_proof)),
        policy=policy_document(policy, now),
        recovery=recovery_message(record),
    )


def state_value(state: SubjectState, writing: Writing, service: ServiceView, now: Now) -> bytes:
    """The value of the subject's key: what a gateway needs to decide alone, and what a restart needs to continue."""
    record = writing.record
    # What is written is known from then on; clients compute its age from the heartbeat. A heartbeat that proves nothing
    # about this one subject is why `stale` and `unknown` are written here.
    view = subject_view(state, service.proofs(state.subject))
    known = Freshness.UNKNOWN if record.unknown else Freshness.STALE if record.stale else Freshness.KNOWN
    freshness: tuple[Freshness, StaleReason | None] = (known, "age" if record.stale else None)
    policy = deciding_policy(state)
    admission = gateway_admission.with_override(record.admission, record.override, policy)
    fields = asdict(status_message(view, record, admission, record.reasons, freshness, service, now))
    for name in ("age_ms", "policy", "recovery"):
        fields[name] = msgspec.UNSET
    value = messages.State(
        **fields,
        proof_age_ms=None if known is Freshness.KNOWN else proof_age(view, freshness_limits(state, service), now),
        action=admission.action.value,
        would=admission.would.value if admission.would else None,
        retry_after_seconds=admission.retry_after,
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


def proof_age(view: SubjectView, limits: Limits, now: Now) -> int:
    """Milliseconds since the last proof of the status; if that was before this process, since its start."""
    return round(1000 * min(OLDEST_AGE, max(0.0, now.mono - age_starts_at(view, limits, now))))


def event_message(event: SubjectEvent, instance: str) -> messages.Event:
    return messages.Event(
        id=event.id,
        type=event.type.value,
        subject=event.subject,
        timestamp=format_time(event.at) or "",
        epoch=event.epoch,
        seq=event.seq,
        incident=event.incident,
        from_=cast(KnownStatusName, event.was.word),
        to=cast(KnownStatusName, event.now.word),
        reasons=event.reasons,
        diagnosis=diagnosis_name(event.diagnosis),
        pressure=round_finite(event.pressure, 3),
        metrics=metrics_message(event.reading, event.marks),
        thresholds=thresholds_message(event.marks),
        retry_after_seconds=event.retry_after,
        admit_ratio=event.admit_ratio,
        instance=instance,
        version=__version__,
        lost=msgspec.UNSET if event.lost is None else event.lost,
        override=override_message(event.override),
        alert=msgspec.UNSET if event.alert is None else alert_message(event.alert),
        errors=tuple(messages.Problem(*error) for error in event.errors) or msgspec.UNSET,
        policy_revision=event.policy_revision or msgspec.UNSET,
    )


def heartbeat(service: ServiceView, instance: str, now: Now, leaving: bool = False) -> bytes:
    """The heartbeat: the stored states were true at `sampled_at`; and the ages at which they are stale and unknown."""
    observe = service.settings.observe
    interval = service.longest_interval()
    limits_ = limits(observe.stale_after_seconds, observe.unknown_after_seconds, interval)
    read_at = service.newest_read_at
    return msgspec.json.encode(
        messages.Heartbeat(
            schema=messages.SCHEMA,
            instance=instance,
            sampled_at=None if read_at is None else format_time(now.wall - (now.mono - read_at)),
            subjects=len(service.subjects),
            interval_ms=round(1000 * interval),
            heartbeat_ms=round(1000 * service.settings.publish.heartbeat_seconds),
            stale_after_ms=round(1000 * limits_.stale_after),
            unknown_after_ms=round(1000 * limits_.unknown_after),
            leaving=leaving,
        )
    )
