"""When a queue that grows will be over its mark, if everything goes on as it does."""

from __future__ import annotations

from nats_backpressure.core.model import Reading

FARTHEST = 3600.0
"""Seconds; rates of the last ten say nothing about what lies beyond, which is None."""


def overload_in(reading: Reading, mark: float) -> float | None:
    """Seconds until pending stands at `mark`: what is left to it over (arrival rate - ack rate).

    None while a rate is unknown, the queue does not grow, it is over the mark already, or beyond FARTHEST.
    """
    if reading.arrival_rate is None or reading.ack_rate is None:
        return None
    growth, left = reading.arrival_rate - reading.ack_rate, mark - reading.pending
    if not growth > 0:
        return None
    seconds = left / growth
    return seconds if 0 <= seconds <= FARTHEST else None  # neither holds for NaN
