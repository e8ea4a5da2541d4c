"""Reads JetStream by plan: one loop lists the streams, another one starts the readings that are due, each as a task.

What is due is decided in `core.reading`. At most one list and one reading of single consumers are under way for each
stream, so that a reading that hangs delays no other stream.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence

import structlog

from nats_backpressure.core import watch_filter
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.reading.budget import Budget, Level, RequestBudget
from nats_backpressure.core.reading.due import NEVER, Due, at_level, not_before, order
from nats_backpressure.core.reading.load import LIMITED_FACTOR, LIMITED_FOR, Load, load_of, own_rate
from nats_backpressure.core.reading.server_time import ServerTime
from nats_backpressure.core.reading.sharing import ALL_STREAMS
from nats_backpressure.core.reading.stream_plan import SINGLES_LIMIT, SLOW_LIST, StreamPlan
from nats_backpressure.core.subject.record import Record
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.due_queue import DueQueue
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
from nats_backpressure.runtime.received_readings import ReceivedReadings
from nats_backpressure.runtime.shared_reading import SharedReading
from nats_backpressure.runtime.stream_looks import DISCOVER_EVERY, SHORTEST_SLEEP, StreamLooks
from nats_backpressure.runtime.stream_poll import StreamPoll
from nats_backpressure.runtime.stream_readings import StreamReadings
from nats_backpressure.runtime.stretch_report import StretchReport
from nats_backpressure.runtime.tasks import Once

log = structlog.get_logger()

MAX_STORED_STREAMS = 100
"""Streams followed at a time that only the store knows; each takes two answers to be found gone."""
WEIGH_EVERY = 1.0
"""Seconds between two computations of the load that all plans together are."""
WEIGH_SOON = 0.1
"""The same once another stream is read by this replica."""


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
        on_received: Callable[[str], None] = lambda stream: None,
        server_time: ServerTime | None = None,
    ) -> None:
        """`on_streams` gets a list of streams every `discover_every` seconds, and when there are others; `on_list` each
        one. `requests`: what the observer may still request; without it all that is due begins at once. `shared`: which
        streams other replicas read; without it this one reads all. `on_received` counts readings of others, by
        stream; `server_time` gets what lists show of it."""
        self._observer, self._clock, self._budget, self._stale_after = observer, clock, budget, stale_after
        self._intake, self._registry, self._requests = intake, intake.registry, requests
        self._on_streams, self._on_list, self._on_received = on_streams, on_list, on_received
        self.shared = shared or SharedReading(clock, "", 0.0)
        self.polls: dict[str, StreamPoll] = {}
        self.load = Load()
        self._discover_every = discover_every
        self._logged = Once()
        self._wake, self._sleeps_until = asyncio.Event(), -math.inf
        self._due = DueQueue(self.polls)
        self._weighed_at = self._discovered_at = -math.inf
        self._listed: frozenset[str] = frozenset()
        self._stretch = StretchReport()
        self._limited_until = -math.inf
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
        self.rounds = ReadingRounds(self._registry, clock, stale_after, self._outage, self._read_all)
        self.complete = self.rounds.complete
        self.readings = StreamReadings(
            observer,
            clock,
            intake,
            self.polls,
            self.rounds,
            count=count,
            on_read=on_read,
            replan=self._plan,
            shared=self.shared,
        )
        self._received = ReceivedReadings(self.readings, self.rounds, self.shared, self._plan)
        self.shared.on_silent = self.leave
        self.shared.look_of = lambda stream: poll.plan.crossings.look if (poll := self.polls.get(stream)) else None
        self._registry.on_attention = self._attend

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
            self._wake.clear()
            self.looks.start_singles([poll for poll in self.polls.values() if poll.stream.under], tasks)
            self._weigh()
            await self._start_due(tasks)
            until = min(self.looks.next_single(), self._next_start(), self._weighed_at + WEIGH_EVERY)
            await self._sleep_until(until)

    async def _sleep_until(self, at: float) -> None:
        """Until then, or until something else is due earlier."""
        self._sleeps_until = at
        await self._clock.wait(self._wake, max(SHORTEST_SLEEP, at - self._clock.mono()))
        self._sleeps_until = -math.inf

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
                self._hasten(self.polls[name], Level.HOT)
        for look in reading.looks:
            if look.name in self.polls:
                self._take_look(look.name, look, at)
        self.rounds.was_read(at)

    def discover(self, reading: StreamsReading) -> list[StreamPoll]:
        """Take in a list of streams; returns those that are new, each to be followed."""
        for mirror in self._registry.streams.take_subjects(reading.looks, reading.complete):
            if (poll := self.polls.get(mirror.look.name)) is not None:
                self._hasten(poll, Level.HOT)
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
            self._plan(poll)
        self.rounds.tried()
        return new

    def _is_consumed(self, look: StreamLook) -> bool:
        return look.consumers > 0 or bool(self._registry.members(look.name))

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
        for name in sorted(self._registry.member_streams() - streams.keys())[:MAX_STORED_STREAMS]:
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
            self._plan(poll)
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
            self._on_received(received.stream)
        return taken

    def leave(self, sender: str) -> None:
        """Another replica stops: what it read is due here, or elsewhere, at once."""
        for name in self.shared.leave(sender):
            if (poll := self.polls.get(name)) is not None:
                self._plan(poll)
            else:
                self.looks.wake()
                self._wake.set()

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
                    self._hasten(poll, Level.HOT)
            case ApiLimited():
                self._limited_until = self._clock.mono() + LIMITED_FOR
                self._weighed_at = -math.inf
                self._wake.set()
            case _:
                self._intake.hint(hint, self._clock.now())

    def _hasten(self, poll: StreamPoll, level: Level) -> None:
        """List a stream once after the interval of this level."""
        before = poll.plan.woken
        poll.plan.wake(level, self._clock.mono())
        if poll.plan.woken is not before:
            self._plan(poll)

    def _attend(self, keys: Iterable[ConsumerKey]) -> None:
        """Something else than a sample moved these consumers: their policy, or what is stored of them."""
        now = self._clock.mono()
        for key in keys:
            if (poll := self.polls.get(key.stream)) is not None and poll.plan.heat([key], now):
                self._plan(poll)

    def _read_all(self) -> None:
        for poll in self.polls.values():
            poll.plan.retry = 0.0
            poll.plan.wake(Level.HOT, self._clock.mono())
            self._plan(poll)

    # The schedule

    def _plan(self, poll: StreamPoll) -> None:
        """Put the next reading of a stream into the queue."""
        if self.polls.get(poll.name) is not poll:
            return
        plan, listing = poll.plan, poll.listing_since < math.inf
        dues = [] if poll.reading else plan.dues(self.load, listing)
        if listing and not plan.slow:
            dues = [not_before(due, poll.listing_since + SLOW_LIST) for due in dues]
        poll.planned = min(dues, key=order, default=NEVER)
        poll.due = min((not_before(due, self._starts_at(poll, due)) for due in dues), key=order, default=NEVER)
        poll.stream.interval = poll.plan.proof_interval(self.load)
        poll.stream.next = min(poll.planned.at, self.looks.next())
        self._due.plan(poll)
        if poll.due.at < self._sleeps_until:
            self._wake.set()

    def _starts_at(self, poll: StreamPoll, due: Due) -> float:
        """When this replica starts a reading, unless it receives one before."""
        interval = poll.plan.interval(due.level, self.load)
        return self.shared.starts_at(poll.name, due.level, due.at, interval, poll.plan.took(due.level))

    async def _start_due(self, tasks: asyncio.TaskGroup) -> None:
        """Start what is most late, as long as the budget allows it."""
        while True:
            now = self._clock.mono()
            self._due.collect(now)
            if self._ready_in(now) > 0 or (poll := self._due.most_late(now)) is None:
                return
            self._start(poll, poll.due, now, tasks)
            await self._clock.sleep(0)  # it takes its turn in the budget

    def _ready_in(self, now: float) -> float:
        return 0.0 if self._requests is None else self._requests.ready_in(now)

    def _next_start(self) -> float:
        now = self._clock.mono()
        return now + self._ready_in(now) if self._due.is_late else self._due.next_at()

    def _start(self, poll: StreamPoll, due: Due, now: float, tasks: asyncio.TaskGroup) -> None:
        plan, listing = poll.plan, poll.listing_since < math.inf
        n = 0 if plan.retry else plan.singles(due.level)
        n = n or (min(SINGLES_LIMIT, len(plan.crossings.consumers)) if listing else 0)
        names = plan.names(due.level, n) if n else ()
        every = plan.interval(due.level, self.load) * self.load.stretch
        if not self.shared.reads(poll.name):  # its requests are ours from now on
            self._weighed_at = min(self._weighed_at, now - WEIGH_EVERY + WEIGH_SOON)
        self.shared.start(poll.name, due.level, due.level if names else Level.ALL, every)
        plan.start(due if names else at_level(due, Level.ALL), now, self.load)
        if names:
            poll.reading = True
            tasks.create_task(self.readings.read_some(poll, names), name=f"read some of {poll.name}")
        else:
            poll.listing_since = now
            tasks.create_task(self.readings.list(poll), name=f"list {poll.name}")
        self._plan(poll)

    def _weigh(self) -> None:
        """Compute how far the plans fit into the budget, and log once that they do not."""
        now = self._clock.mono()
        if now - self._weighed_at < WEIGH_EVERY:
            return
        self._weighed_at, before = now, self.load
        factor = LIMITED_FACTOR if now < self._limited_until else 1.0
        plans = [poll.plan for poll in self.polls.values()]
        self.load = load_of(plans, self._budget, self.looks.plan.requests_per_second, self.looks.plan.reached, factor)
        self._share_requests(now)
        streams = self._registry.streams
        streams.stretch = self.load.stretch
        waiting = [plan.proof_interval(self.load) for plan in plans if not plan.answered and not plan.retry]
        streams.first_readings = max([streams.first_readings, *waiting]) if waiting else 0.0
        replan = (before.factor, before.empty_interval) != (self.load.factor, self.load.empty_interval)
        for poll in self.polls.values():
            idle = len(poll.plan.crossings.idle)
            poll.plan.expire(now, self.load.stretch)
            poll.stream.interval = poll.plan.proof_interval(self.load)
            if replan or len(poll.plan.crossings.idle) != idle:
                self._plan(poll)
        self._stretch.report(self.load.stretch, len(self.polls), now)

    def _share_requests(self, now: float) -> None:
        """The requests are those of all replicas together: this one has its share of them."""
        if self._requests is None:
            return
        plans = [poll.plan for poll in self.polls.values()]
        own = [poll.plan for poll in self.polls.values() if not self.shared.receives(poll.name)]
        looks = self.looks.plan.requests_per_second
        own_looks = 0.0 if self.shared.receives(ALL_STREAMS) else looks
        self._requests.set_rate(own_rate(self.load, own, plans, (own_looks, looks), self._budget), now)

    def _outage(self) -> float:
        """Seconds without a reading of any stream that are an outage of all."""
        intervals = [stream.interval for stream in self._registry.streams.values() if stream.under]
        return max(self._stale_after, 3 * min(intervals, default=self._budget.max_interval))
