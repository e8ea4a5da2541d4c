"""Encodes what a replica reads as messages for the others: what changed since the last message, and at times all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.model.samples import Sample, StreamLook
from nats_backpressure.core.reading.sharing import Position
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.recording.broadcast_format import (
    VERSION,
    BodyLine,
    BroadcastLine,
    ListLine,
    LookLine,
    encode_message,
)
from nats_backpressure.recording.encoder import is_near, same_counts, same_look, stream_identity, stream_numbers
from nats_backpressure.recording.format import (
    ConsumerLine,
    ReadLine,
    SampleLine,
    StreamLine,
    StreamNumbers,
    idle_look,
    idle_sample,
)
from nats_backpressure.runtime.observations import ConsumersReading, StreamsReading


class Asked(Struct, frozen=True):
    """What must be known of a reading beside what it showed."""

    at: float
    """Monotonic time at which it was asked for."""
    base: StreamLook | None = None
    """The newest look at the stream that was answered before."""


class _Messages:
    """The numbers of the messages about one stream, and when they are whole."""

    def __init__(self, sender: str, whole_every: float) -> None:
        self._sender, self._whole_every = sender, whole_every
        self._n = self._rests = -1
        self._whole_at: float | None = None
        self.whole_wanted = False

    def begin(self, now: float, *, shows_all: bool) -> bool:
        """Begin a message that may be whole; returns whether it is. One that shows only a part is so later than one
        that shows all."""
        every = self._whole_every if shows_all else 2 * self._whole_every
        whole = self.whole_wanted or self._whole_at is None or now - self._whole_at >= every
        self.begin_part()
        if whole:
            self._rests, self._whole_at, self.whole_wanted = self._n, now, False
        return whole

    def begin_part(self) -> None:
        """Begin a message that is not whole."""
        self._n += 1

    def header(self, sent: float, position: Position) -> BroadcastLine:
        return BroadcastLine(
            VERSION, self._sender, sent, self._n, self._rests, writes=position.writes, settled=position.settled
        )


class _Written(Struct):
    """A consumer as in its last line."""

    number: int
    sample: Sample


class ReadingEncoder:
    """Encodes the readings of one stream. `whole_every`: seconds between two whole messages."""

    def __init__(self, sender: str, whole_every: float) -> None:
        self.messages = _Messages(sender, whole_every)
        self._look: StreamLook | None = None
        self._looked_at = 0.0
        self._consumers: dict[str, _Written] = {}
        self._numbers = count()

    def reading(self, reading: ConsumersReading, asked: Asked, position: Position, now: Now) -> list[bytes]:
        """The chunks of a reading that was answered `now`."""
        look = reading.look
        if self._look is None or stream_identity(self._look) != stream_identity(look):
            self.messages.whole_wanted = True
        lines: list[BodyLine] = []
        if self.messages.begin(now.mono, shows_all=not reading.partial):
            self._start(look, now, lines)
        elif not same_look(idle_look(self._look or look, now.mono - self._looked_at), look):
            self._write_look(look, now, lines)
        lines += self._samples(reading, now)
        header = replace(
            self.messages.header(now.mono, position),
            asked=asked.at,
            first=min((sample.at.mono for sample in reading.samples), default=now.mono),
            took=reading.took,
            complete=reading.complete,
            partial=reading.partial,
            unnamed=reading.unnamed,
            missing=reading.missing,
            malformed=reading.malformed,
            base=self._base(asked),
        )
        return encode_message(header, lines)

    def sample(self, sample: Sample, asked: Asked, position: Position, now: Now) -> list[bytes]:
        """The chunks of a consumer that was read alone; none before a reading of its stream, which it rests on."""
        if self._look is None or self.messages.whole_wanted:
            return []
        self.messages.begin_part()
        header = replace(
            self.messages.header(now.mono, position), asked=asked.at, first=sample.at.mono, base=self._base(asked)
        )
        return encode_message(header, self._sample_lines(sample, None))

    def _base(self, asked: Asked) -> StreamNumbers | None:
        if asked.base is None or self._look is None or stream_identity(asked.base) != stream_identity(self._look):
            return None
        return stream_numbers(asked.base)

    def _start(self, look: StreamLook, now: Now, lines: list[BodyLine]) -> None:
        self._consumers, self._numbers = {}, count()
        lines.append(StreamLine(0, look.name, look.created, look.subjects, look.origin, look.retention))
        self._write_look(look, now, lines)

    def _write_look(self, look: StreamLook, now: Now, lines: list[BodyLine]) -> None:
        self._look, self._looked_at = look, now.mono
        lines.append(LookLine(0, stream_numbers(look), look.consumers))

    def _samples(self, reading: ConsumersReading, now: Now) -> Iterable[BodyLine]:
        """The lines of the samples, and the end of the reading. A consumer that is not shown is dropped: it has a line
        of its own when it is shown again."""
        left: list[int] = []
        if not reading.partial:
            shown = {sample.key.consumer for sample in reading.samples}
            gone = [name for name in self._consumers if name not in shown]
            left = [self._consumers.pop(name).number for name in gone]
        for sample in reading.samples:
            written = self._consumers.get(sample.key.consumer)
            if reading.partial or written is None or _has_moved(written.sample, sample):
                yield from self._sample_lines(sample, now)
        yield ReadLine(0, (now.mono, now.wall), left=tuple(left), only=reading.partial)

    def _sample_lines(self, sample: Sample, closing: Now | None) -> list[BodyLine]:
        """The line of a sample, after that of its consumer if it is new or changed. `closing`: the time of the reading
        it belongs to; None if the consumer was read alone."""
        written, lines = self._consumers.get(sample.key.consumer), list[BodyLine]()
        if written is None:
            written = self._consumers[sample.key.consumer] = _Written(next(self._numbers), sample)
            lines.append(_consumer_line(written))
        elif (written.sample.created, written.sample.config) != (sample.created, sample.config):
            written.sample = sample
            lines.append(_consumer_line(written))
        written.sample = sample
        lines.append(_sample_line(written.number, sample, closing))
        return lines


class ListEncoder:
    """Encodes lists of streams, and looks at single ones."""

    def __init__(self, sender: str, whole_every: float) -> None:
        self.messages = _Messages(sender, whole_every)
        self._streams: dict[str, tuple[int, StreamLook, float]] = {}
        """The number of each, its last look that was written, and when that was."""
        self._numbers = count()

    def look(self, reading: StreamsReading, asked: Asked, position: Position, now: Now) -> list[bytes]:
        """The chunks of a look at a single stream; none before a list, which it rests on."""
        if not self._streams or self.messages.whole_wanted:
            return []
        self.messages.begin_part()
        return self._message(reading, asked, position, now, ListLine(only=True))

    def streams(self, reading: StreamsReading, asked: Asked, position: Position, now: Now) -> list[bytes]:
        """The chunks of a list of streams that was answered `now`."""
        if self.messages.begin(now.mono, shows_all=True):
            self._streams, self._numbers = {}, count()
        shown = {look.name for look in reading.looks}
        gone = [name for name in self._streams if name not in shown]
        left = tuple(self._streams.pop(name)[0] for name in gone)
        return self._message(reading, asked, position, now, ListLine(left))

    def _message(
        self, reading: StreamsReading, asked: Asked, position: Position, now: Now, end: ListLine
    ) -> list[bytes]:
        lines = [line for look in reading.looks for line in self._look_lines(look, now, end.only)]
        lines.append(end)
        header = replace(
            self.messages.header(now.mono, position),
            asked=asked.at,
            first=now.mono,
            took=reading.took,
            complete=reading.complete,
        )
        return encode_message(header, lines)

    def _look_lines(self, look: StreamLook, now: Now, always: bool) -> Sequence[BodyLine]:
        written = self._streams.get(look.name)
        lines: list[BodyLine] = []
        if written is None or stream_identity(written[1]) != stream_identity(look):
            number = next(self._numbers) if written is None else written[0]
            lines.append(StreamLine(number, look.name, look.created, look.subjects, look.origin, look.retention))
        else:
            number, before, at = written
            if not always and same_look(idle_look(before, now.mono - at), look):
                return ()
        self._streams[look.name] = number, look, now.mono
        lines.append(LookLine(number, stream_numbers(look), look.consumers))
        return lines


def _has_moved(last: Sample, sample: Sample) -> bool:
    if not same_counts(last, sample):
        return True
    later = idle_sample(last, sample.at)
    return not (is_near(later.since_delivery, sample.since_delivery) and is_near(later.since_ack, sample.since_ack))


def _consumer_line(written: _Written) -> ConsumerLine:
    sample = written.sample
    return ConsumerLine(written.number, 0, sample.key.consumer, sample.created, sample.config)


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
