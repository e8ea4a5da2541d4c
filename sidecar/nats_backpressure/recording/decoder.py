"""From the lines of a recording back to what was observed, in order and within bounds."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.model import Sample, StreamLook
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.recording.format import (
    CONSUMERS_LIMIT,
    FORMAT,
    At,
    BadRecording,
    Consumer,
    Hinted,
    Line,
    NoRecording,
    ReadDone,
    RecordingBegun,
    Rule,
    Rules,
    Sampled,
    Shape,
    Stream,
    StreamMissing,
    aged,
    still,
)
from nats_backpressure.recording.policies import PoliciesChanged, PolicyLineReader

DISORDER = 1.0
"""Seconds by which a line may come late (hints are written after the newest of them), and clocks may disagree."""
LONGEST_GAP = 10 * 365 * 86_400.0
"""Seconds between two lines beyond which a time is taken for a mistake."""


class Observed(Struct, frozen=True):
    """A reading of a stream: every consumer it showed. `whole`: there are no others but the `unread`."""

    at: Now
    look: StreamLook
    samples: tuple[Sample, ...]
    whole: bool
    unread: frozenset[str] = frozenset()
    """Names of consumers that were shown before, exist, and could not be read."""
    hidden: int = 0
    """How many could not be read, those that were never shown too."""


class SingleSample(Struct, frozen=True):
    """A consumer read by itself."""

    at: Now
    sample: Sample


class StreamAbsent(Struct, frozen=True):
    """The server answered that the stream does not exist."""

    at: Now
    stream: str


class HintsDecoded(Struct, frozen=True):
    """Hints of one consumer; `acks` are seconds, deliveries, and how many such."""

    at: Now
    key: ConsumerKey
    acks: tuple[tuple[float, int, int], ...]
    naks: int
    dropped: int
    """Messages that left in flight without an ack: given up, or terminated."""


Observation = Observed | SingleSample | StreamAbsent | HintsDecoded | PoliciesChanged


class _LastSample(Struct):
    line: Consumer
    key: ConsumerKey
    lane: _DecodedStream
    sample: Sample | None = None
    """The last one told; None until there is one."""
    fresh: bool = False
    """Whether it was told for the reading that is not closed yet."""
    shown: bool = False


class _DecodedStream(Struct):
    line: Stream
    look: StreamLook
    looked: float = 0.0
    consumers: dict[int, _LastSample] = {}


class Decoder:
    """Constant in memory but for what is being watched: CONSUMERS_LIMIT, and as many streams."""

    def __init__(self) -> None:
        self.begun: RecordingBegun | None = None
        """The newest beginning: a recording may have several parts."""
        self.last: Now | None = None
        """The latest moment so far; monotonic time goes on from part to part."""
        self._shift = 0.0
        self._lanes: dict[int, _DecodedStream] = {}
        self._numbers: dict[str, int] = {}
        self._consumers: dict[int, _LastSample] = {}
        self._rules = PolicyLineReader()

    @property
    def longest_interval(self) -> float:
        """The longest time that was let pass between two readings of a stream, in seconds."""
        return self.begun.longest_interval if self.begun else 0.0

    def take(self, line: Line) -> Observation | BadRecording | None:
        """What the line completes; None if that comes with a later one. Raises NoRecording for another format, and
        for more consumers than can be kept in mind."""
        if isinstance(line, RecordingBegun):
            self._begin(line)
            return None
        if self.begun is None:
            raise NoRecording("not a recording: its first line is not a `recording` line")
        match line:
            case Stream():
                self._drop(line.name)
                look = StreamLook(
                    line.name, line.created, 0, 0, 0, line.subjects, origin=line.origin, retention=line.retention
                )
                self._lanes[line.s], self._numbers[line.name] = _DecodedStream(line, look), line.s
                self._check_room()
                return None
            case Consumer():
                return self._introduce(line)
            case Sampled():
                return self._sampled(line)
            case ReadDone():
                return self._read(line)
            case StreamMissing():
                return self._missing(line)
            case Hinted():
                return self._heard(line)
            case Rule():
                return self._rules.take(line)
            case Rules():
                at = self._moment(line.at)
                return at if isinstance(at, BadRecording) else self._rules.done(line, at, self.begun.name)

    def _begin(self, line: RecordingBegun) -> None:
        if line.format > FORMAT:
            raise NoRecording(f"written in format {line.format} by version {line.version}; this one reads {FORMAT}")
        mono, wall = line.at
        if self.last is not None:
            # Monotonic clocks begin anew with a machine: what lies between two parts is told by the other clock.
            follows = self.last.mono + min(max(0.0, wall - self.last.wall), LONGEST_GAP)
            if abs(follows - (mono + self._shift)) > DISORDER:
                self._shift = follows - mono
        self.begun, self.last = line, Now(mono + self._shift, wall)
        self._lanes, self._numbers, self._consumers, self._rules = {}, {}, {}, PolicyLineReader()

    def _introduce(self, line: Consumer) -> BadRecording | None:
        if (lane := self._lanes.get(line.s)) is None:
            return BadRecording(f"stream {line.s} was not introduced")
        if (kept := self._consumers.get(line.c)) is not None and kept.lane is lane:
            kept.line = line
            return None
        kept = _LastSample(line, ConsumerKey(lane.line.name, line.name), lane)
        self._consumers[line.c] = lane.consumers[line.c] = kept
        self._check_room()
        return None

    def _sampled(self, line: Sampled) -> Observation | BadRecording | None:
        if (kept := self._consumers.get(line.c)) is None:
            return BadRecording(f"consumer {line.c} was not introduced")
        if line.at is None:
            # When it was is known with the line that closes the reading.
            kept.sample, kept.fresh = _sample(kept, line, Now(-line.before, -line.before)), True
            return None
        at = self._moment(line.at)
        if isinstance(at, BadRecording):
            return at
        kept.sample = _sample(kept, line, at)
        return SingleSample(at, kept.sample)

    def _read(self, line: ReadDone) -> Observation | BadRecording:
        if (lane := self._lanes.get(line.s)) is None:
            return BadRecording(f"stream {line.s} was not introduced")
        at = self._moment(line.at)
        if isinstance(at, BadRecording):
            return at
        if line.look is not None:
            lane.look, lane.looked = _look(lane, line.look), at.mono
        for number in line.out:
            if kept := lane.consumers.get(number):
                kept.shown = False
        for number in line.left:
            lane.consumers.pop(number, None)
            self._consumers.pop(number, None)
        shown = tuple(_shown(kept, at) for kept in lane.consumers.values() if kept.fresh or kept.shown)
        unread = frozenset(kept.key.consumer for kept in lane.consumers.values() if not kept.shown)
        look = aged(lane.look, at.mono - lane.looked)
        return Observed(at, look, shown, not line.partly, unread, line.unread)

    def _missing(self, line: StreamMissing) -> Observation | BadRecording:
        at = self._moment(line.at)
        if isinstance(at, BadRecording):
            return at
        self._drop(line.name)
        return StreamAbsent(at, line.name)

    def _heard(self, line: Hinted) -> Observation | BadRecording:
        if (kept := self._consumers.get(line.c)) is None:
            return BadRecording(f"consumer {line.c} was not introduced")
        at = self._moment(line.at)
        if isinstance(at, BadRecording):
            return at
        return HintsDecoded(at, kept.key, line.acks, line.naks, line.max_deliveries + line.terminated)

    def _moment(self, at: At) -> Now | BadRecording:
        assert self.last is not None, "a recording has begun"
        now = Now(at[0] + self._shift, at[1])
        ahead = now.mono - self.last.mono
        if ahead < -DISORDER:
            return BadRecording(f"goes back in time by {-ahead:.1f} s")
        if ahead > LONGEST_GAP:
            return BadRecording(f"lies {ahead / 86_400:,.0f} days ahead of the line before")
        if ahead > 0:
            self.last = now
        return now

    def _drop(self, stream: str) -> None:
        if (lane := self._lanes.pop(self._numbers.pop(stream, -1), None)) is not None:
            for number in lane.consumers:
                self._consumers.pop(number, None)

    def _check_room(self) -> None:
        if max(len(self._consumers), len(self._lanes)) > CONSUMERS_LIMIT:
            raise NoRecording(f"more than {CONSUMERS_LIMIT:,} streams or consumers at a time")


def _shown(kept: _LastSample, at: Now) -> Sample:
    """A consumer in the reading that closes `at` this moment."""
    assert kept.sample is not None, "shown or fresh: it has a sample"
    kept.shown = True
    if not kept.fresh:
        return still(kept.sample, at)
    kept.fresh = False
    before = kept.sample.at
    kept.sample = replace(kept.sample, at=Now(at.mono + before.mono, at.wall + before.wall))
    return kept.sample


def _sample(kept: _LastSample, line: Sampled, at: Now) -> Sample:
    return Sample(
        key=kept.key,
        created=kept.line.created,
        config=kept.line.config,
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


def _look(lane: _DecodedStream, shape: Shape) -> StreamLook:
    return replace(
        lane.look,
        first_seq=shape.first,
        last_seq=shape.last,
        messages=shape.messages,
        at_limit=shape.at_limit,
        fill=shape.fill,
        oldest_age=shape.oldest_age,
    )
