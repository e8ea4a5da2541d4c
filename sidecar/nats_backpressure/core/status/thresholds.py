"""The marks in force for a consumer, and how its values stand to them."""

from __future__ import annotations

from nats_backpressure.core.model import SMALL_CAP, SMALL_CAP_STALL, Marks, MarkSet, Reading
from nats_backpressure.policy.schema import LARGEST_MARK, SMALLEST_MARK, InflightRule, MarkRule, PendingRule, Policy
from nats_backpressure.protocol.values import Level, Signal

CAP_SHARE = 0.9
"""In flight is judged below the consumer's own cap, since at the cap the server stops delivering."""


def marks(policy: Policy, reading: Reading) -> Marks:
    """The marks of one consumer. What follows something measured moves overload alone; a lower mark gives way to it.

    Where nothing is acknowledged in flight has no marks.
    """
    pending = _topped(policy.pending, _pending(policy.pending, reading.capacity))
    inflight = None if reading.inflight is None else _topped(policy.inflight, _inflight(policy.inflight, reading.cap))
    return Marks(pending, inflight, _marks(policy.latency_p95), _marks(policy.drain_seconds))


def derivations(policy: Policy, reading: Reading) -> tuple[tuple[str, str], ...]:
    """How marks came about that are not simply the policy's, (signal, sentence). Not for every sample: it writes."""
    found = []
    rule, capacity = policy.pending, reading.capacity
    if rule.overload_seconds is not None:
        if capacity is None:
            text, work = f"{_text(rule.overload)} until the rate is known", rule.overload
        else:
            text = f"{_text(rule.overload_seconds)} s of work at {capacity:.{1 if capacity >= 1 else 3}f} messages/s"
            work = rule.overload_seconds * capacity
        kept = _pending(rule, capacity)
        if kept > work:
            text += f", raised to min {_text(kept)}"
        elif kept < work:
            text += f", limited to max {_text(kept)}"
        if capacity is not None or kept != work:
            found.append((Signal.PENDING.value, text))
    cap = reading.cap
    if reading.inflight is not None and cap is not None:
        mark, ratio = _inflight(policy.inflight, cap), policy.inflight.overload_ratio
        share = CAP_SHARE if ratio is None else min(ratio, CAP_SHARE)
        if ratio is not None or mark < policy.inflight.overload:
            found.append((Signal.INFLIGHT.value, f"{_text(share)} x max_ack_pending {cap}"))
    return tuple(found)


def _pending(rule: PendingRule, capacity: float | None) -> float:
    """The overload mark: `overload_seconds` of work, or as given until the rate is known, within `min` and `max`."""
    if rule.overload_seconds is None:
        return rule.overload
    least = SMALLEST_MARK if rule.min is None else rule.min
    most = LARGEST_MARK if rule.max is None else rule.max
    return min(max(rule.overload if capacity is None else rule.overload_seconds * capacity, least), most)


def _inflight(rule: InflightRule, cap: int | None) -> float:
    """The overload mark: `overload_ratio` of the cap where both are there, and never above CAP_SHARE of it."""
    if cap is None:
        return rule.overload
    return min(rule.overload if rule.overload_ratio is None else rule.overload_ratio * cap, CAP_SHARE * cap)


def _topped(rule: MarkRule, overload: float) -> MarkSet:
    return MarkSet(min(rule.warn, overload), min(rule.critical, overload), overload)


def _marks(rule: MarkRule) -> MarkSet:
    return MarkSet(rule.warn, rule.critical, rule.overload)


def _text(number: float) -> str:
    return f"{number:.12g}"


def mark_of(marks: Marks, signal: Signal) -> MarkSet | None:
    match signal:
        case Signal.PENDING:
            return marks.pending
        case Signal.INFLIGHT:
            return marks.inflight
        case Signal.LATENCY:
            return marks.latency
        case Signal.DRAIN:
            return marks.drain


def value_of(reading: Reading, marks: Marks, signal: Signal) -> float | None:
    """What of a reading is judged for a signal; 0 where the value is surely calm, None where nothing is known."""
    match signal:
        case Signal.PENDING:
            return reading.pending
        case Signal.INFLIGHT:
            small = reading.cap is not None and reading.cap <= SMALL_CAP
            if not small or not reading.inflight:
                return reading.inflight
            if reading.stall >= SMALL_CAP_STALL:
                return None if reading.spare else reading.inflight
            return 0 if reading.stall_known else None
        case Signal.LATENCY:
            return reading.latency
        case Signal.DRAIN:
            # A handful is no queue, however slowly it moves.
            return 0 if reading.pending <= marks.pending.critical else reading.drain


def level(value: float | None, marks: MarkSet | None) -> Level:
    if value is None or marks is None or value <= marks.warn:
        return Level.NORMAL
    if value > marks.overload:
        return Level.OVERLOAD
    return Level.CRITICAL if value > marks.critical else Level.WARN


def pressure(reading: Reading, marks: Marks) -> float:
    """The largest share of its overload mark that any signal has reached; 1.0 is at the mark."""
    shares = [0.0]
    for signal in Signal:
        found, mark = value_of(reading, marks, signal), mark_of(marks, signal)
        if found is not None and mark is not None:
            shares.append(found / mark.overload)
    return max(shares)
