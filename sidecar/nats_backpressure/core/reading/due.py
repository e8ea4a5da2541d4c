"""Due: the next reading of one stream, and how late it is beside those of other streams."""

from __future__ import annotations

import math

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.reading.budget import Level


class Due(Struct, frozen=True):
    """A reading of one stream that is planned."""

    level: Level
    at: float
    """Monotonic time at which it is due."""
    since: float
    """Monotonic time of the last one."""
    levels: tuple[tuple[float, float], ...] = ()
    """When the last one was at each level, and the interval planned there."""

    def lateness(self, now: float) -> float:
        """The time since the last one as a multiple of what was planned: the largest is read first, so that all
        intervals stretch by the same factor where the budget is too small."""
        own = ((self.since, self.at - self.since),)
        return max((now - since) / max(interval, 1e-3) for since, interval in self.levels or own)


NEVER = Due(Level.HOT, math.inf, 0.0)


def order(due: Due) -> tuple[float, int]:
    """The earliest first; of those at one time the one that covers most."""
    return due.at, -due.level


def at_level(due: Due, level: Level) -> Due:
    """The same reading at another level."""
    return replace(due, level=level)


def not_before(due: Due, at: float) -> Due:
    """The same reading, not before this time."""
    return due if due.at >= at else replace(due, at=at)
