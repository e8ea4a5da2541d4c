"""Reads streams and consumers through the JetStream API: raw requests, decoded for what is used and nothing else.

nats-py would show one page only, without `missing`, `offline` and `ts`. An item that cannot be so is left out and
counted, and the rest of its page is kept; what a newer server adds is ignored.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Generic, Protocol, TypeVar

import msgspec
from msgspec import Raw, Struct

from nats_backpressure.adapters.nats import api_types
from nats_backpressure.adapters.nats.api import UNREADABLE
from nats_backpressure.adapters.nats.api_types import (
    ConsumerInfo,
    ErrorInfo,
    ListPage,
    Reply,
    StreamInfo,
    StreamInfoConfig,
)
from nats_backpressure.core.model import Sample
from nats_backpressure.protocol.subjects import NAME
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime import ports
from nats_backpressure.runtime.observations import (
    ConsumerGone,
    ConsumersReading,
    StreamGone,
    StreamsReading,
    Unavailable,
)

PAGES_LIMIT = 400
"""Pages of one list, of 256 members each; what lies beyond is not read and the reading is not complete."""
CONCURRENT = 8
"""Requests under way at once."""
TIMEOUT = 5.0
"""Seconds for one request; a list takes 4.0 s while a node of the cluster is down."""
BURST = 0.2
"""Seconds' worth of budget that may be spent at once after a pause."""
STREAM_NOT_FOUND, CONSUMER_NOT_FOUND = 10059, 10014

T = TypeVar("T")


class _Listed(Struct, Generic[T]):
    """All pages of one list."""

    items: dict[str, tuple[T, Now]]
    missing: set[str]
    malformed: set[str]
    """Names of those that cannot be so."""
    unnamed: int
    """Of which not even the name can be read."""
    complete: bool
    took: float


class Requester(Protocol):
    """What is asked of the connection: `request` raises ports.Unavailable whatever kept the answer away."""

    epoch: int

    def request(self, subject: str, payload: bytes, seconds: float) -> Awaitable[Answer]: ...


class Answer(Protocol):
    data: bytes


class RequestBudget:
    """So many requests a second, in the order in which they asked; a short burst after a pause."""

    def __init__(
        self,
        rate: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._gap, self._clock, self._sleep = 1 / rate, clock, sleep
        self._next = 0.0

    async def take(self) -> None:
        now = self._clock()
        mine = max(self._next, now - BURST)
        self._next = mine + self._gap
        if mine > now:
            await self._sleep(mine - now)


class JetStreamObserver:
    """The Observer: each reading is of one connection, and raises StreamGone, ConsumerGone or Unavailable."""

    def __init__(
        self,
        connection: Requester,
        clock: ports.Clock,
        *,
        count: Callable[[str], None],
        count_request: Callable[[str, str, float], None],
        prefix: str = "$JS.API",
        requests_per_second: float = 50,
        timeout: float = TIMEOUT,
    ) -> None:
        self._connection, self._clock, self._prefix, self._timeout = connection, clock, prefix, timeout
        self._count, self._count_request = count, count_request
        self._budget = RequestBudget(requests_per_second)
        self._turn = asyncio.Semaphore(CONCURRENT)

    async def streams(self) -> StreamsReading:
        async with self._one_connection() as epoch:
            listed = await self._list("STREAM.LIST", _STREAMS, lambda stream: stream.config.name)
        looks = tuple(api_types.stream_look(stream) for stream, _ in listed.items.values())
        return StreamsReading(
            looks,
            listed.complete and not (listed.missing or listed.malformed or listed.unnamed),
            listed.took,
            epoch,
        )

    async def consumers(self, stream: str) -> ConsumersReading:
        """All pages first, then the stream: only so must what is pending be within what the stream holds."""
        async with self._one_connection() as epoch:
            listed = await self._list(f"CONSUMER.LIST.{_token(stream)}", _CONSUMERS, lambda consumer: consumer.name)
            data, took, _ = await self._ask(f"STREAM.INFO.{_token(stream)}", b"")
        look = api_types.stream_look(self._decoded(_STREAM, data))
        samples = tuple(self._sample(stream, consumer, at) for consumer, at in listed.items.values())
        missing = tuple(sorted(listed.missing - listed.items.keys()))
        malformed = tuple(sorted(listed.malformed - listed.items.keys()))
        took += listed.took
        return ConsumersReading(look, samples, missing, listed.complete, malformed, took, epoch, listed.unnamed)

    async def consumer(self, key: ConsumerKey) -> Sample:
        async with self._one_connection():
            data, _, at = await self._ask(f"CONSUMER.INFO.{_token(key.stream)}.{_token(key.consumer)}", b"")
        return self._sample(key.stream, self._decoded(_CONSUMER, data), at)

    def _sample(self, stream: str, info: ConsumerInfo, at: Now) -> Sample:
        metadata, left_out = api_types.policy_metadata(info.config.metadata or {})
        if left_out:
            self._count("metadata_left_out")
        return api_types.sample(stream, info, at, metadata)

    @asynccontextmanager
    async def _one_connection(self) -> AsyncIterator[int]:
        epoch = self._connection.epoch
        yield epoch
        if self._connection.epoch != epoch:
            raise Unavailable("the connection was replaced during the reading")

    async def _list(self, op: str, kind: _ListKind[T], name_of: Callable[[T], str]) -> _Listed[T]:
        """Page after page; one that changes under us is read to its end, and then not called complete."""
        listed: _Listed[T] = _Listed({}, set(), set(), 0, False, 0.0)
        offset, first_total = 0, None
        for _ in range(PAGES_LIMIT):
            data, took, at = await self._ask(op, b'{"offset":%d}' % offset)
            page, found, bad = self._page(kind, data)
            listed.took += took
            for item in found:
                if NAME.fullmatch(name_of(item)):
                    listed.items[name_of(item)] = (item, at)
                else:
                    bad.append(name_of(item))
                    self._count("name_unusable")
            listed.malformed |= {name for name in bad if name is not None}
            listed.unnamed += bad.count(None)
            listed.missing |= {*(page.missing or ()), *(page.offline or ())}
            first_total = page.total if first_total is None else first_total
            # Never from what we read: a page lacks what is missing. Never negative: that ends a 2.9.10 server.
            offset += page.limit or len(found) + len(bad)
            if offset >= page.total or not (found or bad or page.missing or page.offline):
                seen = len(listed.items.keys() | listed.missing | listed.malformed) + listed.unnamed
                listed.complete = seen == page.total == first_total
                break
        return listed

    def _page(self, kind: _ListKind[T], data: bytes) -> tuple[ListPage[T] | ListPage[Raw], list[T], list[str | None]]:
        """A page, its items, and the names of those that cannot be so (None where not even the name can be read)."""
        try:
            page = kind.pages.decode(data)
            return page, page.streams or page.consumers or [], []
        except UNREADABLE:
            items = self._decoded(_ITEMS, data)
        found: list[T] = []
        bad: list[str | None] = []
        for item in items.streams or items.consumers or []:
            try:
                found.append(kind.item.decode(item))
            except UNREADABLE:
                self._count("consumer_info_malformed")
                bad.append(_name(item))
        return items, found, bad

    def _decoded(self, decoder: msgspec.json.Decoder[T], data: bytes) -> T:
        try:
            return decoder.decode(data)
        except UNREADABLE as error:
            self._count("consumer_info_malformed")
            raise Unavailable(f"an answer that cannot be so: {str(error)[:120]}") from None

    async def _ask(self, op: str, payload: bytes) -> tuple[bytes, float, Now]:
        """The reply, how many seconds it took, and when it came. Raises if it says that there is none."""
        await self._budget.take()
        async with self._turn:
            started = self._clock.now().mono
            outcome = "unavailable"
            try:
                async with asyncio.timeout(self._timeout * 1.2):
                    answer = await self._connection.request(f"{self._prefix}.{op}", payload, self._timeout)
                outcome = "error"
                # Looked for first: to decode a page of 256 twice would be half of all our work.
                if b'"error"' in answer.data and (error := self._decoded(_REPLY, answer.data).error):
                    raise _said(error)
                outcome = "ok"
            except (TimeoutError, ports.Unavailable) as cause:
                raise Unavailable(str(cause)[:200] or "no answer in time") from None
            finally:
                at = self._clock.now()
                self._count_request(".".join(op.split(".")[:2]), outcome, at.mono - started)
        return answer.data, at.mono - started, at


class _ListKind(Generic[T]):
    """How the members of a list are decoded: a page in one go, or each by itself."""

    def __init__(self, pages: msgspec.json.Decoder[ListPage[T]], item: msgspec.json.Decoder[T]) -> None:
        self.pages, self.item = pages, item


class _Named(Struct, frozen=True):
    name: str = ""


class _Nameable(_Named, frozen=True):
    config: _Named = _Named()


_REPLY = msgspec.json.Decoder(Reply)
_ITEMS = msgspec.json.Decoder(ListPage[Raw])
_STREAM = msgspec.json.Decoder(StreamInfo[StreamInfoConfig])
_CONSUMER = msgspec.json.Decoder(ConsumerInfo)
_STREAMS = _ListKind(msgspec.json.Decoder(ListPage[StreamInfo[StreamInfoConfig]]), _STREAM)
_CONSUMERS = _ListKind(msgspec.json.Decoder(ListPage[ConsumerInfo]), _CONSUMER)


def _name(item: Raw) -> str | None:
    """By what name a stream or consumer goes of which nothing else can be read."""
    try:
        found = msgspec.json.decode(item, type=_Nameable)
    except UNREADABLE:
        return None
    return found.name or found.config.name or None


def _token(name: str) -> str:
    """A name as it may stand in a subject. Raises Unavailable: a wildcard here would ask for something else."""
    if not NAME.fullmatch(name):
        raise Unavailable(f"no name of a stream or consumer: {name[:80]!r}")
    return name


def _said(error: ErrorInfo) -> Exception:
    if error.code == 404 and error.err_code == STREAM_NOT_FOUND:
        return StreamGone(error.description[:120])
    if error.code == 404 and error.err_code == CONSUMER_NOT_FOUND:
        return ConsumerGone(error.description[:120])
    return Unavailable(f"{error.code} ({error.err_code}): {error.description[:120]}")
