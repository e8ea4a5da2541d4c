"""The events stream, read again: backwards for one subject, and once at the start for all that is recent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from nats_backpressure.adapters.nats.api import BatchReader, JetStreamApi, Message
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.runtime.ports import CachedEvent, EventPage, EventQuery, Unavailable

READS, READ_WITHIN = 512, 4.0
"""Requests and seconds for one question; at either it is answered with what was found so far, and says so."""
PAGE_BYTES = 1024 * 1024
"""Encoded events after which a page is full: no reply holds more."""
MANY, FEW = 256, 32
"""Events in one stretch of the stream at most, where a request brings many and where it brings one."""
SKEW, STEP_BACK = 60_000, 5_000
"""Milliseconds by which the clocks of whoever told events, and the server's, may be apart; and by which a subject's
events may be out of the order of time, where another replica went on telling."""
PASS_WITHIN, SILENCE = 30.0, 5.0
"""Seconds for the pass at the start, and without a message in it."""
PULL = 500
"""Messages asked for at once in the pass: no flood, whatever the stream holds."""


class JetStreamEventReader:
    """No consumer per question: making one costs the server more than reading does. Works from 2.9 on."""

    def __init__(
        self,
        js: JetStreamApi,
        client: Callable[[], Client],
        names: Names,
        parse: Callable[[bytes], CachedEvent | None],
        count: Callable[[str], None],
    ) -> None:
        """`parse` returns the event in a payload, or None if it is not one of ours."""
        self._parse = parse
        self._js, self._client, self._names, self._count = js, client, names, count
        self._stream = names.events_stream
        self.batches = BatchReader(js, client, self._stream)

    async def older(self, wanted: EventQuery) -> EventPage:
        info = await self._js.stream(self._stream)
        if info is None:
            return EventPage((), whole=True)
        kind = next(iter(wanted.types)) if len(wanted.types) == 1 else "*"
        search = _Search(self.batches, self._names.event(kind, wanted.subject), wanted, self._read)
        try:
            whole = await search.run(info.state.first_seq, info.state.last_seq + 1)
        except _EnoughRead:
            whole = False
        return EventPage(tuple(search.found), whole)

    async def recall(self, since: int, most: int, take: Callable[[CachedEvent], object]) -> int:
        try:
            async with asyncio.timeout(PASS_WITHIN):
                return await self._recall(since, most, take)
        except (TimeoutError, nats.errors.Error) as error:
            raise Unavailable(f"reading {self._stream}: {error or 'it took too long'}") from error

    async def _recall(self, since: int, most: int, take: Callable[[CachedEvent], object]) -> int:
        info = await self._js.stream(self._stream)
        if info is None or info.state.messages == 0:
            return since
        # What was told since then was stored later still, but by another clock.
        start = datetime.fromtimestamp(max(0, since - SKEW) / 1000, UTC).isoformat()
        name, left = await self._consumer(deliver_policy="by_start_time", opt_start_time=start)
        if left > most:
            place = max(1, info.state.last_seq + 1 - most)
            name, left = await self._consumer(deliver_policy="by_start_sequence", opt_start_seq=place)
            since = 0
        async for raw in self._pulled(name, left):
            since = since or int(1000 * raw.metadata.timestamp.timestamp()) + SKEW
            event = self._read(Message(raw.subject, raw.metadata.sequence.stream, raw.data, {}))
            if event is not None:
                take(event)
        return since

    async def _consumer(self, **start: object) -> tuple[str, int]:
        """The name of a new consumer, and how many messages it has to deliver."""
        name, created = await self._js.create_consumer(self._stream, f"{self._names.prefix}.event.>", **start)
        return name, created.num_pending

    async def _pulled(self, name: str, left: int) -> AsyncIterator[Msg]:
        client = self._client()
        inbox = client.new_inbox()
        answers = await client.subscribe(inbox)
        try:
            while left > 0:
                n = min(PULL, left)
                ask = msgspec.json.encode({"batch": n, "expires": int(SILENCE * 1e9)})
                await client.publish(f"{self._js.prefix}.CONSUMER.MSG.NEXT.{self._stream}.{name}", ask, reply=inbox)
                for _ in range(n):
                    raw = await answers.next_msg(timeout=SILENCE)
                    if (status := (raw.headers or {}).get("Status")) is not None:
                        raise Unavailable(f"reading {self._stream}: it ended before its time, status {status}")
                    yield raw
                    left = raw.metadata.num_pending
                    if left == 0:
                        break
        finally:
            await answers.unsubscribe()

    def _read(self, message: Message) -> CachedEvent | None:
        """The event in a message, if it is one of ours and where it belongs; anything else is counted."""
        found = self._parse(message.data)
        if found is not None and self._names.event(found.type, found.subject) == message.subject:
            return found
        self._count("event_malformed")
        return None


class _EnoughRead(Exception):
    """The bounds of one question are reached."""


class _Search:
    """One question. The stream can only be read forwards, so it is gone back in stretches that are each read forwards:
    longer ones where there was little, shorter ones where there is more than fits."""

    def __init__(
        self, batches: BatchReader, subject: str, wanted: EventQuery, read: Callable[[Message], CachedEvent | None]
    ) -> None:
        self.found: list[CachedEvent] = []
        self._batches, self._subject, self._wanted, self._read = batches, subject, wanted, read
        self._reads = READS
        self._deadline = asyncio.get_running_loop().time() + READ_WITHIN
        self._size = 0

    async def run(self, first: int, end: int) -> bool:
        """Whether all that is wanted was found between two places, the second excluded."""
        if self._wanted.until is not None or self._wanted.before is not None:
            end = await self._end(first, end)
        span, few = 0, 1
        while end > first:
            most = MANY if self._batches.many else FEW
            span = span or most
            start = max(first, end - span)
            stretch = await self._stretch(start, end, few, most)
            if stretch is None:
                span = max(1, (end - start) // 8)
                continue
            if self._take(stretch):
                return True
            end, few = start, len(stretch) + 1
            span *= 4 if len(stretch) <= most // 4 else 1
        return True

    async def _end(self, low: int, high: int) -> int:
        """The place from which on all are too late: a subject's events are told in the order of `seq`, and of time."""
        while low < high:
            middle = (low + high) // 2
            found = await self._first(middle, high)
            if found is None or self._late(found[1]):
                high = middle
            else:
                low = found[0] + 1
        return low

    async def _first(self, place: int, end: int) -> tuple[int, CachedEvent] | None:
        """The first event between two places, and its own."""
        while messages := await self._next(place, end, 1):
            if (event := self._read(messages[0])) is not None:
                return messages[0].seq, event
            place = messages[0].seq + 1
        return None

    async def _stretch(self, place: int, end: int, n: int, most: int) -> list[CachedEvent] | None:
        """The events between two places, the oldest first; None if there are more than fit in one stretch."""
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
        """Up to `n` messages between two places; none only where none is left."""
        if place >= end:
            return []
        if self._reads <= 0 or asyncio.get_running_loop().time() > self._deadline:
            raise _EnoughRead
        self._reads -= 1
        return [message for message in await self._batches.next(self._subject, place, n) if message.seq < end]

    def _take(self, stretch: list[CachedEvent]) -> bool:
        """Keep what is wanted of a stretch; whether everything before it is too old. Raises _Enough on a full page."""
        for event in reversed(stretch):
            if self._wanted.has(event):
                if len(self.found) == self._wanted.limit or self._size > PAGE_BYTES:
                    raise _EnoughRead
                self.found.append(event)
                self._size += len(event.body)
        return bool(stretch) and stretch[0].at < self._wanted.since - STEP_BACK

    def _late(self, event: CachedEvent) -> bool:
        wanted = self._wanted
        after = wanted.until is not None and event.at > wanted.until + STEP_BACK
        return after or (wanted.before is not None and event.seq >= wanted.before)
