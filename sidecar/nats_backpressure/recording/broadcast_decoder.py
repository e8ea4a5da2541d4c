"""Decodes the messages of one other replica about one stream. A message that rests on one that did not come is not
used, nor what comes twice or in another order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.model.samples import Sample, StreamLook
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.recording.broadcast_format import (
    BodyLine,
    BroadcastLine,
    ListLine,
    LookLine,
    UnreadableMessage,
    decode_body,
)
from nats_backpressure.recording.decoder import to_sample, with_numbers
from nats_backpressure.recording.format import (
    CONSUMERS_LIMIT,
    ConsumerLine,
    ReadLine,
    SampleLine,
    StreamLine,
    idle_look,
    idle_sample,
)
from nats_backpressure.runtime.observations import ConsumersReading, StreamsReading

ToOwn = Callable[[float], Now]
"""The own time of a monotonic time of the sender."""


class _Consumer(Struct):
    line: ConsumerLine
    key: ConsumerKey
    sample: Sample | None = None


class _Stream(Struct):
    look: StreamLook
    looked_at: float = 0.0
    """Monotonic time of the sender."""


class BroadcastDecoder:
    """Its memory depends only on what the sender reads: at most CONSUMERS_LIMIT consumers, and as many streams."""

    def __init__(self) -> None:
        self._n = self._rests = -1
        self._parts: tuple[BroadcastLine, list[bytes]] | None = None
        """The chunks of a message so far."""
        self._streams: dict[int, _Stream] = {}
        self._consumers: dict[int, _Consumer] = {}

    def decode(
        self, header: BroadcastLine, lines: Sequence[bytes], to_own: ToOwn
    ) -> ConsumersReading | StreamsReading | Sample | None:
        """What a message shows; None if it has further chunks. Raises UnreadableMessage."""
        if (whole := self._assemble(header, lines)) is None:
            return None
        if header.n <= self._n:
            raise UnreadableMessage(f"message {header.n} came after {self._n}")
        if header.rests < header.n and (header.rests != self._rests or header.n != self._n + 1):
            raise UnreadableMessage(f"message {header.n} rests on one that did not come")
        if header.rests == header.n:
            self._streams, self._consumers = {}, {}
        try:
            shown = self._take(header, decode_body(whole), to_own)
        except (UnreadableMessage, KeyError) as error:
            self._rests = -1  # what comes next rests on it
            raise UnreadableMessage(str(error)) from None
        self._n, self._rests = header.n, header.rests
        return shown

    def _assemble(self, header: BroadcastLine, lines: Sequence[bytes]) -> list[bytes] | None:
        """All lines of a message, once its last chunk came."""
        parts, self._parts = self._parts, None
        if header.part:
            if parts is None or replace(parts[0], part=parts[0].part + 1) != header:
                raise UnreadableMessage(f"message {header.n} lacks a chunk")
            lines = [*parts[1], *lines]
        if header.part < header.parts - 1:
            self._parts = header, list(lines)
            return None
        return list(lines)

    def _take(
        self, header: BroadcastLine, lines: Sequence[BodyLine], to_own: ToOwn
    ) -> ConsumersReading | StreamsReading | Sample:
        moved: list[_Consumer] = []
        looked: list[_Stream] = []
        closing = to_own(header.sent)
        for line in lines:
            match line:
                case StreamLine():
                    self._streams[line.s] = _to_stream(line)
                case LookLine():
                    looked.append(self._streams[line.s])
                    _set_look(looked[-1], line, header.sent)
                case ConsumerLine():
                    key = ConsumerKey(self._streams[line.s].look.name, line.name)
                    self._consumers[line.c] = _Consumer(line, key)
                case SampleLine():
                    consumer = self._consumers[line.c]
                    at = closing if line.at is None else to_own(line.at[0])
                    at = Now(at.mono - line.before, at.wall - line.before)
                    consumer.sample = to_sample(consumer.key, consumer.line, line, at)
                    moved.append(consumer)
                    if line.at is not None:
                        return consumer.sample
                case ListLine():
                    return self._list(header, line, looked)
                case ReadLine():
                    return self._reading(header, line, moved, to_own)
        raise UnreadableMessage(f"message {header.n} has no end")

    def _reading(
        self, header: BroadcastLine, line: ReadLine, moved: Sequence[_Consumer], to_own: ToOwn
    ) -> ConsumersReading:
        if len(self._consumers) > CONSUMERS_LIMIT:
            raise UnreadableMessage(f"more than {CONSUMERS_LIMIT:,} consumers")
        for number in line.left:
            self._consumers.pop(number, None)
        stream = self._streams[0]
        look = idle_look(stream.look, header.sent - stream.looked_at)
        if line.only:
            samples = tuple(each.sample for each in moved if each.sample is not None)
        else:
            first, new = to_own(header.first), {id(each) for each in moved}
            samples = tuple(
                each.sample if id(each) in new else idle_sample(each.sample, first)
                for each in self._consumers.values()
                if each.sample is not None
            )
        return ConsumersReading(
            look,
            samples,
            header.missing,
            header.complete,
            header.malformed,
            header.took,
            0,
            header.unnamed,
            header.partial,
        )

    def _list(self, header: BroadcastLine, line: ListLine, looked: Sequence[_Stream]) -> StreamsReading:
        if len(self._streams) > CONSUMERS_LIMIT:
            raise UnreadableMessage(f"more than {CONSUMERS_LIMIT:,} streams")
        for number in line.left:
            self._streams.pop(number, None)
        shown = looked if line.only else self._streams.values()
        looks = tuple(idle_look(each.look, header.sent - each.looked_at) for each in shown)
        return StreamsReading(looks, header.complete, header.took, 0, line.only)

    def base(self, header: BroadcastLine) -> StreamLook | None:
        """The look that was answered before the reading of the last decoded message was asked for."""
        stream = self._streams.get(0)
        return None if header.base is None or stream is None else with_numbers(stream.look, header.base)


def _to_stream(line: StreamLine) -> _Stream:
    look = StreamLook(line.name, line.created, 0, 0, 0, line.subjects, origin=line.origin, retention=line.retention)
    return _Stream(look)


def _set_look(stream: _Stream, line: LookLine, at: float) -> None:
    stream.look, stream.looked_at = replace(with_numbers(stream.look, line.look), consumers=line.consumers), at
