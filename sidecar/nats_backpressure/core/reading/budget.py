"""The bounds of reading: how often at most, how many requests per second, and the share of the server's time."""

from __future__ import annotations

import math
from enum import IntEnum

from msgspec import Struct

QUIET_INTERVAL = 1.0
"""Seconds between two readings of a consumer that is neither hot nor idle: what stall, diagnosis and people need."""
BURST = 0.2
"""Seconds of the budget that may be used at once after a pause."""
LOOKS_PER_READING = 0.6
"""Looks for each reading of what is hot: looks are nearly all that an idle sidecar does, and nearly all its cost."""
LOOK_SHARE = 0.5
"""The share of the requests that looks may use."""


class Level(IntEnum):
    """Which consumers of a stream a reading is for; each level includes the ones before."""

    HOT = 0
    """Those that may be above a mark."""
    QUIET = 1
    """All that are not idle."""
    ALL = 2
    """Every consumer there is, new ones among them."""


class Budget(Struct, frozen=True):
    """Bounds from the settings, in seconds and requests."""

    min_interval: float
    max_interval: float
    requests_per_second: float
    server_share: float
    quiet: float = QUIET_INTERVAL

    def interval(self, level: Level) -> float:
        """Seconds between two readings at this level."""
        quiet = min(self.max_interval, max(self.min_interval, self.quiet))
        return (self.min_interval, quiet, self.max_interval)[level]

    def cost(self, requests: float, server_seconds: float) -> float:
        """The seconds for which a reading uses up what may be requested, and what the server may work."""
        return requests / self.requests_per_second + server_seconds / self.server_share

    def look_interval(self, requests: int, took: float) -> float:
        """Seconds between two looks of so many requests, the last of which took the server so long."""
        shortest = self.min_interval / LOOKS_PER_READING
        return max(shortest, requests / (LOOK_SHARE * self.requests_per_second), min(took, 1.0) / self.server_share)


class RequestBudget:
    """At most so many requests per second, in the order in which they are asked for; a short burst after a pause."""

    __slots__ = ("_gap", "_next")

    def __init__(self, rate: float) -> None:
        self._gap, self._next = 1 / rate, -math.inf

    def set_rate(self, rate: float, now: float) -> None:
        """Allow so many per second from now on; what waits waits in the same order."""
        gap = 1 / rate
        if gap != self._gap:
            self._next = now + (self._next - now) * gap / self._gap if self._next > now else self._next
            self._gap = gap

    def take(self, now: float) -> float:
        """Seconds until the next request may be sent."""
        mine = max(self._next, now - BURST)
        self._next = mine + self._gap
        return max(0.0, mine - now)

    def ready_in(self, now: float) -> float:
        """Seconds until no more than one request waits: then another reading may begin beside those under way."""
        return max(0.0, self._next - now - self._gap)
