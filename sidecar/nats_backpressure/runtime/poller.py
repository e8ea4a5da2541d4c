"""Reads JetStream by plan: one loop lists the streams, another one starts the readings that are due, each as a task.

What is due is decided in `runtime.reading_schedule` and `core.reading`. At most one list and one reading of single
consumers are under way for each stream, so that a reading that hangs delays no other stream.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

import structlog

from nats_backpressure.core import watch_filter
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.reading.budget import Budget, Level, RequestBudget
from nats_backpressure.core.reading.server_time import ServerTime
from nats_backpressure.core.reading.sharing import ALL_STREAMS
from nats_backpressure.core.reading.stream_plan import StreamPlan
from nats_backpressure.core.subject.record import Record
from nats_backpressure.runtime.followed_streams import FollowedStream
from nats_backpressure.runtime.intake import Intake
from nats_backpressure.runtime.observations import (
    ApiLimited,
    ConsumerChanged,
    Hint,
    Received,
    StreamChanged,
    StreamsReading,
)
from nats_backpressure.runtime.ports import Clock, Observer
from nats_backpressure.runtime.reading_rounds import ReadingRounds
from nats_backpressure.runtime.reading_schedule import ReadingSchedule
from nats_backpressure.runtime.received_readings import ReceivedReadings
from nats_backpressure.runtime.shared_reading import SharedReading
from nats_backpressure.runtime.stream_looks import DISCOVER_EVERY, StreamLooks
from nats_backpressure.runtime.stream_poll import StreamPoll
from nats_backpressure.runtime.stream_readings import StreamReadings
from nats_backpressure.runtime.tasks import Once

log = structlog.get_logger()

MAX_STORED_STREAMS = 100
"""Streams followed at a time that only the store knows; each takes two answers to be found gone."""


class Poller:
    """Follows every watched stream, and writes down in the registry which these are."""

    def __init__(
        self,
        observer: Observer,
        clock: Clock,
        intake: Intake,
        budget: Budget,
        *,
        stale_after: float,
        count: Callable[[str], None],
        on_streams: Callable[[StreamsReading], None],
        on_read: Callable[[float], None],
        on_list: Callable[[Sequence[StreamLook], float], None] = lambda looks, asked_at: None,
        discover_every: float = DISCOVER_EVERY,
        requests: RequestBudget | None = None,
        shared: SharedReading | None = None,
        on_received: Callable[[Received], None] = lambda received: None,
        server_time: ServerTime | None = None,
    ) -> None:
        """`on_streams` gets a list of streams every `discover_every` seconds, and when there are others; `on_list` each
        one. `requests`: what the observer may still request; without it all that is due begins at once. `shared`: which
        streams other replicas read; without it this one reads all. `on_received` gets the readings of others
        that are taken in; `server_time` gets what lists show of it."""
        self._clock, self._budget, self._intake, self._registry = clock, budget, intake, intake.registry
        self._on_streams, self._on_list, self._on_received = on_streams, on_list, on_received
        self.shared = shared or SharedReading(clock, "", 0.0)
        self._discover_every, self._discovered_at = discover_every, -math.inf
        self._listed: frozenset[str] = frozenset()
        self._logged = Once()
        self.looks = StreamLooks(
            observer,
            clock,
            budget,
            discover_every,
            count,
            self._take_list,
            self._take_look,
            self.shared,
            server_time or ServerTime(),
        )
        self.schedule = ReadingSchedule(clock, self._registry.streams, budget, self.looks, self.shared, requests)
        self.polls = self.schedule.polls
        self.rounds = ReadingRounds(self._registry, clock, stale_after, budget.max_interval, self.schedule.read_all)
        self.complete = self.rounds.complete
        self.readings = StreamReadings(
            observer, clock, intake, self.schedule, self.rounds, self.shared, count=count, on_read=on_read
        )
        self._received = ReceivedReadings(self.readings, self.rounds, self.shared, self.schedule)
        self.shared.on_silent = self.leave
        self.shared.look_of = lambda stream: poll.plan.crossings.look if (poll := self.polls.get(stream)) else None
        self._registry.on_attention = self.schedule.attend

    async def run(self) -> None:
        """Look and read until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self.readings.tasks = self.rounds.tasks = tasks
            try:
                await self._run(tasks)
            finally:  # before the tasks end: what is received meanwhile starts none
                self.readings.tasks = self.rounds.tasks = None

    async def _run(self, tasks: asyncio.TaskGroup) -> None:
        tasks.create_task(self.looks.list_when_due(), name="list streams")
        while True:
            self.schedule.wake.clear()
            self.looks.start_singles([poll for poll in self.polls.values() if poll.stream.under], tasks)
            self.schedule.weigh()
            await self._start_due(tasks)
            await self.schedule.sleep(until=self.looks.next_single())

    async def _start_due(self, tasks: asyncio.TaskGroup) -> None:
        """Start what is most late, as long as the budget allows it."""
        while (started := self.schedule.start_most_late()) is not None:
            poll, names = started
            if names:
                tasks.create_task(self.readings.read_some(poll, names), name=f"read some of {poll.name}")
            else:
                tasks.create_task(self.readings.list(poll), name=f"list {poll.name}")
            await self._clock.sleep(0)  # it takes its turn in the budget

    # Streams

    def _take_list(self, reading: StreamsReading, at: float, asked_at: float) -> None:
        self._on_list(reading.looks, asked_at)
        names = frozenset(look.name for look in reading.looks)
        if at - self._discovered_at >= self._discover_every or names != self._listed:
            self._discovered_at, self._listed = at, names
            self._on_streams(reading)
            self.discover(reading)
        if reading.complete:
            for name in self.polls.keys() - names:  # reading it shows whether it is gone
                self.schedule.hasten(self.polls[name], Level.HOT)
        for look in reading.looks:
            if look.name in self.polls:
                self._take_look(look.name, look, at)
        self.rounds.was_read(at)

    def discover(self, reading: StreamsReading) -> list[StreamPoll]:
        """Take in a list of streams; returns those that are new, each to be followed."""
        for mirror in self._registry.streams.take_subjects(reading.looks, reading.complete):
            if (poll := self.polls.get(mirror.look.name)) is not None:
                self.schedule.hasten(poll, Level.HOT)
        self._registry.streams.listed = self._registry.streams.listed or reading.complete
        now = self._clock.mono()
        new = [
            StreamPoll(stream, StreamPlan(self._budget, now, self._is_consumed(stream.look)))
            for stream in self._new(reading)
        ]
        for poll in new:
            poll.stream.plan = poll.plan
        self.polls.update((poll.name, poll) for poll in new)
        self._registry.streams |= {poll.name: poll.stream for poll in new}
        self.rounds.listed({poll.name for poll in new})
        for poll in new:
            self.schedule.plan(poll)
        self.rounds.tried()
        return new

    def _is_consumed(self, look: StreamLook) -> bool:
        return look.consumers > 0 or bool(self._registry.members.of_stream(look.name))

    def _new(self, reading: StreamsReading) -> list[FollowedStream]:
        listed = {look.name: look for look in reading.looks}
        for entry in self._intake.watch:
            exists = "*" in entry.stream or entry.stream in listed
            if reading.complete and not exists and self._logged.first(entry):
                log.warning(
                    "watch.stream_missing", stream=entry.stream, hint="it is awaited; check `watch` in the config"
                )
        now = self._clock.mono()
        streams = {name: FollowedStream(look, now) for name, look in listed.items() if self._intake.watches(name)}
        # A stream of which members are stored is followed too: that is how they are found not to count any more.
        for name in sorted(self._registry.members.streams() - streams.keys())[:MAX_STORED_STREAMS]:
            look = listed.get(name) or StreamLook(name, "", 0, 0, 0)
            streams[name] = FollowedStream(look, now, watched=self._intake.watches(name))
        return [stream for name, stream in streams.items() if name not in self.polls]

    def _take_look(self, name: str, look: StreamLook, at: float) -> None:
        """A look at a stream was answered. It is not used for samples whose own look is newer."""
        if (poll := self.polls.get(name)) is None:
            return
        stream, plan = poll.stream, poll.plan
        if self.shared.receives(ALL_STREAMS) and plan.crossings.is_older(look, at):
            return
        before, planned = stream.look, (plan.woken, len(plan.crossings.idle))
        crossed = plan.add_look(look, at)
        if plan.crossings.began and not crossed:
            self.looks.plan.look_soon(self._clock.mono())
        if not poll.evaluating and look.created == before.created and look.last_seq >= before.last_seq:
            stream.look = look
        self.rounds.was_read(at)
        if crossed or planned != (plan.woken, len(plan.crossings.idle)):
            self.schedule.plan(poll)
        stream.next = min(poll.planned.at, self.looks.next())

    # What others read

    def receive(self, received: Received) -> bool:
        """Another replica read something: it is taken in like an own reading, which it postpones. Returns whether it
        is."""
        if self.readings.tasks is None or not self.shared.believes():
            return False
        if isinstance(received.shown, StreamsReading):
            taken = self.looks.receive(received, received.shown)
        else:
            poll = self.polls.get(received.stream)
            taken = poll is not None and self._received.receive(poll, received)
        if taken:
            self._on_received(received)
        return taken

    def leave(self, sender: str) -> None:
        """Another replica stops: what it read is due here, or elsewhere, at once."""
        for name in self.shared.leave(sender):
            if (poll := self.polls.get(name)) is not None:
                self.schedule.plan(poll)
            else:
                self.looks.wake()
                self.schedule.wake.set()

    # What wakes

    def take_stored(self, record: Record) -> None:
        """See `Intake.take_stored`."""
        self._intake.take_stored(record)

    def hint(self, hint: Hint) -> None:
        """An advisory or ack metric came: it may hasten a reading, and never decides alone."""
        match hint:
            case StreamChanged():
                self.looks.hurry()
            case ConsumerChanged():
                poll = self.polls.get(hint.key.stream)
                known = poll is not None and hint.key in poll.stream.under
                watched = watch_filter.is_name_watched(hint.key, self._intake.watch, self._intake.ours)
                if poll is not None and (known or (watched and hint.what != "deleted")):
                    self.schedule.hasten(poll, Level.HOT)
            case ApiLimited():
                self.schedule.limit()
            case _:
                self._intake.hint(hint, self._clock.now())
