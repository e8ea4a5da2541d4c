"""LookPlan: how and when the streams are looked at next, by the list of all or by one request for each watched one."""

from __future__ import annotations

import math

from nats_backpressure.core.reading.budget import Budget, Level
from nats_backpressure.core.reading.sharing import LISTS, LOOKS
from nats_backpressure.core.reading.stream_plan import PAGE, SLOW_LIST

INFO_SECONDS = 1e-4
"""Server time of STREAM.INFO, until it was measured."""
SECOND_LOOK, SECOND_LOOKS_EVERY = 0.03, 1.0
"""Seconds from a look that showed the first messages of what may be a burst, half of which may be on its way, to one
more; and between two of these."""
SMOOTH = 0.1
"""The weight of a new measurement of what a look costs."""


class LookPlan:
    """Plans from what lists and looks took lately, and when they were; times are monotonic. A list is due to look at
    the watched streams (LOOKS), or to show the others (LISTS)."""

    def __init__(self, budget: Budget, discover_every: float) -> None:
        self._budget, self._discover_every = budget, discover_every
        self.by_lists = self.singly = False
        """How the watched streams are looked at; neither while none is watched."""
        self.requests_per_second = 0.0
        """What looks take now."""
        self.reached = budget.min_interval
        """Seconds between two looks at a stream, as it was lately; an outage does not count."""
        self.list_every, self.look_every = 0.0, math.inf
        self.list_took = self.look_took = 0.0
        """Seconds that the last list took, and the last look at one stream."""
        self._streams, self._list_seconds, self._look_seconds = 0, 0.0, INFO_SECONDS
        self._listed_at = self._looked_at = -math.inf
        self._retry = 0.0
        self._hurried, self._hurried_at = False, -math.inf
        self._soon, self._soon_at = False, -math.inf
        """Whether the next look is a second one, and when that was so last."""

    def make(self, watched: int, list_hangs: bool) -> None:
        """Plan again for so many watched streams."""
        self.singly = watched > 0 and not self._is_list_cheaper(watched, list_hangs)
        self.by_lists = watched > 0 and not self.singly
        self.list_every, self.look_every = self._budget.look_interval(self._pages, self._list_seconds), math.inf
        if not self.by_lists:
            self.list_every = max(self._discover_every, self.list_every)
            self.list_every = self._budget.min_interval if self._hurried else self.list_every
        self.requests_per_second = self._pages / self.list_every
        if self.singly:
            self.look_every = self._budget.look_interval(watched, self._look_seconds)
            self.requests_per_second += watched / self.look_every

    def _is_list_cheaper(self, watched: int, list_hangs: bool) -> bool:
        """Whether the list is cheaper than a look at each watched stream."""
        if self._list_seconds >= SLOW_LIST or list_hangs:
            return False
        singly = self._budget.cost(watched, watched * self._look_seconds)
        listed = self._budget.cost(self._pages, self._list_seconds)
        if self._pages > 1:
            return listed <= singly
        # Beside looks one by one there is a list every `discover_every`, and a request for the bucket of policies.
        beside = (listed + self._budget.cost(1, self._look_seconds)) / max(self._discover_every, 1e-3)
        return listed <= singly + beside * self._budget.look_interval(watched, self._look_seconds)

    @property
    def _pages(self) -> int:
        return max(1, -(-self._streams // PAGE))

    # When

    def every(self, level: Level) -> float:
        """Seconds between two lists for a purpose."""
        return max(self._discover_every, self.list_every) if level is LISTS and self.by_lists else self.list_every

    def list_due_at(self, level: Level, every: float) -> float:
        """When the next list for a purpose is due, where there is one `every` so many seconds."""
        if self._retry:
            return self._listed_at + self._retry
        return self._looked_at + self._soonest(every) if level is LOOKS else self._listed_at + every

    def look_due_at(self) -> float:
        """When looks one by one are due; inf where there are none."""
        return self._looked_at + self._soonest(self.look_every) if self.look_every < math.inf else math.inf

    def _soonest(self, every: float) -> float:
        return min(every, SECOND_LOOK) if self._soon else every

    def hurry(self, now: float) -> None:
        """The streams changed: list them as soon as may be."""
        self._hurried, self._hurried_at = True, now
        self.list_every = min(self.list_every, self._budget.min_interval)

    def look_soon(self, now: float) -> None:
        """The last look may have shown the first half of a burst: one more follows it, where looks are cheap."""
        every = self.list_every if self.by_lists else self.look_every
        if now - self._soon_at >= SECOND_LOOKS_EVERY and every <= self._budget.look_interval(0, 0.0):
            self._soon, self._soon_at = True, now

    # What was done

    def start_list(self, now: float) -> None:
        self._listed_at, self._hurried = now, False
        if not self.singly:
            self.start_looks(now)

    def start_looks(self, now: float) -> None:
        """The watched streams are looked at."""
        if self._looked_at > -math.inf and not self._retry:
            self.reached = max(now - self._looked_at, self.reached / 2)
        self._looked_at, self._soon = now, False

    def fail_list(self) -> None:
        self._retry = min(self._discover_every, max(2 * self._retry, self._budget.min_interval))

    def finish_list(self, streams: int, took: float, trip: float = 0.0) -> None:
        """A list was answered here after `took` seconds, of which the link needed `trip`."""
        self._retry = 0.0
        self._measure_list(streams, took, trip)

    def finish_look(self, took: float, trip: float = 0.0) -> None:
        """A look at one stream was answered, here."""
        self.look_took = took
        self._look_seconds += SMOOTH * (min(took - trip, SLOW_LIST) - self._look_seconds)

    def receive_list(self, asked_at: float, streams: int, took: float, trip: float = 0.0) -> None:
        """Another replica listed the streams."""
        self.receive_looks(asked_at)
        self._listed_at = max(asked_at, self._listed_at)
        self._hurried = self._hurried and asked_at < self._hurried_at
        self._measure_list(streams, took, trip)

    def receive_looks(self, at: float) -> None:
        """Another replica looked at all that is watched here."""
        self._soon = False
        if at > self._looked_at > -math.inf:
            gap = min(at - self._looked_at, self._budget.max_interval)
            self.reached = max(gap, self.reached / 2)
        self._looked_at = max(at, self._looked_at)

    def _measure_list(self, streams: int, took: float, trip: float) -> None:
        self._streams, self.list_took, spent = streams, took, took - trip
        quick = spent < SLOW_LIST and self._list_seconds < SLOW_LIST
        weight = SMOOTH if quick and self._list_seconds else 1.0
        self._list_seconds += weight * (spent - self._list_seconds)
