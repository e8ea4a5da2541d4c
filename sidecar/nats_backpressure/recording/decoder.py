"""Decodes the lines of a recording into observations, in order and within limits."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.model.samples import Sample, StreamLook
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.recording.format import (
    CONSUMERS_LIMIT,
    FORMAT,
    At,
    BadLine,
    ConsumerLine,
    HeaderLine,
    HintsLine,
    Line,
    MissingLine,
    PoliciesLine,
    PolicyLine,
    ReadLine,
    SampleLine,
    StreamLine,
    StreamNumbers,
    UnreadableRecording,
    idle_look,
    idle_sample,
)
from nats_backpressure.recording.policies import PoliciesDecoded, PolicyLineReader

DISORDER = 1.0
"""Seconds by which a line may be late (hints are written after the newest of them), and the clocks may differ."""
LONGEST_GAP = 10 * 365 * 86_400.0
"""Seconds between two lines; a longer gap is a mistake in the file."""


class ReadingDecoded(Struct, frozen=True):
    """A reading of a stream, with every consumer it showed. `whole`: there are no others except the `unread`."""

    at: Now
    look: StreamLook
    samples: tuple[Sample, ...]
    whole: bool
    unread: frozenset[str] = frozenset()
    """Names of consumers that were shown before, and now exist but could not be read."""
    hidden: int = 0
    """Number of consumers that could not be read, including those never shown."""
    partial: bool = False
    """Whether only some consumers were asked for."""


class SampleDecoded(Struct, frozen=True):
    """A consumer that was read alone."""

    at: Now
    sample: Sample


class StreamAbsenceDecoded(Struct, frozen=True):
    """The server answered that the stream does not exist."""

    at: Now
    stream: str


class HintsDecoded(Struct, frozen=True):
    """Hints of one consumer; `acks` are seconds, deliveries, and the number of such acks."""

    at: Now
    key: ConsumerKey
    acks: tuple[tuple[float, int, int], ...]
    naks: int
    dropped: int
    """Messages that left in flight without an ack: delivered too often, or terminated."""


Observation = ReadingDecoded | SampleDecoded | StreamAbsenceDecoded | HintsDecoded | PoliciesDecoded


class _DecodedConsumer(Struct):
    line: ConsumerLine
    key: ConsumerKey
    stream: _DecodedStream
    sample: Sample | None = None
    """The last one decoded; None until there is one."""
    in_open_reading: bool = False
    """Whether it belongs to the reading that is not closed yet."""
    shown: bool = False
    """Whether the last reading showed it."""


class _DecodedStream(Struct):
    line: StreamLine
    look: StreamLook
    looked_at: float = 0.0
    consumers: dict[int, _DecodedConsumer] = {}


class Decoder:
    """Its memory depends only on what is watched: at most CONSUMERS_LIMIT consumers, and as many streams."""

    def __init__(self) -> None:
        self.header: HeaderLine | None = None
        """The header of the current part: a recording may have several."""
        self.latest: Now | None = None
        """The latest time so far; monotonic time continues from part to part."""
        self._shift = 0.0
        self._streams: dict[int, _DecodedStream] = {}
        self._numbers: dict[str, int] = {}
        self._consumers: dict[int, _DecodedConsumer] = {}
        self._policies = PolicyLineReader()

    @property
    def longest_interval(self) -> float:
        """The longest planned time between two readings of a stream, in seconds."""
        return self.header.longest_interval if self.header else 0.0

    def decode(self, line: Line) -> Observation | BadLine | None:
        """The observation that the line completes; None if a later line does. Raises UnreadableRecording for another
        format, and for more than CONSUMERS_LIMIT consumers."""
        if isinstance(line, HeaderLine):
            self._start_part(line)
            return None
        if self.header is None:
            raise UnreadableRecording("not a recording: its first line is not a `recording` line")
        match line:
            case StreamLine():
                self._remove_stream(line.name)
                look = StreamLook(
                    line.name, line.created, 0, 0, 0, line.subjects, origin=line.origin, retention=line.retention
                )
                self._streams[line.s], self._numbers[line.name] = _DecodedStream(line, look), line.s
                self._check_limit()
                return None
            case ConsumerLine():
                return self._decode_consumer(line)
            case SampleLine():
                return self._decode_sample(line)
            case ReadLine():
                return self._decode_reading(line)
            case MissingLine():
                return self._decode_missing(line)
            case HintsLine():
                return self._decode_hints(line)
            case PolicyLine():
                return self._policies.decode(line)
            case PoliciesLine():
                at = self._time_of(line.at)
                return at if isinstance(at, BadLine) else self._policies.finish(line, at, self.header.name)

    def _start_part(self, line: HeaderLine) -> None:
        if line.format > FORMAT:
            raise UnreadableRecording(
                f"written in format {line.format} by version {line.version}; this one reads {FORMAT}"
            )
        mono, wall = line.at
        if self.latest is not None:
            # A monotonic clock starts again with the machine: the time between two parts comes from the wall clock.
            follows = self.latest.mono + min(max(0.0, wall - self.latest.wall), LONGEST_GAP)
            if abs(follows - (mono + self._shift)) > DISORDER:
                self._shift = follows - mono
        self.header, self.latest = line, Now(mono + self._shift, wall)
        self._streams, self._numbers, self._consumers, self._policies = {}, {}, {}, PolicyLineReader()

    def _decode_consumer(self, line: ConsumerLine) -> BadLine | None:
        if (stream := self._streams.get(line.s)) is None:
            return BadLine(f"stream {line.s} has no line before this one")
        if (consumer := self._consumers.get(line.c)) is not None and consumer.stream is stream:
            consumer.line = line
            return None
        consumer = _DecodedConsumer(line, ConsumerKey(stream.line.name, line.name), stream)
        self._consumers[line.c] = stream.consumers[line.c] = consumer
        self._check_limit()
        return None

    def _decode_sample(self, line: SampleLine) -> Observation | BadLine | None:
        if (consumer := self._consumers.get(line.c)) is None:
            return BadLine(f"consumer {line.c} has no line before this one")
        if line.at is None:
            # Its time is known when the line that closes the reading is decoded.
            consumer.sample = to_sample(consumer.key, consumer.line, line, Now(-line.before, -line.before))
            consumer.in_open_reading = True
            return None
        at = self._time_of(line.at)
        if isinstance(at, BadLine):
            return at
        consumer.sample = to_sample(consumer.key, consumer.line, line, at)
        return SampleDecoded(at, consumer.sample)

    def _decode_reading(self, line: ReadLine) -> Observation | BadLine:
        if (stream := self._streams.get(line.s)) is None:
            return BadLine(f"stream {line.s} has no line before this one")
        at = self._time_of(line.at)
        if isinstance(at, BadLine):
            return at
        if line.look is not None:
            stream.look, stream.looked_at = with_numbers(stream.look, line.look), at.mono
        for number in line.out:
            if consumer := stream.consumers.get(number):
                consumer.shown = False
        for number in line.left:
            stream.consumers.pop(number, None)
            self._consumers.pop(number, None)
        read = (each for each in stream.consumers.values() if each.in_open_reading or (each.shown and not line.only))
        shown = tuple(_closed_sample(each, at) for each in read)
        unread = frozenset(consumer.key.consumer for consumer in stream.consumers.values() if not consumer.shown)
        look = idle_look(stream.look, at.mono - stream.looked_at)
        return ReadingDecoded(at, look, shown, not line.partly, unread, line.unread, line.only)

    def _decode_missing(self, line: MissingLine) -> Observation | BadLine:
        at = self._time_of(line.at)
        if isinstance(at, BadLine):
            return at
        self._remove_stream(line.name)
        return StreamAbsenceDecoded(at, line.name)

    def _decode_hints(self, line: HintsLine) -> Observation | BadLine:
        if (consumer := self._consumers.get(line.c)) is None:
            return BadLine(f"consumer {line.c} has no line before this one")
        at = self._time_of(line.at)
        if isinstance(at, BadLine):
            return at
        return HintsDecoded(at, consumer.key, line.acks, line.naks, line.max_deliveries + line.terminated)

    def _time_of(self, at: At) -> Now | BadLine:
        assert self.latest is not None, "a header was decoded"
        now = Now(at[0] + self._shift, at[1])
        ahead = now.mono - self.latest.mono
        if ahead < -DISORDER:
            return BadLine(f"goes back in time by {-ahead:.1f} s")
        if ahead > LONGEST_GAP:
            return BadLine(f"is {ahead / 86_400:,.0f} days later than the line before")
        if ahead > 0:
            self.latest = now
        return now

    def _remove_stream(self, name: str) -> None:
        if (stream := self._streams.pop(self._numbers.pop(name, -1), None)) is not None:
            for number in stream.consumers:
                self._consumers.pop(number, None)

    def _check_limit(self) -> None:
        if max(len(self._consumers), len(self._streams)) > CONSUMERS_LIMIT:
            raise UnreadableRecording(f"more than {CONSUMERS_LIMIT:,} streams or consumers at a time")


def _closed_sample(consumer: _DecodedConsumer, at: Now) -> Sample:
    """The sample of a consumer in the reading that closes at this time."""
    assert consumer.sample is not None, "a shown consumer has a sample"
    consumer.shown = True
    if not consumer.in_open_reading:
        return idle_sample(consumer.sample, at)
    consumer.in_open_reading = False
    before = consumer.sample.at
    consumer.sample = replace(consumer.sample, at=Now(at.mono + before.mono, at.wall + before.wall))
    return consumer.sample


def to_sample(key: ConsumerKey, consumer: ConsumerLine, line: SampleLine, at: Now) -> Sample:
    """The sample of a line."""
    return Sample(
        key=key,
        created=consumer.created,
        config=consumer.config,
        at=at,
        pending=line.pending,
        inflight=line.inflight,
        redelivered=line.redelivered,
        waiting=line.waiting,
        delivered_stream=line.delivered[0],
        delivered_consumer=line.delivered[1],
        floor_stream=line.floor[0],
        floor_consumer=line.floor[1],
        since_delivery=line.since_delivery,
        since_ack=line.since_ack,
        paused=line.paused,
        bound=line.bound,
    )


def with_numbers(look: StreamLook, numbers: StreamNumbers) -> StreamLook:
    """The look at the stream when it had these numbers."""
    return replace(
        look,
        first_seq=numbers.first,
        last_seq=numbers.last,
        messages=numbers.messages,
        at_limit=numbers.at_limit,
        fill=numbers.fill,
        oldest_age=numbers.oldest_age,
    )
