"""The times in which nobody looked at a consumer: the server was away, or the sidecar stood still. While the server is
away nobody can pull or acknowledge: the time is no evidence against the workers, and counts for nothing."""

from __future__ import annotations

import math

SHORTEST = 2.0
"""Seconds between two samples up to which they are as usual."""
FADES = 10.0
"""Seconds in which what was usual is forgotten by half."""
UNUSUAL = 2.0
"""Times as long as usual and as planned that an outage takes at least: where all samples are rare, none is missing."""
RECONNECT = 3.0
"""Seconds after an outage in which a worker that has done nothing yet may still be on its way: clients of NATS try to
connect every two seconds."""
LATE = 5.0
"""Seconds by which the first reply after an outage may have come later than it seems: it waited for the server, and
counts as old as it may be. What follows it at once belongs to the outage too."""
APART = 30.0
"""Seconds from the end of an outage to that of the next one after which workers get this time again: where a machine
stands still every few seconds, those that hang are found nevertheless."""
REMEMBERED = 4
"""Outages of one consumer; the oldest goes, and counts as seen then."""


class Outages:
    """The last outages of one consumer. All times are monotonic, in seconds."""

    __slots__ = ("_all", "_back_at", "_connected_by", "_usual", "ended_at", "planned")

    def __init__(self) -> None:
        self._all: tuple[tuple[float, float], ...] = ()
        self.planned = 0.0
        """Seconds between two samples, as planned now."""
        self._usual = SHORTEST
        """The longest time between two samples lately."""
        self._back_at = self._connected_by = self.ended_at = -math.inf
        """Of the last one after which workers had time to connect: the first sample, the end of that time, and when
        both were over."""

    def add_interval(self, since: float, until: float, moved: bool) -> bool:
        """Whether the time between two samples belongs to an outage; `moved`: whether a worker did something in it."""
        time, longest = max(0.0, until - since), self._longest
        # A single long outage makes no habit: the next one is an outage as well.
        self._usual = max(min(time, 2 * longest), self._usual * 0.5 ** (time / FADES))
        late = since == self._back_at and self._shortest < time <= LATE
        if time > longest and not late:
            self._all = (*self._all[1 - REMEMBERED :], (since, until))
            if until - self._back_at >= APART:
                self._back_at = self.ended_at = until
                self._connected_by = until + RECONNECT
        elif late or (since == self.ended_at and not moved and until <= self._connected_by):
            self._all = (*self._all[:-1], (self._all[-1][0], until))
            self.ended_at = until
            self._connected_by = until + RECONNECT if late else self._connected_by
        else:
            return False
        return True

    def may_be_outage(self, since: float, until: float) -> bool:
        """Whether it is unusual that no sample came for so long."""
        return until - since > self._longest

    @property
    def _shortest(self) -> float:
        """Seconds between two samples up to which the later one came as planned."""
        return max(SHORTEST, UNUSUAL * self.planned)

    @property
    def _longest(self) -> float:
        """Seconds between two samples up to which nobody was away."""
        return max(self._shortest, UNUSUAL * self._usual)

    def seen(self, since: float, until: float) -> float:
        """Seconds from the one to the other, without the outages between them."""
        return until - since - self.unseen(since, until)

    def unseen(self, since: float, until: float) -> float:
        """Seconds of outages between the two."""
        return sum(max(0.0, min(until, end) - max(since, start)) for start, end in self._all)
