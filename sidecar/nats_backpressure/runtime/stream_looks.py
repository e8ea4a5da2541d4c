"""Looks at the streams as `core.reading.look_plan` plans it, and takes in the looks of other replicas."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection
from typing import Protocol

import structlog

from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.reading.budget import Budget, Level
from nats_backpressure.core.reading.look_plan import LookPlan
from nats_backpressure.core.reading.server_time import ServerTime
from nats_backpressure.core.reading.sharing import ALL_STREAMS, LISTS, LOOKS
from nats_backpressure.core.reading.stream_plan import SLOW_LIST
from nats_backpressure.runtime.observations import Received, StreamGone, StreamsReading, Unavailable, answer_time
from nats_backpressure.runtime.ports import Clock, Observer
from nats_backpressure.runtime.shared_reading import SharedReading

log = structlog.get_logger()

DISCOVER_EVERY = 1.0
"""Seconds between two uses of the list of streams for what else it shows: new streams, and our own resources."""
LATE = 0.3
"""Seconds by which a list of another replica may have been asked for earlier than it seems: a message takes as long."""
SHORTEST_SLEEP = 0.001
"""Seconds for which a loop of the poller sleeps at least."""


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
        self._observer, self._clock, self._budget = observer, clock, budget
        self._count, self._on_list, self._on_look = count, on_list, on_look
        self._shared, self._server_time = shared, server_time
        self.plan = LookPlan(budget, discover_every)
        self._listing_since = math.inf
        self._newest_list = -math.inf
        """When the newest list that was taken in was asked for: one that was asked for before it shows less."""
        self._shown: dict[str, float] = {}
        """Streams that other replicas looked at one by one since all watched ones were shown, and when they asked."""
        self._wake = asyncio.Event()
        self._watched: Collection[Looked] = ()

    def next(self) -> float:
        """Monotonic time at which the next look is due."""
        listing = self._listing_since < math.inf
        return min(math.inf if listing else self._next_list(), self.next_single())

    def _next_list(self) -> float:
        return self._due_list()[0]

    def _due_list(self) -> tuple[float, Level]:
        """When the next list begins, and what for: to look at the watched streams, or to show the others."""
        looks = self._list_starts_at(LOOKS) if self.plan.by_lists else math.inf
        return min((looks, LOOKS), (self._list_starts_at(LISTS), LISTS))

    def _list_starts_at(self, level: Level) -> float:
        plan, every = self.plan, self.plan.every(level)
        return self._shared.starts_at(ALL_STREAMS, level, plan.list_due_at(level, every), every, plan.list_took)

    def next_single(self) -> float:
        """Monotonic time at which looks one by one may be due: also when a list begins to hang."""
        slow_at = self._listing_since + SLOW_LIST
        return min(slow_at if self._clock.mono() < slow_at else math.inf, self._next_single())

    def _next_single(self) -> float:
        plan, due_at = self.plan, self.plan.look_due_at()
        if due_at == math.inf:
            return math.inf
        return self._shared.starts_at(ALL_STREAMS, LOOKS, due_at, plan.look_every, plan.look_took)

    def hurry(self) -> None:
        """The streams changed: list them as soon as may be."""
        self.plan.hurry(self._clock.mono())
        self._wake.set()

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
        now, before = self._clock.mono(), self.plan.list_every
        self._watched = watched
        self._make_plan(now)
        if self.plan.list_every < before:
            self._wake.set()
        if now < self._next_single():
            return
        self.plan.start_looks(now)
        self._shown.clear()
        self._shared.start(ALL_STREAMS, LOOKS, Level.QUIET, self.plan.look_every)
        self._clock.end_sleeps()
        for stream in watched:
            if not stream.looking and now >= stream.look_after:
                stream.looking = True
                tasks.create_task(self._look(stream), name=f"look at {stream.name}")

    def _make_plan(self, now: float) -> None:
        self.plan.make(len(self._watched), list_hangs=now - self._listing_since >= SLOW_LIST)

    async def _list(self, level: Level) -> None:
        self._shared.start(ALL_STREAMS, level, LISTS, self.plan.every(level))
        asked_at = self._listing_since = self._clock.mono()
        self.plan.start_list(asked_at)
        try:
            reading = await self._observer.streams()
        except Unavailable as error:
            self._count("sweep_unavailable")
            log.debug("streams.unavailable", error=str(error))
            self._shared.end(ALL_STREAMS, LISTS, failed=True)
            self.plan.fail_list()
        else:
            self._shared.end(ALL_STREAMS, LISTS, failed=False)
            self.plan.finish_list(len(reading.looks), reading.took, reading.trip)
            came_at = self._clock.mono()
            self._take_time(reading, asked_at, came_at)
            self._take_list(reading, asked_at, answer_time(asked_at, came_at, reading.took))
        finally:
            self._listing_since = math.inf
        self._make_plan(self._clock.mono())

    def _take_time(self, reading: StreamsReading, asked_at: float, came_at: float) -> None:
        if reading.server_time is not None:
            self._server_time.add(reading.server_time, asked_at, came_at)

    def _take_list(self, reading: StreamsReading, asked_at: float, answered_at: float, late: float = 0.0) -> None:
        if asked_at >= self._newest_list:
            self._newest_list = asked_at
            self._shown.clear()
            self._on_list(reading, answered_at, asked_at - late)

    def receive(self, received: Received, reading: StreamsReading) -> bool:
        """Another replica looked at the streams; returns whether that is taken in."""
        return self._receive_look(received, reading) if reading.partial else self._receive_list(received, reading)

    def _receive_list(self, received: Received, reading: StreamsReading) -> bool:
        if received.asked_at <= self._newest_list or not self._shared.receive(received, tuple(Level)):
            return False
        self.plan.receive_list(received.asked_at, len(reading.looks), reading.took, reading.trip)
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
        self.plan.look_took = reading.took
        if looked_at is not None:
            self._shown.clear()
            self.plan.receive_looks(looked_at)
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

    async def _look(self, stream: Looked) -> None:
        asked_at = self._clock.mono()
        try:
            reading = await self._observer.stream(stream.name)
        except (Unavailable, StreamGone) as error:
            log.debug("stream.unavailable", stream=stream.name, error=str(error))
            stream.look_retry = min(self._budget.max_interval, max(2 * stream.look_retry, self._budget.min_interval))
            stream.look_after = self._clock.mono() + stream.look_retry
        else:
            stream.look_retry = 0.0
            self.plan.finish_look(reading.took, reading.trip)
            for look in reading.looks:
                self._on_look(stream.name, look, answer_time(asked_at, self._clock.mono(), reading.took))
        finally:
            stream.looking = False
