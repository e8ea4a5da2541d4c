"""Computes how often a stream is read, from the settings and from what its reads cost."""

from __future__ import annotations

from msgspec import Struct

SLOW_LIST = 1.0
"""Seconds; a stream with a list this slow is read at the longest interval (one dead node of three: 4 s per list)."""
LIMITED_FOR = 10.0
"""Seconds for which reads are rarer after the server refused one because its API is overloaded."""
LIMITED_FACTOR = 4.0
"""By how much rarer they are then."""


class Budget(Struct, frozen=True):
    """Bounds from the settings, in seconds and requests."""

    min_interval: float
    max_interval: float
    requests_per_second: float
    server_share: float


def read_interval(budget: Budget, streams: int, requests: int, took: float, whole: bool, limited: bool) -> float:
    """Seconds between two reads of one of `streams` streams.

    `requests` and `took` (seconds): the cost of the last read. `whole`: whether it was complete. `limited`: whether the
    server lately refused API requests.
    """
    if not whole or took >= SLOW_LIST:
        return budget.max_interval
    fair = max(1, streams) * requests / budget.requests_per_second
    wanted = max(budget.min_interval, fair, took / budget.server_share)
    return min(budget.max_interval, wanted * (LIMITED_FACTOR if limited else 1.0))
