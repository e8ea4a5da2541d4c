"""Decodes the messages of one other replica about one stream. A message that rests on one that did not come is not
used, nor what comes twice or in another order."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.model.samples import Sample, StreamLook
from nats_backpressure.core.reading.sharing import ALL_STREAMS
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.recording.broadcast_format import (
    BodyLine,
    BroadcastLine,
    ListLine,
    LookLine,
    UnreadableMessage,
    UnreadLine,
    decode_lines,
)
from nats_backpressure.recording.decoder import to_sample, with_numbers
from nats_backpressure.recording.format import (
    CONSUMERS_LIMIT,
    LONGEST_LINE,
    ConsumerLine,
    ReadLine,
    SampleLine,
    StreamLine,
    idle_look,
    idle_sample,
)
from nats_backpressure.runtime.observations import ConsumersReading, StreamsReading

PAUSE_AFTER = 50
"""Consumers or streams after which there is a place to pause."""

ToOwn = Callable[[float], Now]
"""The own time of a monotonic time of the sender."""
Shown = ConsumersReading | StreamsReading | Sample


class _Consumer(Struct):
    line: ConsumerLine
    key: ConsumerKey
    last: SampleLine | None = None
    """Its last line, until `sample` is made of it."""
    at: float = 0.0
    """Monotonic time of the sender that the line is of."""
    sample: Sample | None = None
    moved_in: int = -1
    """The number of the message that it had its last line in."""


class _LookedStream(Struct):
    look: StreamLook
    looked_at: float = 0.0
    """Monotonic time of the sender."""


class _Body(Struct):
    """What the lines of the last message came to, beside the streams and consumers."""

    header: BroadcastLine
    looked: list[_LookedStream]
    moved: list[_Consumer]
    missing: list[str]
    malformed: list[str]
    rest: bytes = b""
    """The beginning of the line that goes on in the next chunk."""
    end: SampleLine | ListLine | ReadLine | None = None


class BroadcastDecoder:
    """`stream`: the one that the messages are about, or ALL_STREAMS. Its memory depends only on what the sender reads:
    at most CONSUMERS_LIMIT consumers, and as many streams."""

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._n = self._rests = -1
        self._body: _Body | None = None
        """The newest message, if all of its chunks came so far."""
        self._streams: dict[int, _LookedStream] = {}
        self._consumers: dict[int, _Consumer] = {}

    def take(self, header: BroadcastLine, lines: bytes) -> bool:
        """Take in a chunk; returns whether it is the last one of its message, so that `shown` can be called. Raises
        UnreadableMessage."""
        if header.part == 0:
            self._begin(header)
        elif not self._continues(header):
            self._body = None
            raise UnreadableMessage(f"message {header.n} lacks a chunk")
        assert self._body is not None
        self._body.header = header
        try:
            self._take_lines(self._body, lines)
        except (UnreadableMessage, KeyError) as error:
            self._body = None
            raise UnreadableMessage(str(error)) from None
        if not header.more:
            self._n, self._rests = header.n, header.rests
        return not header.more

    def _begin(self, header: BroadcastLine) -> None:
        if header.n <= self._n:
            raise UnreadableMessage(f"message {header.n} came after {self._n}")
        if header.rests < header.n and (header.rests != self._rests or header.n != self._n + 1):
            raise UnreadableMessage(f"message {header.n} rests on one that did not come")
        if header.rests == header.n:
            self._streams, self._consumers = {}, {}
            self._rests = -1  # nothing can rest on what this one replaces
        self._body = _Body(header, [], [], [], [])

    def _continues(self, header: BroadcastLine) -> bool:
        before = None if self._body is None else self._body.header
        if before is None or not before.more:
            return False
        return replace(before, part=before.part + 1, more=header.more, sent=header.sent) == header

    def _take_lines(self, body: _Body, data: bytes) -> None:
        *lines, body.rest = (body.rest + data).split(b"\n")
        if len(body.rest) > LONGEST_LINE:
            raise UnreadableMessage("a line is too long")
        for line in decode_lines(lines):
            if body.end is None:
                self._take_line(body, line)
        if len(self._consumers) > CONSUMERS_LIMIT or len(self._streams) > CONSUMERS_LIMIT:
            raise UnreadableMessage(f"more than {CONSUMERS_LIMIT:,} consumers or streams")
        if not body.header.more and (body.rest or body.end is None):
            raise UnreadableMessage(f"message {body.header.n} has no end")
        if not body.header.more and isinstance(body.end, ListLine) != (self._stream == ALL_STREAMS):
            raise UnreadableMessage(f"message {body.header.n} is not about {self._stream}")
        if isinstance(body.end, ReadLine) and 0 not in self._streams:
            raise UnreadableMessage(f"message {body.header.n} is a reading of no stream")

    def _take_line(self, body: _Body, line: BodyLine) -> None:
        match line:
            case StreamLine():
                if self._stream not in (ALL_STREAMS, line.name):
                    raise UnreadableMessage(f"message {body.header.n} is about another stream than {self._stream}")
                self._streams[line.s] = _to_stream(line)
            case LookLine():
                body.looked.append(self._streams[line.s])
                _set_look(body.looked[-1], line, body.header.answered)
            case ConsumerLine():
                key = ConsumerKey(self._streams[line.s].look.name, line.name)
                self._consumers[line.c] = _Consumer(line, key)
            case SampleLine():
                self._take_sample(body, line)
            case UnreadLine():
                body.missing += line.missing
                body.malformed += line.malformed
            case ListLine():
                for number in line.left:
                    self._streams.pop(number, None)
                body.end = line
            case ReadLine():
                for number in line.left:
                    self._consumers.pop(number, None)
                body.end = line

    def _take_sample(self, body: _Body, line: SampleLine) -> None:
        consumer = self._consumers[line.c]
        consumer.last, consumer.moved_in = line, body.header.n
        consumer.at = (body.header.answered if line.at is None else line.at[0]) - line.before
        body.moved.append(consumer)
        if line.at is not None:
            body.end = line

    def shown(self, to_own: ToOwn) -> Generator[None, None, Shown]:
        """What the last message shows, which is complete. Yields where there is a place to pause; nothing may be taken
        in meanwhile."""
        body = self._body
        assert body is not None
        match body.end:
            case ListLine() as end:
                return (yield from self._list(body, end))
            case ReadLine() as end:
                return (yield from self._reading(body, end, to_own))
        return _sample_of(body.moved[-1], to_own)

    def _reading(self, body: _Body, end: ReadLine, to_own: ToOwn) -> Generator[None, None, ConsumersReading]:
        header, stream = body.header, self._streams[0]
        first, samples = to_own(header.first), list[Sample]()
        consumers: Iterable[_Consumer] = body.moved if end.only else self._consumers.values()
        for n, consumer in enumerate(consumers, 1):
            if consumer.moved_in == header.n:
                samples.append(_sample_of(consumer, to_own))
            elif consumer.last is not None or consumer.sample is not None:
                samples.append(idle_sample(_sample_of(consumer, to_own), first))
            if n % PAUSE_AFTER == 0:
                yield
        return ConsumersReading(
            idle_look(stream.look, header.answered - stream.looked_at),
            tuple(samples),
            tuple(body.missing),
            header.complete,
            tuple(body.malformed),
            header.took,
            0,
            header.unnamed,
            header.partial,
            header.trip,
        )

    def _list(self, body: _Body, end: ListLine) -> Generator[None, None, StreamsReading]:
        streams: Sequence[_LookedStream] = body.looked if end.only else tuple(self._streams.values())
        looks: list[StreamLook] = []
        for n, stream in enumerate(streams, 1):
            looks.append(idle_look(stream.look, body.header.answered - stream.looked_at))
            if n % PAUSE_AFTER == 0:
                yield
        complete = body.header.complete and not end.partly
        header = body.header
        return StreamsReading(tuple(looks), complete, header.took, 0, end.only, header.server_time, trip=header.trip)

    def base(self) -> StreamLook | None:
        """The look that was answered before the reading of the last message was asked for."""
        stream, base = self._streams.get(0), None if self._body is None else self._body.header.base
        return None if base is None or stream is None else with_numbers(stream.look, base)


def _sample_of(consumer: _Consumer, to_own: ToOwn) -> Sample:
    if consumer.last is not None:
        consumer.sample = to_sample(consumer.key, consumer.line, consumer.last, to_own(consumer.at))
        consumer.last = None
    assert consumer.sample is not None
    return consumer.sample


def _to_stream(line: StreamLine) -> _LookedStream:
    look = StreamLook(line.name, line.created, 0, 0, 0, line.subjects, origin=line.origin, retention=line.retention)
    return _LookedStream(look)


def _set_look(stream: _LookedStream, line: LookLine, at: float) -> None:
    stream.look, stream.looked_at = replace(with_numbers(stream.look, line.look), consumers=line.consumers), at
