"""Reads all streams and consumers through the JetStream API, page by page, with raw requests.

nats-py reads one page only, without `missing`, `offline` and `ts`. A malformed item is left out and counted, and the
rest of its page is used; fields that a newer server adds are ignored.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

import msgspec
from msgspec import Raw, Struct

from nats_backpressure.adapters.nats import api_types
from nats_backpressure.adapters.nats.api import NO_STREAM, UNREADABLE
from nats_backpressure.adapters.nats.api_types import (
    ConsumerInfo,
    ErrorInfo,
    ListPage,
    Reply,
    StreamInfo,
    StreamInfoConfig,
)
from nats_backpressure.adapters.nats.concurrency_limit import ConcurrencyLimit
from nats_backpressure.adapters.nats.repeated_consumers import RepeatedConsumers, again
from nats_backpressure.adapters.nats.repeated_list import RepeatedList, server_time
from nats_backpressure.core.model.samples import Sample
from nats_backpressure.core.reading.budget import RequestBudget
from nats_backpressure.protocol.subjects import NAME
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime import ports
from nats_backpressure.runtime.observations import (
    PROMPT,
    ConsumerGone,
    ConsumersReading,
    StreamGone,
    StreamsReading,
    Unavailable,
)
from nats_backpressure.runtime.slices import Slices

FIRST_PAGE = b'{"offset":0}'
PAGES_LIMIT = 400
"""Pages of one list, of 256 members each; further ones are not read, and the reading is incomplete."""
CONCURRENT = 8
"""Requests at once, those that already wait longer than HELD apart."""
HELD = 0.25
"""Seconds after which a request no longer counts towards CONCURRENT: it waits for a node that is down, and must not
keep others waiting."""
TIMEOUT = 5.0
"""Seconds for one request; a list takes 4.0 s while a node of the cluster is down."""
SINGLE_TIMEOUT = 1.0
"""Seconds for one consumer among several that are read one by one; one that does not answer counts as missing."""
SINGLES_AT_ONCE = 4
"""Of those, how many are asked for at once."""
MISSING_AT_ONCE = 4
"""Consumers that lists left out which are asked for at once: each may take TIMEOUT."""
NO_CONSUMER = 10014

T = TypeVar("T")
R = TypeVar("R", covariant=True)


class _Listed(Struct, Generic[T]):
    """All pages of one list."""

    items: dict[str, tuple[T, Now]]
    missing: set[str]
    malformed: set[str]
    """Names of the malformed items."""
    unnamed: int
    """Malformed items whose name cannot be read."""
    complete: bool
    seconds: float
    """How long the requests took."""
    pages: int = 0


class Requester(Protocol):
    """The connection; `request` raises Unavailable if there is no reply for any reason."""

    epoch: int

    def request(self, subject: str, payload: bytes, seconds: float) -> Awaitable[Response]: ...


class Response(Protocol):
    data: bytes


class JetStreamObserver:
    """The Observer. A reading uses one connection; it raises StreamGone, ConsumerGone or Unavailable."""

    def __init__(
        self,
        connection: Requester,
        clock: ports.Clock,
        *,
        count: Callable[[str], None],
        count_request: Callable[[str, str, float], None],
        prefix: str = "$JS.API",
        budget: RequestBudget | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        """`budget`: limits the requests per second."""
        self._connection, self._clock, self._prefix, self._timeout = connection, clock, prefix, timeout
        self._count, self._count_request = count, count_request
        self._budget = budget
        self._limit, self._repeated = ConcurrencyLimit(CONCURRENT, HELD), RepeatedList()
        self._consumers = RepeatedConsumers()
        self._missing_turn = asyncio.Semaphore(MISSING_AT_ONCE)

    async def stream(self, name: str) -> StreamsReading:
        epoch = self._connection.epoch
        data, took, _ = await self._ask(f"STREAM.INFO.{_token(name)}", b"")
        self._check_connection(epoch)
        return StreamsReading((api_types.stream_look(self._decoded(_STREAM, data)),), False, took, epoch)

    async def streams(self) -> StreamsReading:
        epoch = self._connection.epoch
        first = await self._ask("STREAM.LIST", FIRST_PAGE)
        self._check_connection(epoch)
        at = server_time(first[0])
        if (looks := self._repeated.looks(first[0])) is not None:
            return StreamsReading(looks, True, first[1], epoch, server_time=at)
        listed = await self._list("STREAM.LIST", _Streams(), lambda stream: stream.config.name, first)
        self._check_connection(epoch)
        looks = tuple(api_types.stream_look(stream) for stream, _ in listed.items.values())
        complete = listed.complete and not (listed.missing or listed.malformed or listed.unnamed)
        self._repeated.remember(first[0], looks if complete and listed.pages == 1 else None)
        missing, named = tuple(sorted(listed.missing)), listed.complete and not (listed.malformed or listed.unnamed)
        return StreamsReading(looks, complete, listed.seconds, epoch, server_time=at, missing=missing, named=named)

    async def consumers(self, stream: str, names: Sequence[str] = ()) -> ConsumersReading:
        """The consumers first, then the stream: in this order the pending messages are within what the stream holds."""
        if names:
            return await self._singly(stream, names)
        epoch = self._connection.epoch
        known = self._consumers.of(stream)
        listed = await self._list(f"CONSUMER.LIST.{_token(stream)}", known, lambda consumer: consumer.name)
        data, took, _ = await self._ask(f"STREAM.INFO.{_token(stream)}", b"")
        self._check_connection(epoch)
        look = api_types.stream_look(self._decoded(_STREAM, data))
        samples, slices = dict[int, Sample](), Slices(self._clock)
        for consumer, at in listed.items.values():
            shown = consumer.shown  # a sample that repeats counts no `metadata_left_out` again
            samples[consumer.text] = again(shown, at) if isinstance(shown, Sample) else self._sample(stream, shown, at)
            if slices.over:
                await slices.pause()
        self._consumers.remember(stream, samples)
        missing = tuple(sorted(listed.missing - listed.items.keys()))
        malformed = tuple(sorted(listed.malformed - listed.items.keys()))
        took += listed.seconds
        read = tuple(samples.values())
        return ConsumersReading(look, read, missing, listed.complete, malformed, took, epoch, listed.unnamed)

    async def _singly(self, stream: str, names: Sequence[str]) -> ConsumersReading:
        samples: dict[str, Sample] = {}
        seconds, names_to_read = 0.0, iter(names)

        async def read() -> None:
            nonlocal seconds
            for name in names_to_read:
                with suppress(Unavailable, ConsumerGone, StreamGone):  # STREAM.INFO decides about the stream
                    op = f"CONSUMER.INFO.{_token(stream)}.{_token(name)}"
                    data, took, at = await self._ask(op, b"", SINGLE_TIMEOUT)
                    samples[name] = self._sample(stream, self._decoded(_CONSUMER, data), at)
                    seconds += took

        epoch = self._connection.epoch
        await asyncio.gather(*(read() for _ in names[:SINGLES_AT_ONCE]))
        data, took, _ = await self._ask(f"STREAM.INFO.{_token(stream)}", b"")
        self._check_connection(epoch)
        look = api_types.stream_look(self._decoded(_STREAM, data))
        missing = tuple(name for name in names if name not in samples)
        return ConsumersReading(look, tuple(samples.values()), missing, False, (), seconds + took, epoch, partial=True)

    async def consumer(self, key: ConsumerKey) -> Sample:
        async with self._missing_turn:
            epoch = self._connection.epoch
            data, _, at = await self._ask(f"CONSUMER.INFO.{_token(key.stream)}.{_token(key.consumer)}", b"")
            self._check_connection(epoch)
        return self._sample(key.stream, self._decoded(_CONSUMER, data), at)

    def _sample(self, stream: str, info: ConsumerInfo, at: Now) -> Sample:
        metadata, left_out = api_types.policy_metadata(info.config.metadata or {})
        if left_out:
            self._count("metadata_left_out")
        return api_types.sample(stream, info, at, metadata)

    def _check_connection(self, epoch: int) -> None:
        """Raises Unavailable if there is another connection than at the start of the reading."""
        if self._connection.epoch != epoch:
            raise Unavailable("the connection was replaced during the reading")

    async def _list(
        self, op: str, kind: _Reader[T], name_of: Callable[[T], str], first: tuple[bytes, float, Now] | None = None
    ) -> _Listed[T]:
        """Page after page; a list that changes meanwhile is read to its end, and is incomplete. `first`: the first
        page, where it was read already."""
        listed: _Listed[T] = _Listed({}, set(), set(), 0, False, 0.0)
        offset, first_total = 0, None
        for listed.pages in range(1, PAGES_LIMIT + 1):
            data, took, at = first or await self._ask(op, b'{"offset":%d}' % offset)
            first = None
            page, items, bad = self._page(kind, data)
            listed.seconds += took
            for item in items:
                if NAME.fullmatch(name_of(item)):
                    listed.items[name_of(item)] = (item, at)
                else:
                    bad.append(name_of(item))
                    self._count("name_unusable")
            listed.malformed |= {name for name in bad if name is not None}
            listed.unnamed += bad.count(None)
            listed.missing |= {*(page.missing or ()), *(page.offline or ())}
            first_total = page.total if first_total is None else first_total
            # Not from the number of items: a page lacks missing ones. Never negative: that ends a 2.9.10 server.
            offset += page.limit or len(items) + len(bad)
            if offset >= page.total or not (items or bad or page.missing or page.offline):
                seen = len(listed.items.keys() | listed.missing | listed.malformed) + listed.unnamed
                listed.complete = seen == page.total == first_total
                break
        return listed

    def _page(self, kind: _Reader[T], data: bytes) -> tuple[ListPage[Raw], list[T], list[str | None]]:
        """A page, its items, and the names of malformed ones (None if the name cannot be read either)."""
        raw = self._decoded(_ITEMS, data)
        items: list[T] = []
        bad: list[str | None] = []
        for item in raw.streams or raw.consumers or []:
            try:
                items.append(kind.read(item))
            except UNREADABLE:
                self._count("consumer_info_malformed")
                bad.append(_name(item))
        return raw, items, bad

    def _decoded(self, decoder: msgspec.json.Decoder[T], data: bytes) -> T:
        try:
            return decoder.decode(data)
        except UNREADABLE as error:
            self._count("consumer_info_malformed")
            raise Unavailable(f"a malformed reply: {str(error)[:120]}") from None

    async def _ask(self, op: str, payload: bytes, timeout: float = math.inf) -> tuple[bytes, float, Now]:
        """The reply, how many seconds it took, and when it came: PROMPT after its request at the latest, since this
        process may have been suspended with the reply before it. Raises the error in it."""
        timeout = min(timeout, self._timeout)
        if self._budget is not None and (wait := self._budget.take(self._clock.mono())) > 0:
            await self._clock.sleep(wait)
        turn = await self._limit.acquire()
        asked, outcome = self._clock.now(), "unavailable"
        try:
            answer = await self._connection.request(f"{self._prefix}.{op}", payload, timeout)
            outcome = "error"
            # Searched as text first: decoding a page of 256 twice would be half of all our work.
            if b'"error"' in answer.data and (error := self._decoded(_REPLY, answer.data).error):
                raise _exception(error)
            outcome = "ok"
        except (TimeoutError, ports.Unavailable) as cause:
            raise Unavailable(str(cause)[:200] or "no answer in time") from None
        finally:
            self._limit.release(turn)
            at = self._clock.now()
            took = at.mono - asked.mono
            self._count_request(".".join(op.split(".")[:2]), outcome, took)
        late = max(0.0, took - PROMPT)
        return answer.data, took, Now(at.mono - late, at.wall - late)


class _Reader(Protocol[R]):
    """Reads an item of a list."""

    def read(self, item: Raw) -> R:
        """Raises what a decoder raises."""


class _Streams:
    def read(self, item: Raw) -> StreamInfo[StreamInfoConfig]:
        return _STREAM.decode(item)


class _Named(Struct, frozen=True):
    name: str = ""


class _Nameable(_Named, frozen=True):
    config: _Named = _Named()


_REPLY = msgspec.json.Decoder(Reply)
_ITEMS = msgspec.json.Decoder(ListPage[Raw])
_STREAM = msgspec.json.Decoder(StreamInfo[StreamInfoConfig])
_CONSUMER = msgspec.json.Decoder(ConsumerInfo)


def _name(item: Raw) -> str | None:
    """The name of a stream or consumer of which nothing else can be read."""
    try:
        named = msgspec.json.decode(item, type=_Nameable)
    except UNREADABLE:
        return None
    return named.name or named.config.name or None


def _token(name: str) -> str:
    """A name as a token of a subject. Raises Unavailable for others: a wildcard would request something else."""
    if not NAME.fullmatch(name):
        raise Unavailable(f"not a name of a stream or consumer: {name[:80]!r}")
    return name


def _exception(error: ErrorInfo) -> Exception:
    if error.code == 404 and error.err_code == NO_STREAM:
        return StreamGone(error.description[:120])
    if error.code == 404 and error.err_code == NO_CONSUMER:
        return ConsumerGone(error.description[:120])
    return Unavailable(f"{error.code} ({error.err_code}): {error.description[:120]}")
