"""Encodes observations as lines of a recording, without those that did not change."""

from __future__ import annotations

import itertools

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.model.samples import Sample, StreamLook
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.recording.format import (
    CONSUMERS_LIMIT,
    At,
    ConsumerLine,
    Line,
    MissingLine,
    ReadLine,
    SampleLine,
    StreamLine,
    StreamNumbers,
    idle_look,
    idle_sample,
)
from nats_backpressure.recording.hint_batch import HintBatch
from nats_backpressure.runtime.observations import AckSeen, ConsumersReading, Hint, MaxDeliveries, Nak, Terminated

SETTLE_SECONDS = 5.0
"""Seconds for which every reading is written after a change: a hold of that length ends in a replay with the same
reading as in the service."""
IDLE_INTERVAL = 0.5
"""Seconds between two written readings after that, if nothing changes: the service's own tick. What changes with time
alone changes in a replay at most this much later."""
CLOCK_TOLERANCE = 0.05
"""Seconds by which a value that grows with time (since the last ack, age of the oldest message) may differ and still
count as unchanged: replies take different times."""


class _EncodedConsumer(Struct):
    """A consumer as in its last line, and its hints since then."""

    number: int
    sample: Sample
    shown: bool = True
    """Whether the last reading showed it."""
    hints: HintBatch | None = None


class _EncodedStream(Struct):
    """A stream as in its last lines, and its consumers by name."""

    number: int
    look: StreamLook
    looked_at: float
    """Monotonic time at which `look` was written."""
    read_at: float
    """Monotonic time of its last `read` line."""
    changed_at: float
    """Monotonic time of the last change."""
    whole: bool = True
    unread: int = 0
    consumers: dict[str, _EncodedConsumer] = {}
    with_hints: dict[str, None] = {}
    """Consumers with hints that are not written yet."""


class Encoder:
    """One for each file, so that each file can be read alone."""

    def __init__(self) -> None:
        self._streams: dict[str, _EncodedStream] = {}
        self._numbers = itertools.count()
        self._consumer_count = 0
        self.left_out = 0
        """Samples that were not written because there are CONSUMERS_LIMIT other consumers."""

    def encode_reading(self, reading: ConsumersReading, at: Now, origin: tuple[str, ...] = ()) -> list[Line]:
        """The lines of a reading received `at` this moment; none if it need not be written. `origin`: the subjects of
        the stream that this one mirrors."""
        look = replace(reading.look, subjects=reading.look.subjects or origin, consumers=0)
        lines: list[Line] = []
        stream = self._stream(look, at, lines)
        if reading.partial:
            return lines + self._partial_lines(stream, reading, look, at)
        whole, unread = reading.whole, reading.unread
        shown = {sample.key.consumer for sample in reading.samples}
        absent = (name for name in stream.consumers if whole and name not in shown and name not in unread)
        gone = dict.fromkeys(absent)  # a list would be searched once for each of those that went
        out = [name for name, each in stream.consumers.items() if each.shown and name not in shown and name not in gone]
        moved = [sample for sample in reading.samples if _has_moved(stream.consumers.get(sample.key.consumer), sample)]
        same = not lines and same_look(idle_look(stream.look, at.mono - stream.looked_at), look)
        same_coverage = (whole, len(unread)) == (stream.whole, stream.unread)
        if moved or gone or out or stream.with_hints or not same or not same_coverage:
            stream.changed_at = at.mono
        elif at.mono - stream.changed_at >= SETTLE_SECONDS and at.mono - stream.read_at < IDLE_INTERVAL:
            return []
        lines += self._hint_lines(stream)
        for sample in moved:
            lines += self._sample_lines(stream, sample, at)
        lines.append(
            ReadLine(
                stream.number,
                _rounded_time(at),
                None if same else stream_numbers(look),
                tuple(self._mark_not_shown(stream, name, gone=True) for name in gone),
                tuple(self._mark_not_shown(stream, name, gone=False) for name in out),
                not whole,
                unread=len(unread),
            )
        )
        stream.read_at, stream.whole, stream.unread = at.mono, whole, len(unread)
        if not same:
            stream.look, stream.looked_at = look, at.mono
        return lines

    def _partial_lines(
        self, stream: _EncodedStream, reading: ConsumersReading, look: StreamLook, at: Now
    ) -> list[Line]:
        """The lines of a reading of some consumers only: each of them is written, changed or not."""
        same = same_look(idle_look(stream.look, at.mono - stream.looked_at), look)
        lines = self._hint_lines(stream)
        for sample in reading.samples:
            lines += self._sample_lines(stream, sample, at)
        numbers = None if same else stream_numbers(look)
        lines.append(ReadLine(stream.number, _rounded_time(at), numbers, partly=True, only=True))
        stream.changed_at = at.mono
        if not same:
            stream.look, stream.looked_at = look, at.mono
        return lines

    def encode_sample(self, sample: Sample) -> list[Line]:
        """The lines of a consumer that was read alone, outside a reading of its stream."""
        if (stream := self._streams.get(sample.key.stream)) is None:
            return []
        last = stream.consumers.get(sample.key.consumer)
        if last and sample.at.mono - last.sample.at.mono < IDLE_INTERVAL and same_counts(last.sample, sample):
            return []
        return self._hint_lines(stream) + self._sample_lines(stream, sample, None)

    def encode_missing(self, name: str, at: Now) -> list[Line]:
        """The line for a stream that does not exist, according to the server."""
        if stream := self._streams.pop(name, None):
            self._consumer_count -= len(stream.consumers)
        return [MissingLine(name, _rounded_time(at))]

    def add_hint(self, hint: Hint, now: Now) -> list[Line]:
        """Adds a hint; returns the line of the earlier ones if they fill one. Hints about consumers that were never
        read are dropped."""
        match hint:
            case AckSeen() | Nak() | MaxDeliveries() | Terminated() if stream := self._streams.get(hint.key.stream):
                consumer = stream.consumers.get(hint.key.consumer)
            case _:
                return []
        if consumer is None:
            return []
        lines = _take_hints(consumer) if consumer.hints and consumer.hints.is_full(now) else []
        consumer.hints = consumer.hints or HintBatch(now)
        consumer.hints.add(hint, now)
        stream.with_hints[hint.key.consumer] = None
        return lines

    def flush(self) -> list[Line]:
        """The lines of all hints that are not written yet."""
        return [line for stream in self._streams.values() for line in self._hint_lines(stream)]

    def _hint_lines(self, stream: _EncodedStream) -> list[Line]:
        lines = [line for name in stream.with_hints for line in _take_hints(stream.consumers[name])]
        stream.with_hints.clear()
        return lines

    def _stream(self, look: StreamLook, at: Now, lines: list[Line]) -> _EncodedStream:
        """The stream by this name; adds its line if it is new, was created again, or has another configuration."""
        stream = self._streams.get(look.name)
        if stream is not None and stream_identity(stream.look) == stream_identity(look):
            return stream
        if stream is not None:
            self._consumer_count -= len(stream.consumers)
        stream = self._streams[look.name] = _EncodedStream(next(self._numbers), look, at.mono, at.mono, at.mono)
        lines.append(StreamLine(stream.number, look.name, look.created, look.subjects, look.origin, look.retention))
        return stream

    def _sample_lines(self, stream: _EncodedStream, sample: Sample, closing: Now | None) -> list[Line]:
        """The line of a sample, after that of its consumer if it is new or changed. `closing`: the time of the reading
        it belongs to; None if the consumer was read alone."""
        lines: list[Line] = []
        consumer = stream.consumers.get(sample.key.consumer)
        if consumer is None:
            if self._consumer_count >= CONSUMERS_LIMIT:
                self.left_out += 1
                return []
            self._consumer_count += 1
            consumer = stream.consumers[sample.key.consumer] = _EncodedConsumer(
                next(self._numbers), sample, shown=closing is not None
            )
            lines.append(_consumer_line(stream, consumer))
        elif (consumer.sample.created, consumer.sample.config) != (sample.created, sample.config):
            consumer.sample = sample
            lines.append(_consumer_line(stream, consumer))
        consumer.sample = sample
        consumer.shown = consumer.shown or closing is not None
        lines.append(_sample_line(consumer.number, sample, closing))
        return lines

    def _mark_not_shown(self, stream: _EncodedStream, name: str, gone: bool) -> int:
        consumer = stream.consumers[name]
        consumer.shown = False
        if gone:
            del stream.consumers[name]
            self._consumer_count -= 1
        return consumer.number


def _has_moved(consumer: _EncodedConsumer | None, sample: Sample) -> bool:
    if consumer is None or not consumer.shown or not same_counts(consumer.sample, sample):
        return True
    later = idle_sample(consumer.sample, sample.at)
    return not (is_near(later.since_delivery, sample.since_delivery) and is_near(later.since_ack, sample.since_ack))


def same_counts(a: Sample, b: Sample) -> bool:
    # Written out, not generic: this runs for every consumer in every reading.
    return (
        a.pending == b.pending
        and a.inflight == b.inflight
        and a.delivered_stream == b.delivered_stream
        and a.delivered_consumer == b.delivered_consumer
        and a.floor_stream == b.floor_stream
        and a.floor_consumer == b.floor_consumer
        and a.redelivered == b.redelivered
        and a.waiting == b.waiting
        and a.paused == b.paused
        and a.bound == b.bound
        and a.created == b.created
        and a.config == b.config
    )


def same_look(expected: StreamLook, look: StreamLook) -> bool:
    return is_near(expected.oldest_age, look.oldest_age) and replace(expected, oldest_age=look.oldest_age) == look


def is_near(a: float | None, b: float | None) -> bool:
    return a is b if a is None or b is None else abs(a - b) < CLOCK_TOLERANCE


def stream_identity(look: StreamLook) -> tuple[object, ...]:
    return look.name, look.created, look.subjects, look.origin, look.retention


def _take_hints(consumer: _EncodedConsumer) -> list[Line]:
    hints, consumer.hints = consumer.hints, None
    return [hints.to_line(consumer.number)] if hints else []


def _consumer_line(stream: _EncodedStream, consumer: _EncodedConsumer) -> ConsumerLine:
    return ConsumerLine(
        consumer.number, stream.number, consumer.sample.key.consumer, consumer.sample.created, consumer.sample.config
    )


def _sample_line(number: int, sample: Sample, closing: Now | None) -> SampleLine:
    return SampleLine(
        c=number,
        before=round(max(0.0, closing.mono - sample.at.mono), 3) if closing else 0.0,
        at=None if closing else _rounded_time(sample.at),
        pending=sample.pending,
        inflight=sample.inflight,
        redelivered=sample.redelivered,
        waiting=sample.waiting,
        delivered=(sample.delivered_stream, sample.delivered_consumer),
        floor=(sample.floor_stream, sample.floor_consumer),
        since_delivery=_rounded(sample.since_delivery),
        since_ack=_rounded(sample.since_ack),
        paused=sample.paused,
        bound=sample.bound,
    )


def stream_numbers(look: StreamLook) -> StreamNumbers:
    fill = None if look.fill is None else round(look.fill, 4)
    return StreamNumbers(look.first_seq, look.last_seq, look.messages, look.at_limit, fill, _rounded(look.oldest_age))


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(max(0.0, seconds), 3)


def _rounded_time(now: Now) -> At:
    return round(now.mono, 3), round(now.wall, 3)
