"""The marks in force for a consumer, and how its values stand to them."""

from __future__ import annotations

from sidecar.core.model import Level, Marks, MarkSet, Reading, Signal
from sidecar.core.rules import MarkRule, Policy

CAP_SHARE = 0.9
"""In flight is judged below the consumer's own cap, since at the cap the server stops delivering."""
SMALL_CAP = 10
"""A cap this small is full whenever the worker works."""
SMALL_CAP_STALL = 5_000.0
"""Milliseconds without an ack after which in flight counts at a small cap too."""


def marks(policy: Policy, reading: Reading) -> Marks:
    """The policy's marks, in flight limited to CAP_SHARE of the cap, or absent where nothing is acknowledged."""
    inflight = None
    if reading.inflight is not None:
        top = float("inf") if reading.cap is None else CAP_SHARE * reading.cap
        rule = policy.inflight
        inflight = MarkSet(min(rule.warn, top), min(rule.critical, top), min(rule.overload, top))
    return Marks(_marks(policy.pending), inflight, _marks(policy.latency_p95), _marks(policy.drain_seconds))


def _marks(rule: MarkRule) -> MarkSet:
    return MarkSet(rule.warn, rule.critical, rule.overload)


def of(marks: Marks, signal: Signal) -> MarkSet | None:
    match signal:
        case Signal.PENDING:
            return marks.pending
        case Signal.INFLIGHT:
            return marks.inflight
        case Signal.LATENCY:
            return marks.latency
        case Signal.DRAIN:
            return marks.drain


def value(reading: Reading, marks: Marks, signal: Signal) -> float | None:
    """What of a reading is judged for a signal; 0 where the value is surely calm, None where nothing is known."""
    match signal:
        case Signal.PENDING:
            return reading.pending
        case Signal.INFLIGHT:
            small = reading.cap is not None and reading.cap <= SMALL_CAP
            return 0 if small and reading.inflight and reading.stall < SMALL_CAP_STALL else reading.inflight
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
        found, mark = value(reading, marks, signal), of(marks, signal)
        if found is not None and mark is not None:
            shares.append(found / mark.overload)
    return max(shares)
