"""Reads streams and consumers through the JetStream API: raw requests, decoded for what is used and nothing else.

nats-py would show one page only, without `missing`, `offline` and `ts`. An item that cannot be so is left out and
counted, and the rest of its page is kept; what a newer server adds is ignored.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Generic, Protocol, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from sidecar import ports
from sidecar.core.model import ConsumerConfig, ConsumerKey, Now, Sample, StreamLook
from sidecar.observations import ConsumerGone, ConsumersReading, StreamGone, StreamsReading, Unavailable

PAGES_LIMIT = 400
"""Pages of one list, of 256 members each; what lies beyond is not read and the reading is not complete."""
CONCURRENT = 8
"""Requests under way at once."""
TIMEOUT = 5.0
"""Seconds for one request; a list takes 4.0 s while a node of the cluster is down."""
BURST = 0.2
"""Seconds' worth of budget that may be spent at once after a pause."""
STREAM_NOT_FOUND, CONSUMER_NOT_FOUND = 10059, 10014
NAME_IN_SUBJECT = re.compile(r"[^\s.*>\x00-\x1f\x7f]{1,256}")
UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Limit = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""Zero, negative or absent: without a limit."""
Moment = Annotated[datetime, Meta(tz=True)]
Text = Annotated[str, Meta(max_length=1024)]
T = TypeVar("T")


class _Sequences(Struct):
    consumer_seq: Count
    stream_seq: Count
    last_active: Moment | None = None


class _Config(Struct):
    ack_policy: Text
    durable_name: str = ""
    filter_subject: str = ""
    filter_subjects: tuple[str, ...] | None = None
    max_ack_pending: Limit = 0
    ack_wait: Count = 0
    sample_freq: str = ""
    deliver_subject: str = ""


class _Consumer(Struct):
    name: str
    created: Text
    config: _Config
    delivered: _Sequences
    ack_floor: _Sequences
    num_pending: Count
    num_ack_pending: Count
    num_redelivered: Count = 0
    num_waiting: Count = 0
    paused: bool = False
    ts: Moment | None = None


class _Mirror(Struct):
    name: str = ""


class _StreamConfig(Struct):
    name: str
    subjects: tuple[str, ...] | None = None
    max_msgs: Limit = 0
    max_bytes: Limit = 0
    max_msgs_per_subject: Limit = 0
    discard: str = "old"
    mirror: _Mirror | None = None


class _State(Struct):
    messages: Count
    bytes: Count
    first_seq: Count
    last_seq: Count
    num_subjects: Count = 0


class _Stream(Struct):
    config: _StreamConfig
    created: Text
    state: _State


class _Error(Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Reply(Struct):
    error: _Error | None = None


class _Page(_Reply, Generic[T]):
    total: Count = 0
    limit: Count = 0
    streams: list[T] | None = None
    consumers: list[T] | None = None
    missing: list[str] | None = None
    offline: dict[str, str] | None = None


class _Listed(Struct, Generic[T]):
    """All pages of one list."""

    items: dict[str, tuple[T, Now]]
    missing: set[str]
    malformed: int
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


class ConsumerInfo:
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
        looks = tuple(_look(stream) for stream, _ in listed.items.values())
        return StreamsReading(
            looks, listed.complete and not listed.missing and not listed.malformed, listed.took, epoch
        )

    async def consumers(self, stream: str) -> ConsumersReading:
        """All pages first, then the stream: only so must what is pending be within what the stream holds."""
        async with self._one_connection() as epoch:
            listed = await self._list(f"CONSUMER.LIST.{_token(stream)}", _CONSUMERS, lambda consumer: consumer.name)
            data, took, _ = await self._ask(f"STREAM.INFO.{_token(stream)}", b"")
        look = _look(self._decoded(_STREAM, data))
        samples = tuple(_sample(stream, consumer, at) for consumer, at in listed.items.values())
        missing = tuple(sorted(listed.missing - listed.items.keys()))
        return ConsumersReading(look, samples, missing, listed.complete, listed.malformed, listed.took + took, epoch)

    async def consumer(self, key: ConsumerKey) -> Sample:
        async with self._one_connection():
            data, _, at = await self._ask(f"CONSUMER.INFO.{_token(key.stream)}.{_token(key.consumer)}", b"")
        return _sample(key.stream, self._decoded(_CONSUMER, data), at)

    @asynccontextmanager
    async def _one_connection(self) -> AsyncIterator[int]:
        epoch = self._connection.epoch
        yield epoch
        if self._connection.epoch != epoch:
            raise Unavailable("the connection was replaced during the reading")

    async def _list(self, op: str, kind: _Kind[T], name_of: Callable[[T], str]) -> _Listed[T]:
        """Page after page; one that changes under us is read to its end, and then not called complete."""
        listed: _Listed[T] = _Listed({}, set(), 0, False, 0.0)
        offset, first_total = 0, None
        for _ in range(PAGES_LIMIT):
            data, took, at = await self._ask(op, b'{"offset":%d}' % offset)
            page, found, malformed = self._page(kind, data)
            listed.took += took
            listed.malformed += malformed
            for item in found:
                if NAME_IN_SUBJECT.fullmatch(name_of(item)):
                    listed.items[name_of(item)] = (item, at)
                else:
                    listed.malformed += 1
                    self._count("name_unusable")
            listed.missing |= {*(page.missing or ()), *(page.offline or ())}
            first_total = page.total if first_total is None else first_total
            # Never from what we read: a page lacks what is missing. Never negative: that ends a 2.9.10 server.
            offset += page.limit or len(found) + malformed
            if offset >= page.total or not (found or malformed or page.missing or page.offline):
                seen = len(listed.items.keys() | listed.missing) + listed.malformed
                listed.complete = seen == page.total == first_total
                break
        return listed

    def _page(self, kind: _Kind[T], data: bytes) -> tuple[_Page[T] | _Page[Raw], list[T], int]:
        try:
            page = kind.pages.decode(data)
            return page, page.streams or page.consumers or [], 0
        except UNREADABLE:
            items = self._decoded(_ITEMS, data)
        found: list[T] = []
        raw = items.streams or items.consumers or []
        for item in raw:
            try:
                found.append(kind.item.decode(item))
            except UNREADABLE:
                self._count("consumer_info_malformed")
        return items, found, len(raw) - len(found)

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


class _Kind(Generic[T]):
    """How the members of a list are decoded: a page in one go, or each by itself."""

    def __init__(self, pages: msgspec.json.Decoder[_Page[T]], item: msgspec.json.Decoder[T]) -> None:
        self.pages, self.item = pages, item


_REPLY = msgspec.json.Decoder(_Reply)
_ITEMS = msgspec.json.Decoder(_Page[Raw])
_STREAM = msgspec.json.Decoder(_Stream)
_CONSUMER = msgspec.json.Decoder(_Consumer)
_STREAMS = _Kind(msgspec.json.Decoder(_Page[_Stream]), _STREAM)
_CONSUMERS = _Kind(msgspec.json.Decoder(_Page[_Consumer]), _CONSUMER)


def _token(name: str) -> str:
    """A name as it may stand in a subject. Raises Unavailable: a wildcard here would ask for something else."""
    if not NAME_IN_SUBJECT.fullmatch(name):
        raise Unavailable(f"no name of a stream or consumer: {name[:80]!r}")
    return name


def _said(error: _Error) -> Exception:
    if error.code == 404 and error.err_code == STREAM_NOT_FOUND:
        return StreamGone(error.description[:120])
    if error.code == 404 and error.err_code == CONSUMER_NOT_FOUND:
        return ConsumerGone(error.description[:120])
    return Unavailable(f"{error.code} ({error.err_code}): {error.description[:120]}")


def _look(stream: _Stream) -> StreamLook:
    config, state = stream.config, stream.state
    return StreamLook(
        name=config.name,
        created=stream.created,
        first_seq=state.first_seq,
        last_seq=state.last_seq,
        messages=state.messages,
        subjects=config.subjects or (),
        at_limit=config.discard == "old" and _full(config, state),
        origin=config.mirror.name if config.mirror else None,
    )


def _full(config: _StreamConfig, state: _State) -> bool:
    """Whether a next message pushes one out. Bytes: the next one may be larger than what room is left."""
    per_subject = config.max_msgs_per_subject * state.num_subjects
    return (
        0 < config.max_msgs <= state.messages
        or 0 < config.max_bytes * 0.95 <= state.bytes
        or 0 < per_subject <= state.messages
    )


def _sample(stream: str, info: _Consumer, at: Now) -> Sample:
    return Sample(
        key=ConsumerKey(stream, info.name),
        created=info.created,
        config=_facts(info.config),
        at=at,
        pending=info.num_pending,
        inflight=info.num_ack_pending,
        redelivered=info.num_redelivered,
        waiting=info.num_waiting,
        delivered_stream=info.delivered.stream_seq,
        delivered_consumer=info.delivered.consumer_seq,
        floor_stream=info.ack_floor.stream_seq,
        floor_consumer=info.ack_floor.consumer_seq,
        since_delivery=_since(info.delivered.last_active, info.ts),
        since_ack=_since(info.ack_floor.last_active, info.ts),
        paused=info.paused,
    )


def _facts(config: _Config) -> ConsumerConfig:
    frequency = config.sample_freq.strip().rstrip("%")
    return ConsumerConfig(
        durable=bool(config.durable_name),
        ack_policy=config.ack_policy,
        filters=config.filter_subjects or ((config.filter_subject,) if config.filter_subject else ()),
        max_ack_pending=config.max_ack_pending if config.max_ack_pending > 0 else None,
        ack_wait=config.ack_wait / 1e9 if config.ack_wait else 30.0,
        sampled=frequency.isdigit() and int(frequency) > 0,
        push=bool(config.deliver_subject),
    )


def _since(then: datetime | None, now: datetime | None) -> float | None:
    """Seconds on the server's own clock; None where the reply tells no time (2.9), or it never happened (year 1)."""
    if then is None or now is None or then.year <= 1:
        return None
    return max(0.0, (now - then).total_seconds())
