"""Latches: set at once above the mark, released only after enough time below a lower mark; and the status they give."""

from __future__ import annotations

from msgspec.structs import replace

from nats_backpressure.core.model.marks import Marks
from nats_backpressure.core.model.member import Latch, Latches
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.status import thresholds
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.values import Diagnosis, Signal, Status


def latch(was: Latch, value: float | None, mark: float, policy: Policy, now: float) -> Latch:
    """Set when `value` is above `mark`; released once it stayed at or below `mark * recovery_threshold` for
    `recovery_hold_seconds`. A value of None changes nothing."""
    if value is None:
        return was
    if value > mark:
        return Latch(on=True)
    if value > mark * policy.recovery_threshold:
        return Latch(on=was.on)
    if not was.on:
        return was
    since = now if was.calm_since is None else was.calm_since
    return Latch(on=now - since < policy.recovery_hold_seconds, calm_since=since)


def keep_set(was: Latch, after: Latch) -> Latch:
    """`after`, but never released: for a sample whose low value proves nothing."""
    return replace(was, calm_since=None) if was.on and not (after.on and after.calm_since is None) else after


COUNTED = (Diagnosis.SERVER_STUCK, Diagnosis.CAP_REACHED, Diagnosis.NOBODY_PULLING)
"""Diagnoses that count as a second signal beside an overloaded backlog, once they last: nobody works on it."""


def is_ignored(reading: Reading, policy: Policy) -> bool:
    """Whether the policy excludes a consumer in this condition."""
    return (reading.paused and policy.on_paused == "ignore") or (reading.backfilling and not policy.count_backfill)


def diagnosis_counts(reading: Reading, latches: Latches, policy: Policy) -> bool:
    """Whether the diagnosis counts as a signal, given that pending is overloaded."""
    lasted = reading.diagnosis in COUNTED and reading.diagnosed_for >= policy.stall_seconds
    return lasted and latches.pending.on and not is_ignored(reading, policy)


def next_latches(was: Latches, reading: Reading, marks: Marks, policy: Policy) -> Latches:
    """All latches of one consumer after one reading."""
    now = reading.at.mono
    ignored = is_ignored(reading, policy)

    def next_latch(signal: Signal, old: Latch, factor: float = 1.0) -> Latch:
        mark = thresholds.mark_of(marks, signal)
        value = 0.0 if ignored or mark is None else thresholds.value_of(reading, marks, signal)
        return latch(old, value, mark.overload * factor if mark else 1.0, policy, now)

    pending = next_latch(Signal.PENDING, was.pending)
    pending_alone = next_latch(Signal.PENDING, was.pending_alone, policy.alone_factor)
    drain, drain_alone = (
        next_latch(Signal.DRAIN, was.drain),
        next_latch(Signal.DRAIN, was.drain_alone, policy.alone_factor),
    )
    latency = next_latch(Signal.LATENCY, was.latency_p95)
    if reading.losing:
        pending, pending_alone = keep_set(was.pending, pending), keep_set(was.pending_alone, pending_alone)
    if not reading.latency_evidence and not ignored and (not latency.on or latency.calm_since is not None):
        latency = was.latency_p95  # a short stall proves nothing: it neither starts nor ends a hold
    if not reading.settled and not ignored and reading.pending > marks.pending.critical:
        drain, drain_alone = keep_set(was.drain, drain), keep_set(was.drain_alone, drain_alone)
    latches = Latches(
        pending=pending,
        inflight=next_latch(Signal.INFLIGHT, was.inflight),
        latency_p95=latency,
        drain=drain,
        pending_alone=pending_alone,
        drain_alone=drain_alone,
    )
    if not pending.on:  # it counts only beside an overloaded backlog: the next one starts without it
        return latches
    return replace(latches, diagnosed=latch(was.diagnosed, _stuck(reading, latches, policy), 0.5, policy, now))


def _stuck(reading: Reading, latches: Latches, policy: Policy) -> float | None:
    """1 where a diagnosis counts, 0 where none can; None where it is not known: there is no diagnosis yet (a restart),
    or it has not lasted long enough."""
    if is_ignored(reading, policy):
        return 0.0
    if diagnosis_counts(reading, latches, policy):
        return 1.0
    return None if reading.diagnosis is None or reading.diagnosis in COUNTED else 0.0


def status(latches: Latches, policy: Policy) -> Status:
    """The status of a member with these latches."""
    count = len(latches.signals) + (latches.pending.on and latches.diagnosed.on)
    if latches.pending_alone.on or latches.drain_alone.on or count >= policy.active_signals:
        return Status.ACTIVE
    return Status.WARNING if count else Status.INACTIVE
