"""Encodes what a replica reads as messages for the others: what changed since the last message, and at times all.

A message that is not encoded and sent to its end makes `messages.whole_wanted` necessary: the next one must be whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.model.samples import Sample, StreamLook
from nats_backpressure.core.reading.sharing import Position
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.recording.broadcast_format import (
    NAMES_IN_LINE,
    BroadcastMessage,
    LookLine,
    TooLong,
    UnreadLine,
    encode_line,
    stream_line,
)
from nats_backpressure.recording.broadcast_numbers import AskedFor, MessageNumbers
from nats_backpressure.recording.encoder import is_near, same_counts, same_look, stream_identity, stream_numbers
from nats_backpressure.recording.format import (
    ConsumerLine,
    ReadLine,
    SampleLine,
    StreamNumbers,
    idle_look,
    idle_sample,
)
from nats_backpressure.runtime.observations import ConsumersReading

PAUSE_AFTER = 50
"""Consumers or streams after which there is a place to pause."""
PAUSE = b""


class _SentConsumer(Struct):
    """A consumer as in its last line."""

    number: int
    sample: Sample


class ReadingEncoder:
    """Encodes the readings of one stream. `whole_every`: seconds between two whole messages; `first`: the number of the
    first message, above those of any encoder of the stream that the process had before."""

    def __init__(self, sender: str, whole_every: float, first: int = 0) -> None:
        self.messages = MessageNumbers(sender, whole_every, first)
        self._look: StreamLook | None = None
        self._looked_at = 0.0
        self._consumers: dict[str, _SentConsumer] = {}
        self._numbers = count()

    def reading(self, reading: ConsumersReading, asked: AskedFor, position: Position, now: Now) -> BroadcastMessage:
        """A reading that was answered `now`. Raises TooLong."""
        look = reading.look
        if self._look is None or stream_identity(self._look) != stream_identity(look):
            self.messages.whole_wanted = True
        lines: list[bytes] = []
        if self.messages.begin(now.mono, shows_all=not reading.partial):
            self._consumers, self._numbers = {}, count()
            lines = [encode_line(stream_line(0, look)), self._look_line(look, now)]
        elif not same_look(idle_look(self._look or look, now.mono - self._looked_at), look):
            lines = [self._look_line(look, now)]
        header = replace(
            self.messages.header(asked, position, now.mono),
            first=min((sample.at.mono for sample in reading.samples), default=now.mono),
            took=reading.took,
            trip=reading.trip,
            complete=reading.complete,
            partial=reading.partial,
            unnamed=reading.unnamed,
            base=self._base(asked),
        )
        return BroadcastMessage(header, self._lines(lines, reading, now))

    def sample(self, sample: Sample, asked: AskedFor, position: Position, now: Now) -> BroadcastMessage | None:
        """A consumer that was read alone; None before a reading of its stream, which it rests on."""
        if self._look is None or self.messages.whole_wanted:
            return None
        self.messages.begin_part()
        header = self.messages.header(asked, position, now.mono)
        header = replace(header, first=sample.at.mono, base=self._base(asked))
        return BroadcastMessage(header, iter(self._sample_lines(sample, None)))

    def _base(self, asked: AskedFor) -> StreamNumbers | None:
        if asked.base is None or self._look is None or stream_identity(asked.base) != stream_identity(self._look):
            return None
        return stream_numbers(asked.base)

    def _look_line(self, look: StreamLook, now: Now) -> bytes:
        self._look, self._looked_at = look, now.mono
        return encode_line(LookLine(0, stream_numbers(look), look.consumers))

    def _lines(self, begin: Sequence[bytes], reading: ConsumersReading, now: Now) -> Iterator[bytes]:
        """Those at the beginning, those of the samples, and the end of the reading. A consumer that is not shown is
        dropped: it has a line of its own when it is shown again."""
        yield from begin
        left = [] if reading.partial else self._drop_others(reading.samples)
        too_long: list[str] = []
        for n, sample in enumerate(reading.samples, 1):
            written = self._consumers.get(sample.key.consumer)
            if reading.partial or written is None or _has_moved(written.sample, sample):
                try:
                    yield from self._sample_lines(sample, now)
                except TooLong:
                    too_long.append(sample.key.consumer)
                    if written is not None:
                        left.append(self._consumers.pop(sample.key.consumer).number)
            if n % PAUSE_AFTER == 0:
                yield PAUSE
        yield from _unread_lines((*reading.missing, *too_long), reading.malformed)
        yield encode_line(ReadLine(0, (now.mono, now.wall), left=tuple(left), only=reading.partial))

    def _drop_others(self, samples: Sequence[Sample]) -> list[int]:
        """Drop all consumers that are not shown; returns their numbers."""
        shown = {sample.key.consumer for sample in samples}
        gone = [name for name in self._consumers if name not in shown]
        return [self._consumers.pop(name).number for name in gone]

    def _sample_lines(self, sample: Sample, closing: Now | None) -> list[bytes]:
        """The line of a sample, after that of its consumer if it is new or changed. `closing`: the time of the reading
        it belongs to; None if the consumer was read alone. Raises TooLong; the consumer has no line then."""
        name, lines = sample.key.consumer, list[bytes]()
        if (written := self._consumers.get(name)) is None:
            written = _SentConsumer(next(self._numbers), sample)
            lines.append(_consumer_line(written))
            self._consumers[name] = written
        elif (written.sample.created, written.sample.config) != (sample.created, sample.config):
            written.sample = sample
            lines.append(_consumer_line(written))
        written.sample = sample
        lines.append(encode_line(_sample_line(written.number, sample, closing)))
        return lines


def _unread_lines(missing: Sequence[str], malformed: Sequence[str]) -> Iterator[bytes]:
    for at in range(0, max(len(missing), len(malformed)), NAMES_IN_LINE):
        until = at + NAMES_IN_LINE
        yield encode_line(UnreadLine(tuple(missing[at:until]), tuple(malformed[at:until])))


def _has_moved(last: Sample, sample: Sample) -> bool:
    if not same_counts(last, sample):
        return True
    later = idle_sample(last, sample.at)
    return not (is_near(later.since_delivery, sample.since_delivery) and is_near(later.since_ack, sample.since_ack))


def _consumer_line(written: _SentConsumer) -> bytes:
    sample = written.sample
    return encode_line(ConsumerLine(written.number, 0, sample.key.consumer, sample.created, sample.config))


def _sample_line(number: int, sample: Sample, closing: Now | None) -> SampleLine:
    return SampleLine(
        c=number,
        before=round(max(0.0, closing.mono - sample.at.mono), 6) if closing else 0.0,
        at=None if closing else (sample.at.mono, sample.at.wall),
        pending=sample.pending,
        inflight=sample.inflight,
        redelivered=sample.redelivered,
        waiting=sample.waiting,
        delivered=(sample.delivered_stream, sample.delivered_consumer),
        floor=(sample.floor_stream, sample.floor_consumer),
        since_delivery=sample.since_delivery,
        since_ack=sample.since_ack,
        paused=sample.paused,
        bound=sample.bound,
    )
