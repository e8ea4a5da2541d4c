"""Looks at the streams as often as that is worth: by the list of all, or by one request for each watched one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection
from typing import Protocol

import structlog

from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.reading.budget import Budget, Level
from nats_backpressure.core.reading.server_time import ServerTime
from nats_backpressure.core.reading.sharing import ALL_STREAMS, LISTS, LOOKS
from nats_backpressure.core.reading.stream_plan import PAGE, SLOW_LIST
from nats_backpressure.runtime.observations import Received, StreamGone, StreamsReading, Unavailable, answer_time
from nats_backpressure.runtime.ports import Clock, Observer
from nats_backpressure.runtime.shared_reading import SharedReading

log = structlog.get_logger()

DISCOVER_EVERY = 1.0
"""Seconds between two uses of the list of streams for what else it shows: new streams, and our own resources."""
INFO_SECONDS = 1e-4
"""Server time of STREAM.INFO, until it was measured."""
LATE = 0.3
"""Seconds by which a list of another replica may have been asked for earlier than it seems: a message takes as long."""
SECOND_LOOK, SECOND_LOOKS_EVERY = 0.03, 1.0
"""Seconds from a look that showed the first messages of what may be a burst, half of which may be on its way, to one
more; and between two of these."""
SHORTEST_SLEEP = 0.001
"""Seconds for which a loop of the poller sleeps at least."""
SMOOTH = 0.1
"""The weight of a new measurement of what a look costs."""


class Looked(Protocol):
    """A followed stream that is looked at by itself."""

    looking: bool
    """Whether a look is under way."""
    look_retry: float
    """Seconds to wait after a look that failed; 0 after one that was answered."""
    look_after: float
    """Monotonic time before which it is not looked at again."""

    @property
    def name(self) -> str: ...


class StreamLooks:
    """Lists the streams in a loop of its own, and starts looks one by one for the poller: while a list hangs (a node is
    down), or where that is cheaper, each watched stream is looked at by itself.

    The results go to `on_list` and `on_look`, with the monotonic time of the answer; a list also with the time at which
    it was asked for, at the latest.
    """

    def __init__(
        self,
        observer: Observer,
        clock: Clock,
        budget: Budget,
        discover_every: float,
        count: Callable[[str], None],
        on_list: Callable[[StreamsReading, float, float], None],
        on_look: Callable[[str, StreamLook, float], None],
        shared: SharedReading,
        server_time: ServerTime,
    ) -> None:
        self._observer, self._clock, self._budget, self._discover_every = observer, clock, budget, discover_every
        self._count, self._on_list, self._on_look = count, on_list, on_look
        self._shared, self._server_time = shared, server_time
        self.reached = budget.min_interval
        """Seconds between two looks at a stream, as it was lately; an outage does not count."""
        self.requests_per_second = 0.0
        """What looks take now."""
        self._streams, self._list_seconds, self._info_seconds = 0, 0.0, INFO_SECONDS
        self._listed_at = self._looked_at = -math.inf
        self._listing_since = math.inf
        self._retry = 0.0
        self._list_took = self._info_took = 0.0
        """Seconds that the last list took, and the last look at one stream."""
        self._newest_list = -math.inf
        """When the newest list that was taken in was asked for: one that was asked for before it shows less."""
        self._shown: dict[str, float] = {}
        """Streams that other replicas looked at one by one since all watched ones were shown, and when they asked."""
        self._hurried, self._hurried_at = False, -math.inf
        self._soon, self._soon_at = False, -math.inf
        """Whether the next look is a second one, and when that was so last."""
        self._wake = asyncio.Event()
        self._watched: Collection[Looked] = ()
        self._listing_looks = True
        """Whether the watched streams are looked at by lists."""
        self._list_every, self._look_every = 0.0, math.inf

    def next(self) -> float:
        """Monotonic time at which the next look is due."""
        listing = self._listing_since < math.inf
        return min(math.inf if listing else self._next_list(), self.next_single())

    def _next_list(self) -> float:
        return self._due_list()[0]

    def _due_list(self) -> tuple[float, Level]:
        """When the next list begins, and what for: to look at the watched streams, or to show the others."""
        lists = self._list_starts_at(LISTS, self._listed_at)
        looks = self._list_starts_at(LOOKS, self._looked_at) if self._by_lists else math.inf
        return min((looks, LOOKS), (lists, LISTS))

    def _list_starts_at(self, level: Level, since: float) -> float:
        every = self._every(level)
        wait = self._soonest(every) if level is LOOKS else every
        due_at = self._listed_at + self._retry if self._retry else since + wait
        return self._shared.starts_at(ALL_STREAMS, level, due_at, every, self._list_took)

    def _every(self, level: Level) -> float:
        """Seconds between two lists for a purpose."""
        return max(self._discover_every, self._list_every) if level is LISTS and self._by_lists else self._list_every

    @property
    def _by_lists(self) -> bool:
        """Whether lists are the looks at the watched streams."""
        return self._listing_looks and bool(self._watched)

    def next_single(self) -> float:
        """Monotonic time at which looks one by one may be due: also when a list begins to hang."""
        slow_at = self._listing_since + SLOW_LIST
        return min(slow_at if self._clock.mono() < slow_at else math.inf, self._next_single())

    def _next_single(self) -> float:
        if self._look_every == math.inf:
            return math.inf
        due_at = self._looked_at + self._soonest(self._look_every)
        return self._shared.starts_at(ALL_STREAMS, LOOKS, due_at, self._look_every, self._info_took)

    def hurry(self) -> None:
        """The streams changed: list them as soon as may be."""
        self._hurried, self._hurried_at = True, self._clock.mono()
        self._list_every = min(self._list_every, self._budget.min_interval)
        self._wake.set()

    def look_soon(self) -> None:
        """The last look may have shown the first half of a burst: one more follows it, where looks are cheap."""
        now, every = self._clock.mono(), self._list_every if self._by_lists else self._look_every
        if now - self._soon_at >= SECOND_LOOKS_EVERY and every <= self._budget.look_interval(0, 0.0):
            self._soon, self._soon_at = True, now

    def _soonest(self, every: float) -> float:
        return min(every, SECOND_LOOK) if self._soon else every

    def wake(self) -> None:
        """Another replica looks no more: compute again when the next list is due."""
        self._wake.set()

    async def list_when_due(self) -> None:
        """List the streams whenever that is due, until cancelled. At rest this is nearly all that the process does."""
        while True:
            self._wake.clear()
            at, level = self._due_list()
            if (wait := at - self._clock.mono()) > 0:
                await self._clock.wait(self._wake, max(SHORTEST_SLEEP, wait))
            else:
                # What other loops do and send goes with the request, so that the server wakes up for all of it once.
                self._clock.end_sleeps()
                await self._clock.sleep(0)
                await self._list(level)

    def start_singles(self, watched: Collection[Looked], tasks: asyncio.TaskGroup) -> None:
        """Start a look at each of the `watched` streams by itself, if that is due."""
        now, before = self._clock.mono(), self._list_every
        self._watched = watched
        self._plan(now)
        if self._list_every < before:
            self._wake.set()
        if now < self._next_single():
            return
        self._measure(now)
        self._shown.clear()
        self._shared.start(ALL_STREAMS, LOOKS, Level.QUIET, self._look_every)
        self._clock.end_sleeps()
        for stream in watched:
            if not stream.looking and now >= stream.look_after:
                stream.looking = True
                tasks.create_task(self._look(stream), name=f"look at {stream.name}")

    def _by_list(self, watched: int, now: float) -> bool:
        """Whether the list is cheaper than a look at each watched stream."""
        if not watched:
            return True
        if self._list_seconds >= SLOW_LIST or now - self._listing_since >= SLOW_LIST:
            return False
        singly = self._budget.cost(watched, watched * self._info_seconds)
        listed = self._budget.cost(self._pages, self._list_seconds)
        if self._pages > 1:
            return listed <= singly
        # Beside looks one by one there is a list every `discover_every`, and a request for the bucket of policies.
        beside = (listed + self._budget.cost(1, self._info_seconds)) / max(self._discover_every, 1e-3)
        return listed <= singly + beside * self._budget.look_interval(watched, self._info_seconds)

    @property
    def _pages(self) -> int:
        return max(1, -(-self._streams // PAGE))

    def _plan(self, now: float) -> None:
        watched = len(self._watched)
        self._listing_looks = self._by_list(watched, now)
        every = self._budget.look_interval(self._pages, self._list_seconds)
        self._look_every = math.inf
        if self._by_lists:
            self._list_every = every
            self.requests_per_second = self._pages / every
            return
        self._list_every = self._budget.min_interval if self._hurried else max(self._discover_every, every)
        self.requests_per_second = self._pages / self._list_every
        if watched:
            self._look_every = self._budget.look_interval(watched, self._info_seconds)
            self.requests_per_second += watched / self._look_every

    def _measure(self, now: float) -> None:
        """A look begins."""
        if self._looked_at > -math.inf and not self._retry:
            self.reached = max(now - self._looked_at, self.reached / 2)
        self._looked_at, self._soon = now, False

    async def _list(self, level: Level) -> None:
        self._shared.start(ALL_STREAMS, level, LISTS, self._every(level))
        asked_at = self._listed_at = self._listing_since = self._clock.mono()
        if self._listing_looks:
            self._measure(asked_at)
        self._hurried = False
        try:
            reading = await self._observer.streams()
        except Unavailable as error:
            self._count("sweep_unavailable")
            log.debug("streams.unavailable", error=str(error))
            self._shared.end(ALL_STREAMS, LISTS, failed=True)
            self._retry = min(self._discover_every, max(2 * self._retry, self._budget.min_interval))
        else:
            self._retry = 0.0
            self._shared.end(ALL_STREAMS, LISTS, failed=False)
            self._measure_list(reading)
            came_at = self._clock.mono()
            self._take_time(reading, asked_at, came_at)
            self._take_list(reading, asked_at, answer_time(asked_at, came_at, reading.took))
        finally:
            self._listing_since = math.inf
        self._plan(self._clock.mono())

    def _take_time(self, reading: StreamsReading, asked_at: float, came_at: float) -> None:
        if reading.server_time is not None:
            self._server_time.add(reading.server_time, asked_at, came_at)

    def _take_list(self, reading: StreamsReading, asked_at: float, answered_at: float, late: float = 0.0) -> None:
        if asked_at >= self._newest_list:
            self._newest_list = asked_at
            self._shown.clear()
            self._on_list(reading, answered_at, asked_at - late)

    def _measure_list(self, reading: StreamsReading) -> None:
        self._streams, self._list_took = len(reading.looks), reading.took
        quick = reading.took < SLOW_LIST and self._list_seconds < SLOW_LIST
        weight = SMOOTH if quick and self._list_seconds else 1.0
        self._list_seconds += weight * (reading.took - self._list_seconds)

    def receive(self, received: Received, reading: StreamsReading) -> bool:
        """Another replica looked at the streams; returns whether that is taken in."""
        return self._receive_look(received, reading) if reading.partial else self._receive_list(received, reading)

    def _receive_list(self, received: Received, reading: StreamsReading) -> bool:
        if received.asked_at <= self._newest_list or not self._shared.receive(received, tuple(Level)):
            return False
        self._was_looked(received.asked_at)
        self._listed_at = max(received.asked_at, self._listed_at)
        self._hurried = self._hurried and received.asked_at < self._hurried_at
        self._measure_list(reading)
        self._take_time(reading, received.asked_at, received.sent_at)
        answered_at = answer_time(received.asked_at, received.sent_at, reading.took)
        self._take_list(reading, received.asked_at, answered_at, LATE)
        return True

    def _receive_look(self, received: Received, reading: StreamsReading) -> bool:
        """Looks one by one silence this replica once they show all streams that are watched here."""
        self._shown.update((look.name, received.asked_at) for look in reading.looks)
        looked_at = self._all_shown_at()
        if not self._shared.receive(received, () if looked_at is None else (LOOKS, Level.QUIET)):
            return False
        self._info_took = reading.took
        if looked_at is not None:
            self._shown.clear()
            self._was_looked(looked_at)
        for look in reading.looks:
            self._on_look(look.name, look, answer_time(received.asked_at, received.sent_at, reading.took))
        return True

    def _all_shown_at(self) -> float | None:
        """When the first of the looks was asked for that together show each watched stream that can be looked at; None
        where they do not."""
        needed = [stream.name for stream in self._watched if not stream.look_retry]
        if not needed or any(name not in self._shown for name in needed):
            return None
        return min(self._shown[name] for name in needed)

    def _was_looked(self, at: float) -> None:
        """Another replica looked at all that is watched here."""
        self._soon = False
        if at > self._looked_at > -math.inf:
            gap = min(at - self._looked_at, self._budget.max_interval)
            self.reached = max(gap, self.reached / 2)
        self._looked_at = max(at, self._looked_at)

    async def _look(self, stream: Looked) -> None:
        asked_at = self._clock.mono()
        try:
            reading = await self._observer.stream(stream.name)
        except (Unavailable, StreamGone) as error:
            log.debug("stream.unavailable", stream=stream.name, error=str(error))
            stream.look_retry = min(self._budget.max_interval, max(2 * stream.look_retry, self._budget.min_interval))
            stream.look_after = self._clock.mono() + stream.look_retry
        else:
            stream.look_retry, self._info_took = 0.0, reading.took
            self._info_seconds += SMOOTH * (min(reading.took, SLOW_LIST) - self._info_seconds)
            for look in reading.looks:
                self._on_look(stream.name, look, answer_time(asked_at, self._clock.mono(), reading.took))
        finally:
            stream.looking = False
