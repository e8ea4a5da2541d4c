"""Forecasts when a growing queue will reach its mark, if the rates stay as they are."""

from __future__ import annotations

from nats_backpressure.core.model.reading import Reading

FARTHEST = 3600.0
"""Seconds; rates of the last ten seconds allow no longer forecast."""


def overload_in(reading: Reading, mark: float) -> float | None:
    """Seconds until pending reaches `mark`: (mark - pending) / (arrival rate - ack rate).

    None while a rate is unknown, the queue does not grow, it is already above the mark, or it takes over FARTHEST.
    """
    if reading.arrival_rate is None or reading.ack_rate is None:
        return None
    growth, room = reading.arrival_rate - reading.ack_rate, mark - reading.pending
    if not growth > 0:
        return None
    seconds = room / growth
    return seconds if 0 <= seconds <= FARTHEST else None  # neither holds for NaN
