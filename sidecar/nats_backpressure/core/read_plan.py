"""How often a stream is read: as often as wanted, as seldom as it costs."""

from __future__ import annotations

from msgspec import Struct

SLOW_LIST = 1.0
"""Seconds; a list this slow is not asked for in the fast lane (one dead node of three makes every list take 4 s)."""
LIMITED_FOR = 10.0
"""Seconds for which reading is backed off after the server said that its API is overloaded."""
LIMITED_FACTOR = 4.0


class Budget(Struct, frozen=True):
    """Bounds from the settings, in seconds and requests."""

    min_interval: float
    max_interval: float
    requests_per_second: float
    server_share: float


def read_interval(budget: Budget, streams: int, requests: int, took: float, whole: bool, limited: bool) -> float:
    """Seconds between two readings of one of `streams` streams.

    `requests` and `took` (seconds) are what the last reading cost, `whole` whether nothing was missing from it,
    `limited` whether the server lately refused API requests.
    """
    if not whole or took >= SLOW_LIST:
        return budget.max_interval
    fair = max(1, streams) * requests / budget.requests_per_second
    wanted = max(budget.min_interval, fair, took / budget.server_share)
    return min(budget.max_interval, wanted * (LIMITED_FACTOR if limited else 1.0))
