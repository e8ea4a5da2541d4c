"""Reads the events stream: backwards for one subject, once at the start everything recent, and then each new event."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import nats.errors
from nats.aio.client import Client

from nats_backpressure.adapters.nats.api import NO_STREAM, ApiError, BatchReader, JetStreamApi, Message
from nats_backpressure.adapters.nats.pull import pull
from nats_backpressure.adapters.nats.stream_follower import Info, StreamFollower
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.runtime.event_comparison import ReadEvents
from nats_backpressure.runtime.ports import Clock, TimeSource, Unavailable
from nats_backpressure.runtime.slices import Slices
from nats_backpressure.runtime.stored_events import CachedEvent, EventPage, EventQuery

READS, READ_WITHIN = 512, 4.0
"""Requests and seconds for one query; at either limit it returns what it has, marked as incomplete."""
PAGE_BYTES = 1024 * 1024
"""Encoded events after which a page is full: no reply holds more."""
MANY, FEW = 256, 32
"""The most events in one section of the stream, where one request returns many and where it returns one."""
SKEW, STEP_BACK = 60_000, 5_000
"""Milliseconds by which the clocks of publishers and of the server may differ, and by which a subject's events may be
out of time order where another replica continued publishing."""
RECALL_WITHIN, SILENCE = 30.0, 5.0
"""Seconds for the reading at the start, and in it without a message."""
PULL = 500
"""Messages per pull in the reading at the start, so that a large stream is no flood."""
REFUSED_AFTER, MOST_WITHOUT = 3, 10_000
"""Failed readings at the start after which one without a consumer is tried, as a right to use one may be missing; and
how many events that one reads."""


class JetStreamEventReader:
    """The EventReader on a stream. A query creates no consumer: that costs the server more than reading."""

    def __init__(
        self,
        js: JetStreamApi,
        client: Callable[[], Client],
        names: Names,
        parse: Callable[[bytes], CachedEvent | None],
        count: Callable[[str], None],
        clock: Clock,
    ) -> None:
        """`parse` returns the event in a payload, or None if it is not one of ours."""
        self._parse = parse
        self._js, self._client, self._names, self._count, self._clock = js, client, names, count, clock
        self._stream = names.events_stream
        self._pattern = f"{names.prefix}.event.>"
        self.batches = BatchReader(js, client, self._stream)
        self._follower = StreamFollower(
            js, client, clock, self._stream, self._pattern, self._follow_one, self._position_in
        )
        self._take: Callable[[CachedEvent], object] = lambda event: None
        self._failed = 0
        """Readings at the start that failed, one after the other."""

    async def older(self, wanted: EventQuery) -> EventPage:
        info = await self._js.stream(self._stream)
        if info is None:
            return EventPage((), whole=True)
        kind = next(iter(wanted.types)) if len(wanted.types) == 1 else "*"
        search = _Search(self.batches, self._names.event(kind, wanted.subject), wanted, self._read, self._clock)
        try:
            await search.run(info.state.first_seq, info.state.last_seq + 1)
        except _EnoughRead:
            return EventPage(tuple(search.matches), whole=False)
        return EventPage(tuple(search.matches), whole=True)

    async def recall(self, since: int, most: int, take: Callable[[CachedEvent], object]) -> int:
        read = self._recall if self._failed < REFUSED_AFTER else self._recall_without_consumer
        self._failed += 1
        try:
            async with asyncio.timeout(RECALL_WITHIN):
                since = await read(since, most, take)
        except (TimeoutError, nats.errors.Error) as error:
            raise Unavailable(f"reading {self._stream}: {error or 'it took too long'}") from error
        self._failed = 0
        return since

    async def _recall(self, since: int, most: int, take: Callable[[CachedEvent], object]) -> int:
        client, info = self._client(), await self._js.stream(self._stream)
        if info is None or info.state.messages == 0:
            if info is not None:
                self._follower.continue_from(info.created, info.state.last_seq, client)
            return since
        # An event is stored after its own time, but by another clock.
        start = datetime.fromtimestamp(max(0, since - SKEW) / 1000, UTC).isoformat()
        name, pending = await self._consumer(deliver_policy="by_start_time", opt_start_time=start)
        if pending > most:
            place = max(1, info.state.last_seq + 1 - most)
            name, pending = await self._consumer(deliver_policy="by_start_sequence", opt_start_seq=place)
            since = 0
        reached = info.state.last_seq
        async for raw in pull(self._js, client, self._stream, name, pending, PULL, SILENCE):
            since, reached = (
                since or int(1000 * raw.metadata.timestamp.timestamp()) + SKEW,
                raw.metadata.sequence.stream,
            )
            self._pass_on(Message(raw.subject, reached, raw.data, {}), take)
        self._follower.continue_from(info.created, reached, client)
        return since

    async def _recall_without_consumer(self, since: int, most: int, take: Callable[[CachedEvent], object]) -> int:
        client, info = self._client(), await self._js.stream(self._stream)
        if info is None:
            return since
        last = info.state.last_seq
        place = max(1, last + 1 - min(most, MOST_WITHOUT))
        complete_since = since if place <= info.state.first_seq else 0
        while place <= last and (messages := await self.batches.next(self._pattern, place, MANY)):
            for event in filter(None, map(self._read, messages)):
                complete_since = complete_since or event.at + SKEW
                if event.at >= since - SKEW:
                    take(event)
            place = messages[-1].seq + 1
        self._follower.continue_from(info.created, max(last, place - 1), client)
        return complete_since or since

    def take_looks(self, looks: Sequence[StreamLook], asked_at: float) -> None:
        for look in looks:
            if look.name == self._stream:
                self._follower.take_look(look, asked_at)

    def when_other(self, call: Callable[[bool, ReadEvents], object]) -> None:
        """Call this where the stream turns out to be another one with events: whether it surely is an older copy, and
        what reads its newest events."""
        self._follower.on_other = lambda older: call(older, self.newest)

    async def newest(self, take: Callable[[CachedEvent], object]) -> None:
        """Call `take` with the newest event of each type about each subject, in the order of the stream. Raises
        Unavailable, after some may have been taken."""
        slices = Slices(self._clock)
        try:
            async with asyncio.timeout(RECALL_WITHIN):
                name, pending = await self._consumer(deliver_policy="last_per_subject")
                async for raw in pull(self._js, self._client(), self._stream, name, pending, PULL, SILENCE):
                    self._pass_on(Message(raw.subject, raw.metadata.sequence.stream, raw.data, {}), take)
                    await slices.pause()
        except ApiError as error:
            if error.err_code != NO_STREAM:
                raise
        except (TimeoutError, nats.errors.Error) as error:
            raise Unavailable(f"reading {self._stream}: {error or 'it took too long'}") from error

    async def follow(self, take: Callable[[CachedEvent], object]) -> None:
        self._take = take
        await self._follower.run()

    def _follow_one(self, message: Message) -> None:
        self._pass_on(message, self._take)

    def _pass_on(self, message: Message, take: Callable[[CachedEvent], object]) -> None:
        if (event := self._read(message)) is not None:
            take(event)

    async def _position_in(self, info: Info) -> int:
        """After which sequence of a stream that may be another one events are new."""
        position = self._follower.position
        return 0 if position.is_other else position.seen  # what a node that lagged did not deliver is read as well

    async def _consumer(self, **start: object) -> tuple[str, int]:
        """The name of a new consumer, and how many messages it has to deliver."""
        name, created = await self._js.create_consumer(self._stream, self._pattern, **start)
        return name, created.num_pending

    def _read(self, message: Message) -> CachedEvent | None:
        """The event in a message if it is one of ours, on its own subject; anything else is counted."""
        event = self._parse(message.data)
        if event is not None and self._names.event(event.type, event.subject) == message.subject:
            return event
        self._count("event_malformed")
        return None


class _EnoughRead(Exception):
    """A limit of one query is reached."""


class _Search:
    """One query. The stream can only be read forwards, so the search goes back in sections that are each read forwards:
    longer ones where there were few events, shorter ones where there are more than fit."""

    def __init__(
        self,
        batches: BatchReader,
        subject: str,
        wanted: EventQuery,
        read: Callable[[Message], CachedEvent | None],
        clock: TimeSource,
    ) -> None:
        self.matches: list[CachedEvent] = []
        self._batches, self._subject, self._wanted, self._read = batches, subject, wanted, read
        self._reads, self._clock = READS, clock
        self._deadline = clock.now().mono + READ_WITHIN
        self._size = 0

    async def run(self, first: int, end: int) -> None:
        """Search the stream sequences from `first` up to `end`, excluded. Raises _EnoughRead at a limit."""
        if self._wanted.until is not None or self._wanted.before is not None:
            end = await self._end(first, end)
        span, few = 0, 1
        while end > first:
            most = MANY if self._batches.many else FEW
            span = span or most
            start = max(first, end - span)
            section = await self._section(start, end, few, most)
            if section is None:
                span = max(1, (end - start) // 8)
                continue
            if self._add(section):
                return
            end, few = start, len(section) + 1
            span *= 4 if len(section) <= most // 4 else 1

    async def _end(self, low: int, high: int) -> int:
        """The sequence from which on all are too late: events are published in the order of `seq` and time."""
        while low < high:
            middle = (low + high) // 2
            first = await self._first(middle, high)
            if first is None or self._late(first[1]):
                high = middle
            else:
                low = first[0] + 1
        return low

    async def _first(self, place: int, end: int) -> tuple[int, CachedEvent] | None:
        """The stream sequence and the event of the first one in a range."""
        while messages := await self._next(place, end, 1):
            if (event := self._read(messages[0])) is not None:
                return messages[0].seq, event
            place = messages[0].seq + 1
        return None

    async def _section(self, place: int, end: int, n: int, most: int) -> list[CachedEvent] | None:
        """The events in a range, the oldest first; None if there are more than `most`."""
        events: list[CachedEvent] = []
        count = 0
        while messages := await self._next(place, end, n):
            count += len(messages)
            if count > most:
                return None
            events += [event for message in messages if (event := self._read(message)) is not None]
            place, n = messages[-1].seq + 1, min(4 * n, most)
        return events

    async def _next(self, place: int, end: int, n: int) -> list[Message]:
        """Up to `n` messages of a range; empty only if none is left."""
        if place >= end:
            return []
        if self._reads <= 0 or self._clock.now().mono > self._deadline:
            raise _EnoughRead
        self._reads -= 1
        return [message for message in await self._batches.next(self._subject, place, n) if message.seq < end]

    def _add(self, section: list[CachedEvent]) -> bool:
        """Add the wanted events of a section; returns whether everything before it is too old. Raises _EnoughRead when
        the page is full."""
        for event in reversed(section):
            if self._wanted.has(event):
                if len(self.matches) == self._wanted.limit or self._size > PAGE_BYTES:
                    raise _EnoughRead
                self.matches.append(event)
                self._size += len(event.body)
        return bool(section) and section[0].at < self._wanted.since - STEP_BACK

    def _late(self, event: CachedEvent) -> bool:
        wanted = self._wanted
        after = wanted.until is not None and event.at > wanted.until + STEP_BACK
        return after or (wanted.before is not None and event.seq >= wanted.before)
