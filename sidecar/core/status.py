"""Two-mark latches, and the status they add up to. Rising is immediate, falling takes evidence and time."""

from __future__ import annotations

from msgspec.structs import replace

from sidecar.core import thresholds
from sidecar.core.model import Marks, Reading, Signal, Status
from sidecar.core.rules import Policy
from sidecar.core.state import Latch, Latches


def latch(was: Latch, value: float | None, mark: float, policy: Policy, now: float) -> Latch:
    """Set above `mark` (at it is not above); released once at or below its share for the hold; None changes nothing."""
    if value is None:
        return was
    if value > mark:
        return Latch(on=True)
    if not was.on:
        return was
    if value > mark * policy.recovery_threshold:
        return Latch(on=True)
    since = now if was.calm_since is None else was.calm_since
    return Latch() if now - since >= policy.recovery_hold_seconds else Latch(on=True, calm_since=since)


def held(was: Latch, now_: Latch) -> Latch:
    """As judged, but never released: for a sample whose calm proves nothing."""
    return replace(was, calm_since=None) if was.on and not (now_.on and now_.calm_since is None) else now_


def judge(was: Latches, reading: Reading, marks: Marks, policy: Policy) -> Latches:
    """All latches of one consumer after one reading."""
    now = reading.at.mono
    ignored = reading.paused and policy.on_paused == "ignore"

    def judged(signal: Signal, old: Latch, factor: float = 1.0) -> Latch:
        mark = thresholds.of(marks, signal)
        value = 0.0 if ignored or mark is None else thresholds.value(reading, marks, signal)
        return latch(old, value, mark.overload * factor if mark else 1.0, policy, now)

    pending = judged(Signal.PENDING, was.pending)
    pending_alone = judged(Signal.PENDING, was.pending_alone, policy.alone_factor)
    latency = judged(Signal.LATENCY, was.latency_p95)
    if reading.losing:
        pending, pending_alone = held(was.pending, pending), held(was.pending_alone, pending_alone)
    if not reading.latency_evidence and not ignored:
        latency = held(was.latency_p95, latency)
    return Latches(
        pending=pending,
        inflight=judged(Signal.INFLIGHT, was.inflight),
        latency_p95=latency,
        drain=judged(Signal.DRAIN, was.drain),
        pending_alone=pending_alone,
        drain_alone=judged(Signal.DRAIN, was.drain_alone, policy.alone_factor),
    )


def status(latches: Latches, policy: Policy) -> Status:
    count = len(latches.signals)
    if latches.pending_alone.on or latches.drain_alone.on or count >= policy.active_signals:
        return Status.ACTIVE
    return Status.WARNING if count else Status.INACTIVE
