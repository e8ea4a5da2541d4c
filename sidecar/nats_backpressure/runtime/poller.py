"""The loops that read JetStream: find the streams, and read each at its own pace."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from nats_backpressure.core import read_interval
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.read_interval import Budget
from nats_backpressure.core.subject.membership import GONE_AFTER, NOTHING_READ, ReadState
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.intake import Intake
from nats_backpressure.runtime.observations import (
    ApiLimited,
    ConsumerChanged,
    ConsumerGone,
    ConsumersReading,
    Hint,
    StreamChanged,
    StreamGone,
    StreamsReading,
    Unavailable,
)
from nats_backpressure.runtime.ports import Clock, Observer
from nats_backpressure.runtime.subject_registry import FollowedStream
from nats_backpressure.runtime.tasks import Once, sleep_until

log = structlog.get_logger()

DISCOVER_EVERY = 1.0
"""Seconds between two readings of the list of streams."""
ROUND_WITHIN = 5.0
"""Seconds for reading or trying every stream, at the start and after an outage, before what is known is answered."""
YIELD_EVERY = 50
"""Samples evaluated in one go (some 2 ms); then other tasks, which answer requests, have a turn."""
SHORTEST_SLEEP = 0.001
"""Seconds between two readings of a stream, however late the next one is."""
MAX_SINGLE_READS = 64
"""Members missing from a list that are read one by one after it; the others wait for the next round."""
MAX_STORED_STREAMS = 100
"""Streams followed at a time that only the store knows; each takes two answers to be found gone."""


class StreamPoll:
    """The polling of one followed stream."""

    def __init__(self, stream: FollowedStream) -> None:
        self.stream = stream
        self.silent: frozenset[ConsumerKey] = frozenset()
        """Members of which the last reading showed nothing."""
        self.singly: asyncio.Task[None] | None = None
        """Reads them one by one, beside the list."""
        self.turn = 0
        """Where among them the next round begins."""
        self.retry = 0.0
        """Seconds until the next try while the stream cannot be read; 0 while it can."""
        self.wake = asyncio.Event()

    @property
    def name(self) -> str:
        return self.stream.look.name


class Poller:
    """Follows every watched stream. `complete` is set once each was read or tried, after ROUND_WITHIN at most.

    It writes down in the registry what it follows, and `newest_reading`: at the start, and when readings come again
    after an outage, that waits until each stream was read or tried, because readers take it as proof of all streams.
    """

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
        discover_every: float = DISCOVER_EVERY,
    ) -> None:
        self._observer, self._clock, self._budget, self._stale_after = observer, clock, budget, stale_after
        self._intake, self._registry = intake, intake.registry
        self._count, self._on_streams, self._on_read = count, on_streams, on_read
        self.polls: dict[str, StreamPoll] = {}
        self._discover_every = discover_every
        self._logged = Once()
        self._tasks: asyncio.TaskGroup | None = None
        self._discover = asyncio.Event()
        self._read_at: float | None = None
        self._round = 0
        self._untried: set[str] | None = None
        """Streams of the present round that were not tried in it yet; None while there is no round."""
        self.began_at: float | None = None
        """Monotonic time at which the first list of streams was answered."""
        self._limited_until = 0.0
        self.complete = asyncio.Event()

    async def run(self) -> None:
        """Discover streams until cancelled; each stream has a task of its own, so that none delays another."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            while True:
                self._discover.clear()
                try:
                    reading = await self._observer.streams()
                except Unavailable as error:
                    self._count("sweep_unavailable")
                    log.debug("streams.unavailable", error=str(error))
                else:
                    self._on_streams(reading)
                    for poll in self.discover(reading):
                        tasks.create_task(self._follow(poll), name=f"follow {poll.name}")
                await sleep_until(self._discover, self._clock, self._discover_every)

    def discover(self, reading: StreamsReading) -> list[StreamPoll]:
        """Take in a list of streams; returns those that are new, each to be followed."""
        self._registry.origins = {look.name: look.subjects for look in reading.looks}
        self._registry.listed = self._registry.listed or reading.complete
        if self.began_at is None:
            self.began_at = self._clock.now().mono
            self._begin_round()
        new = [StreamPoll(stream) for stream in self._new(reading)]
        self.polls |= {poll.name: poll for poll in new}
        self._registry.streams |= {poll.name: poll.stream for poll in new}
        if self._untried is not None:
            self._untried |= {poll.name for poll in new}
        if not self.polls:  # only the list can be read
            self._was_read()
        self._tried("")
        return new

    def hint(self, hint: Hint) -> None:
        """An advisory or ack metric came: it may trigger an earlier reading, and never decides alone."""
        now = self._clock.now()
        match hint:
            case StreamChanged():
                self._discover.set()
            case ConsumerChanged():
                if poll := self.polls.get(hint.key.stream):
                    poll.wake.set()
            case ApiLimited():
                self._limited_until = now.mono + read_interval.LIMITED_FOR
            case _:
                self._intake.hint(hint, now)

    def _new(self, reading: StreamsReading) -> list[FollowedStream]:
        listed = {look.name: look for look in reading.looks}
        for entry in self._intake.watch:
            exists = "*" in entry.stream or entry.stream in listed
            if reading.complete and not exists and self._logged.first(entry):
                log.warning(
                    "watch.stream_missing", stream=entry.stream, hint="it is awaited; check `watch` in the config"
                )
        now = self._clock.now().mono
        streams = {name: FollowedStream(look, now) for name, look in listed.items() if self._intake.watches(name)}
        # A stream of which members are stored is followed too: that is how they are found not to count any more.
        for name in sorted(self._registry.member_streams() - streams.keys())[:MAX_STORED_STREAMS]:
            look = listed.get(name) or StreamLook(name, "", 0, 0, 0)
            streams[name] = FollowedStream(look, now, watched=self._intake.watches(name))
        return [stream for name, stream in streams.items() if name not in self.polls]

    async def _follow(self, poll: StreamPoll) -> None:
        """Read one stream again and again, until it is gone for sure."""
        while True:
            poll.wake.clear()
            started = self._clock.now().mono
            if not await self.attempt(poll):
                return
            self._read_silent(poll)
            poll.stream.next = max(self._clock.now().mono, started + (poll.retry or poll.stream.interval))
            left = poll.stream.next - self._clock.now().mono
            await sleep_until(poll.wake, self._clock, max(SHORTEST_SLEEP, left))

    async def attempt(self, poll: StreamPoll) -> bool:
        """Read a stream, or learn that it cannot be read; False once there is nothing left in it to follow."""
        stream, name, done = poll.stream, poll.name, False
        try:
            await self.read(poll)
        except StreamGone:
            poll.retry = GONE_AFTER / 2
            self._intake.remove_uncounted_members(stream, ReadState({}, complete=True))
            done = not self._registry.members(name)
        except Unavailable as error:
            self._count("sweep_unavailable")
            log.debug("consumers.unavailable", stream=name, error=str(error))
            self._intake.remove_uncounted_members(stream, NOTHING_READ)
            poll.retry = min(self._budget.max_interval, max(poll.retry * 2, self._budget.min_interval))
        else:
            poll.retry = 0.0
            done = not stream.watched and not self._registry.members(name)
        if done:
            log.info("stream.gone", stream=name)
            del self.polls[name], self._registry.streams[name]
        self._tried(name)
        return not done

    async def read(self, poll: StreamPoll) -> None:
        """One reading of a stream, and all that follows from it. Raises StreamGone and Unavailable."""
        stream = poll.stream
        reading = await self._observer.consumers(poll.name)
        self._on_read(reading.took)
        self._was_read()
        stream.look, stream.seen = reading.look, True
        members = self._registry.members(poll.name)
        under: dict[ConsumerKey, tuple[str, ...]] = {}
        for n, sample in enumerate(reading.samples, start=1):
            under[sample.key] = self._intake.sample(stream, sample, members.get(sample.key, ()))
            if n % YIELD_EVERY == 0:
                await self._clock.sleep(0)
        stream.whole = reading.whole and not reading.unread
        poll.silent = self._intake.remove_uncounted_members(
            stream, ReadState(under, reading.unread, reading.whole)
        ).unread
        stream.interval = self._interval(stream, reading)

    def _interval(self, stream: FollowedStream, reading: ConsumersReading) -> float:
        """Seconds until the stream is best read again."""
        if not stream.under:
            return self._budget.max_interval
        followed = sum(bool(other.under) for other in self._registry.streams.values())
        requests = 1 + -(-max(1, len(reading.samples)) // 256)
        limited = self._clock.now().mono < self._limited_until
        whole = reading.complete and not reading.missing
        return read_interval.read_interval(self._budget, followed, requests, reading.took, whole, limited)

    def _read_silent(self, poll: StreamPoll) -> None:
        """Read one by one, beside the list, the members it left out: a node is down, or more came meanwhile."""
        if poll.retry or not poll.silent or self._tasks is None or (poll.singly is not None and not poll.singly.done()):
            return
        silent = sorted(poll.silent)
        start = poll.turn % len(silent)
        chosen = (silent[start:] + silent[:start])[:MAX_SINGLE_READS]
        poll.turn = start + len(chosen)
        poll.singly = self._tasks.create_task(self.read_singly(poll, chosen), name=f"read singly {poll.name}")

    async def read_singly(self, poll: StreamPoll, chosen: Sequence[ConsumerKey]) -> None:
        """Ask about each of them; what a list that came meanwhile shows is newer."""
        for key in chosen:
            try:
                sample = await self._observer.consumer(key)
            except ConsumerGone:
                if key in poll.silent and key in self._registry.members(poll.name):
                    self._intake.remove_gone_members(poll.stream, [key])
            except (Unavailable, StreamGone):
                self._count("sweep_unavailable")
            else:
                if key in poll.silent:
                    members_of = self._registry.members(poll.name).get(key, ())
                    under = self._intake.sample(poll.stream, sample, members_of, early=True)
                    self._intake.remove_uncounted_members(poll.stream, ReadState({key: under}))

    def _begin_round(self) -> None:
        """Every stream must be read or tried before `newest_reading` moves on."""
        self._round += 1
        self._untried = set(self._registry.streams)
        if self._tasks is not None:
            self._tasks.create_task(self._time_out(self._round), name="time out the round")
        for poll in self.polls.values():
            if poll.retry:
                poll.wake.set()

    def _tried(self, stream: str) -> None:
        if self._untried is not None:
            self._untried.discard(stream)
            if self._registry.listed and not self._untried:
                self._end_round(self._round)

    async def _time_out(self, number: int) -> None:
        await self._clock.sleep(ROUND_WITHIN)
        self._end_round(number)

    def _end_round(self, number: int) -> None:
        if self._untried is None or number != self._round:
            return
        self._untried, self._registry.newest_reading = None, self._read_at
        self.complete.set()

    def _was_read(self) -> None:
        now, last = self._clock.now().mono, self._read_at
        self._read_at = now
        if self._untried is None and last is not None and now - last >= self._outage():
            self._begin_round()
        if self._untried is None and self.complete.is_set():
            self._registry.newest_reading = now

    def _outage(self) -> float:
        """Seconds without a reading of any stream that are an outage of all."""
        intervals = [stream.interval for stream in self._registry.streams.values() if stream.under]
        return max(self._stale_after, 3 * min(intervals, default=self._budget.max_interval))
