"""The times in which nobody looked at a consumer: the server was away, or the sidecar stood still. While the server is
away nobody can pull or acknowledge: the time is no evidence against the workers, and counts for nothing."""

from __future__ import annotations

import math

SHORTEST = 2.0
"""Seconds between two samples up to which they are as usual."""
UNUSUAL = 2.0
"""Times as long as usual that an outage takes at least: where all samples are rare, none is missing."""
RECONNECT = 3.0
"""Seconds after an outage in which a worker that has done nothing yet may still be on its way: clients of NATS try to
connect every two seconds."""
REMEMBERED = 4
"""Outages of one consumer; the oldest goes, and counts as seen then."""


class Outages:
    """The last outages of one consumer. All times are monotonic, in seconds."""

    __slots__ = ("_all", "_seen_at", "_usual")

    def __init__(self) -> None:
        self._all: tuple[tuple[float, float], ...] = ()
        self._seen_at = -math.inf
        """When the first sample after the last outage came."""
        self._usual = 0.0
        """The longest time between two samples lately; half as long after each one."""

    @property
    def ended_at(self) -> float:
        """When the last one was over."""
        return self._all[-1][1] if self._all else -math.inf

    def add_interval(self, since: float, until: float, moved: bool) -> bool:
        """Whether the time between two samples belongs to an outage; `moved`: whether a worker did something in it."""
        begins, time = self.may_be_outage(since, until), until - since
        self._usual = max(time, self._usual / 2)
        if begins:
            self._all, self._seen_at = (*self._all[1 - REMEMBERED :], (since, until)), until
            return True
        if since == self.ended_at and not moved and until - self._seen_at <= RECONNECT:
            self._all = (*self._all[:-1], (self._all[-1][0], until))
            return True
        return False

    def may_be_outage(self, since: float, until: float) -> bool:
        """Whether it is unusual that no sample came for so long."""
        return until - since > max(SHORTEST, UNUSUAL * self._usual)

    def seen(self, since: float, until: float) -> float:
        """Seconds from the one to the other, without the outages between them."""
        return until - since - self.unseen(since, until)

    def unseen(self, since: float, until: float) -> float:
        """Seconds of outages between the two."""
        return sum(max(0.0, min(until, end) - max(since, start)) for start, end in self._all)
