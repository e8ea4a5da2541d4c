"""Computes the marks of a consumer, and compares its values with them."""

from __future__ import annotations

from nats_backpressure.core.model.marks import SMALL_CAP, SMALL_CAP_STALL, Marks, MarkSet
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.policy.schema import LARGEST_MARK, SMALLEST_MARK, InflightRule, MarkRule, PendingRule, Policy
from nats_backpressure.protocol.values import MarkLevel, Signal

CAP_SHARE = 0.9
"""The in-flight mark is below the consumer's own cap, since at the cap the server stops delivering."""


def marks(policy: Policy, reading: Reading) -> Marks:
    """The marks of one consumer. A measured value moves only the overload mark; a lower mark is then lowered to it.

    A consumer without acknowledgements has no in-flight marks.
    """
    pending = _mark_set(policy.pending, _pending(policy.pending, reading.capacity))
    inflight = None if reading.inflight is None else _mark_set(policy.inflight, _inflight(policy.inflight, reading.cap))
    return Marks(pending, inflight, _marks(policy.latency_p95), _marks(policy.drain_seconds))


def derivations(policy: Policy, reading: Reading) -> tuple[tuple[str, str], ...]:
    """How the marks that differ from the policy were computed, as (signal, sentence). It is slow: not for every
    sample."""
    sentences = []
    rule, capacity = policy.pending, reading.capacity
    if rule.overload_seconds is not None:
        if capacity is None:
            text, work = f"{_text(rule.overload)} until the rate is known", rule.overload
        else:
            text = f"{_text(rule.overload_seconds)} s of work at {capacity:.{1 if capacity >= 1 else 3}f} messages/s"
            work = rule.overload_seconds * capacity
        bounded = _pending(rule, capacity)
        if bounded > work:
            text += f", raised to min {_text(bounded)}"
        elif bounded < work:
            text += f", limited to max {_text(bounded)}"
        if capacity is not None or bounded != work:
            sentences.append((Signal.PENDING.value, text))
    cap = reading.cap
    if reading.inflight is not None and cap is not None:
        mark, ratio = _inflight(policy.inflight, cap), policy.inflight.overload_ratio
        share = CAP_SHARE if ratio is None else min(ratio, CAP_SHARE)
        if ratio is not None or mark < policy.inflight.overload:
            sentences.append((Signal.INFLIGHT.value, f"{_text(share)} x max_ack_pending {cap}"))
    return tuple(sentences)


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


def _mark_set(rule: MarkRule, overload: float) -> MarkSet:
    return MarkSet(min(rule.warn, overload), min(rule.critical, overload), overload)


def _marks(rule: MarkRule) -> MarkSet:
    return MarkSet(rule.warn, rule.critical, rule.overload)


def _text(number: float) -> str:
    return f"{number:.12g}"


def mark_of(marks: Marks, signal: Signal) -> MarkSet | None:
    """The marks of one signal."""
    match signal:
        case Signal.PENDING:
            return marks.pending
        case Signal.INFLIGHT:
            return marks.inflight
        case Signal.LATENCY:
            return marks.latency
        case _:
            return marks.drain


def value_of(reading: Reading, marks: Marks, signal: Signal) -> float | None:
    """The value that is compared with the marks of a signal; 0 where it is certainly calm, None where it is unknown."""
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
        case _:
            # A few messages are no queue, however slowly they are processed.
            return 0 if reading.pending <= marks.pending.critical else reading.drain


def level(value: float | None, marks: MarkSet | None) -> MarkLevel:
    """The highest mark that the value is above, as a level for people."""
    if value is None or marks is None or value <= marks.warn:
        return MarkLevel.NORMAL
    if value > marks.overload:
        return MarkLevel.OVERLOAD
    return MarkLevel.CRITICAL if value > marks.critical else MarkLevel.WARN


def pressure(reading: Reading, marks: Marks) -> float:
    """The largest signal divided by its overload mark; 1.0 is at the mark."""
    inflight, drain = value_of(reading, marks, Signal.INFLIGHT), value_of(reading, marks, Signal.DRAIN)
    pressure = max(reading.pending / marks.pending.overload, 0.0)
    if inflight is not None and marks.inflight is not None:
        pressure = max(pressure, inflight / marks.inflight.overload)
    if reading.latency is not None:
        pressure = max(pressure, reading.latency / marks.latency.overload)
    return pressure if drain is None else max(pressure, drain / marks.drain.overload)
