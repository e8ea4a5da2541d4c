"""From what is observed to the lines of a recording; what did not move is not written again."""

from __future__ import annotations

import itertools

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.model import Sample, StreamLook
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.recording.format import (
    CONSUMERS_LIMIT,
    At,
    Consumer,
    Line,
    ReadDone,
    Sampled,
    Shape,
    Stream,
    StreamMissing,
    aged,
    still,
)
from nats_backpressure.recording.hint_batch import HintBatch
from nats_backpressure.runtime.observations import AckSeen, ConsumersReading, Hint, MaxDeliveries, Nak, Terminated

SETTLED = 5.0
"""Seconds for which every reading is written after a stream moved: holds of that length end in a replay with the very
reading they ended with."""
STILL_EVERY = 0.5
"""Seconds after which a reading that showed nothing new is written from then on: as often as the service looks at the
time. What time alone moves is moved in a replay this much later at most."""
SLACK = 0.05
"""Seconds by which what grows with the clock (since the last ack, age of the oldest message) may differ and still count
as unmoved: replies take different times."""


class _LastSample(Struct):
    """A consumer as its last line told it, and what was heard of it since."""

    number: int
    sample: Sample
    shown: bool = True
    """Whether the last reading showed it."""
    hints: HintBatch | None = None


class _EncodedStream(Struct):
    """A stream as its last lines told it; its consumers by name."""

    number: int
    look: StreamLook
    looked: float
    """Monotonic time at which `look` was told."""
    read: float
    """Monotonic time of its last `read` line."""
    moved: float
    """Monotonic time at which there was news of it."""
    whole: bool = True
    unread: int = 0
    consumers: dict[str, _LastSample] = {}
    heard: dict[str, None] = {}
    """Consumers with hints that are not written yet."""


class Encoder:
    """Begun anew for every file, so that each can be read alone."""

    def __init__(self) -> None:
        self._lanes: dict[str, _EncodedStream] = {}
        self._numbers = itertools.count()
        self._kept = 0
        self.left_out = 0
        """Samples that were not written, because CONSUMERS_LIMIT other consumers are kept in mind."""

    def reading(self, reading: ConsumersReading, at: Now, origin: tuple[str, ...] = ()) -> list[Line]:
        """The lines of a reading that came `at` this moment, none if it need not be written; `origin` are the subjects
        of the stream that this one mirrors."""
        look = reading.look if reading.look.subjects else replace(reading.look, subjects=origin)
        told: list[Line] = []
        lane = self._lane(look, at, told)
        whole, unread = reading.whole, reading.unread
        shown = {sample.key.consumer for sample in reading.samples}
        left = [name for name in lane.consumers if whole and name not in shown and name not in unread]
        out = [name for name, kept in lane.consumers.items() if kept.shown and name not in shown and name not in left]
        moved = [sample for sample in reading.samples if _moved(lane.consumers.get(sample.key.consumer), sample)]
        same = not told and _same(aged(lane.look, at.mono - lane.looked), look)
        news = moved or left or out or lane.heard or not same or (whole, len(unread)) != (lane.whole, lane.unread)
        if news:
            lane.moved = at.mono
        elif at.mono - lane.moved >= SETTLED and at.mono - lane.read < STILL_EVERY:
            return []
        told += self._heard(lane)
        for sample in moved:
            told += self._sample(lane, sample, at)
        told.append(
            ReadDone(
                lane.number,
                _at(at),
                None if same else _shape(look),
                tuple(self._lack(lane, name, gone=True) for name in left),
                tuple(self._lack(lane, name, gone=False) for name in out),
                not whole,
                len(unread),
            )
        )
        lane.read, lane.whole, lane.unread = at.mono, whole, len(unread)
        if not same:
            lane.look, lane.looked = look, at.mono
        return told

    def single(self, sample: Sample) -> list[Line]:
        """The lines of a consumer read by itself, outside a reading of its stream."""
        if (lane := self._lanes.get(sample.key.stream)) is None:
            return []
        kept = lane.consumers.get(sample.key.consumer)
        if kept and sample.at.mono - kept.sample.at.mono < STILL_EVERY and _same_counts(kept.sample, sample):
            return []
        return self._heard(lane) + self._sample(lane, sample, None)

    def missing(self, stream: str, at: Now) -> list[Line]:
        """The line of a stream that the server says does not exist."""
        if lane := self._lanes.pop(stream, None):
            self._kept -= len(lane.consumers)
        return [StreamMissing(stream, _at(at))]

    def hint(self, hint: Hint, now: Now) -> list[Line]:
        """The line of what was heard before, once that fills one. What concerns no consumer we read is left out."""
        match hint:
            case AckSeen() | Nak() | MaxDeliveries() | Terminated() if lane := self._lanes.get(hint.key.stream):
                kept = lane.consumers.get(hint.key.consumer)
            case _:
                return []
        if kept is None:
            return []
        told = _heard(kept) if kept.hints and kept.hints.full(now) else []
        kept.hints = kept.hints or HintBatch(now)
        kept.hints.add(hint, now)
        lane.heard[hint.key.consumer] = None
        return told

    def flush(self) -> list[Line]:
        """The lines of all that was heard and is not written yet."""
        return [line for lane in self._lanes.values() for line in self._heard(lane)]

    def _heard(self, lane: _EncodedStream) -> list[Line]:
        told = [line for name in lane.heard for line in _heard(lane.consumers[name])]
        lane.heard.clear()
        return told

    def _lane(self, look: StreamLook, at: Now, told: list[Line]) -> _EncodedStream:
        """The stream's, introduced if it is new, another incarnation, or configured otherwise."""
        lane = self._lanes.get(look.name)
        if lane is not None and _identity(lane.look) == _identity(look):
            return lane
        if lane is not None:
            self._kept -= len(lane.consumers)
        lane = self._lanes[look.name] = _EncodedStream(next(self._numbers), look, at.mono, at.mono, at.mono)
        told.append(Stream(lane.number, look.name, look.created, look.subjects, look.origin, look.retention))
        return lane

    def _sample(self, lane: _EncodedStream, sample: Sample, closing: Now | None) -> list[Line]:
        """The line of a sample in the reading that closes then, or of one by itself; its consumer is introduced."""
        told: list[Line] = []
        kept = lane.consumers.get(sample.key.consumer)
        if kept is None:
            if self._kept >= CONSUMERS_LIMIT:
                self.left_out += 1
                return []
            self._kept += 1
            kept = lane.consumers[sample.key.consumer] = _LastSample(
                next(self._numbers), sample, shown=closing is not None
            )
            told.append(_consumer(lane, kept))
        elif (kept.sample.created, kept.sample.config) != (sample.created, sample.config):
            kept.sample = sample
            told.append(_consumer(lane, kept))
        kept.sample = sample
        kept.shown = kept.shown or closing is not None
        told.append(_sampled(kept.number, sample, closing))
        return told

    def _lack(self, lane: _EncodedStream, name: str, gone: bool) -> int:
        kept = lane.consumers[name]
        kept.shown = False
        if gone:
            del lane.consumers[name]
            self._kept -= 1
        return kept.number


def _moved(kept: _LastSample | None, sample: Sample) -> bool:
    if kept is None or not kept.shown or not _same_counts(kept.sample, sample):
        return True
    later = still(kept.sample, sample.at)
    return not (_near(later.since_delivery, sample.since_delivery) and _near(later.since_ack, sample.since_ack))


def _same_counts(a: Sample, b: Sample) -> bool:
    # Spelt out: this runs for every consumer in every reading.
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


def _same(expected: StreamLook, look: StreamLook) -> bool:
    return _near(expected.oldest_age, look.oldest_age) and replace(expected, oldest_age=look.oldest_age) == look


def _near(a: float | None, b: float | None) -> bool:
    return a is b if a is None or b is None else abs(a - b) < SLACK


def _identity(look: StreamLook) -> tuple[object, ...]:
    return look.name, look.created, look.subjects, look.origin, look.retention


def _heard(kept: _LastSample) -> list[Line]:
    hints, kept.hints = kept.hints, None
    return [hints.line(kept.number)] if hints else []


def _consumer(lane: _EncodedStream, kept: _LastSample) -> Consumer:
    return Consumer(kept.number, lane.number, kept.sample.key.consumer, kept.sample.created, kept.sample.config)


def _sampled(number: int, sample: Sample, closing: Now | None) -> Sampled:
    return Sampled(
        c=number,
        before=round(max(0.0, closing.mono - sample.at.mono), 3) if closing else 0.0,
        at=None if closing else _at(sample.at),
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


def _shape(look: StreamLook) -> Shape:
    fill = None if look.fill is None else round(look.fill, 4)
    return Shape(look.first_seq, look.last_seq, look.messages, look.at_limit, fill, _rounded(look.oldest_age))


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(max(0.0, seconds), 3)


def _at(now: Now) -> At:
    return round(now.mono, 3), round(now.wall, 3)
