"""Receives what other replicas read: decodes their messages, and converts their times to the own clock."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Generator

from msgspec import Struct

from nats_backpressure.core.reading.sender_clock import SenderClock
from nats_backpressure.core.reading.sharing import Position, share_of
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.recording.broadcast_decoder import BroadcastDecoder
from nats_backpressure.recording.broadcast_format import (
    MOST_CHUNKS,
    BroadcastLine,
    UnreadableMessage,
    decode_chunk,
    stream_of,
)
from nats_backpressure.runtime.observations import Received
from nats_backpressure.runtime.ports import Clock
from nats_backpressure.runtime.slices import Slices
from nats_backpressure.runtime.tasks import Bounded, drop_unused

MOST_SENDERS = 256
"""Processes whose clocks are known; one more drops the one that sent least recently, which begins again."""
MOST_SOURCES = 100_000
"""Streams of processes whose readings can be used at a time; one more drops the one that came least recently."""
MOST_WAITING = MOST_CHUNKS
"""Chunks that wait to be decoded; further ones are not used."""
UNUSED_FOR = 300.0
"""Seconds without a message after which the memory of a source or of a clock is given back."""


class _Chunk(Struct):
    header: BroadcastLine
    lines: bytes
    known: bool
    """Whether the times of its sender could be converted."""
    believed: bool
    """Whether it was no older than it seemed when it came."""


class _Sender(Struct):
    clock: SenderClock
    used_at: float


class _Source(Struct):
    """One stream of one sender."""

    stream: str
    sender: str
    decoder: BroadcastDecoder
    waiting: deque[_Chunk]
    used_at: float = 0.0
    known: bool = False
    """Whether the first chunk of the newest message was."""
    steps: Generator[None, None, None] | None = None
    """What is being made of the newest message."""


class BroadcastReceiver:
    """`receive` takes a message and returns at once; `run` passes on to `take` what can be used and counts the rest.
    `own`: the name of this process. `on_new` is called with the name of each one that is new: it needs whole messages.
    `believes`: whether what comes now is no older than it seems. `listening_time`: that of the ReplicaChannel. `wants`:
    whether a reading of a stream, of one that stands at a position, is of any use."""

    def __init__(
        self,
        clock: Clock,
        own: str,
        take: Callable[[Received], None],
        count: Callable[[str], None],
        on_new: Callable[[str], None] = lambda sender: None,
        *,
        believes: Callable[[], bool] = lambda: True,
        listening_time: Callable[[float], float] = lambda since: math.inf,
        wants: Callable[[str, Position], bool] = lambda stream, position: True,
    ) -> None:
        self._clock, self._own, self._take, self._count, self._on_new = clock, own, take, count, on_new
        self._believes, self._listening_time, self._wants = believes, listening_time, wants
        # What came least recently is first.
        self._senders: Bounded[str, _Sender] = Bounded(MOST_SENDERS)
        self._sources: Bounded[tuple[str, str], _Source] = Bounded(MOST_SOURCES)
        """By stream and sender."""
        self._busy: dict[tuple[str, str], _Source] = {}
        self._waiting = 0
        """Chunks of all of them."""
        self._came = asyncio.Event()

    @property
    def busy(self) -> bool:
        """Whether anything waits to be decoded."""
        return bool(self._busy)

    def receive(self, topic: str, payload: bytes) -> None:
        """A message of another replica came."""
        now = self._clock.now()
        try:
            stream = stream_of(topic)
            header, lines = decode_chunk(payload)
        except UnreadableMessage:
            self._count("reading_unusable")
            return
        if header.sender == self._own:  # it comes back where the connection was lost just then
            return
        known = self.shift(header.sender, header.sent, now) is not None
        source = self._source(stream, header.sender, now.mono)
        if header.part == 0 and header.rests == header.n:  # it shows all: what waits shows nothing more
            self._waiting -= len(source.waiting)
            source.waiting.clear()
        if self._waiting >= MOST_WAITING:
            self._count("reading_unusable")
            return
        self._waiting += 1
        source.waiting.append(_Chunk(header, lines, known, self._believes()))
        self._busy[stream, header.sender] = source
        self._came.set()

    async def run(self) -> None:
        """Decode what came, a chunk of each source by turns, until cancelled."""
        slices = Slices(self._clock)
        while True:
            self._came.clear()
            while self._busy:
                for key in tuple(self._busy):
                    if not self._step(self._busy[key]):
                        del self._busy[key]
                    await slices.pause()
            await self._clock.wait(self._came, UNUSED_FOR)
            unused_since = self._clock.now().mono - UNUSED_FOR
            drop_unused(self._senders, unused_since)
            drop_unused(self._sources, unused_since)

    def _step(self, source: _Source) -> bool:
        """Decode one chunk, or go on with what the newest message shows; returns whether there is more to do."""
        if source.steps is not None:
            try:
                next(source.steps)
            except StopIteration:
                source.steps = None
        elif source.waiting:
            self._waiting -= 1
            self._decode(source, source.waiting.popleft())
        return source.steps is not None or bool(source.waiting)

    def _decode(self, source: _Source, chunk: _Chunk) -> None:
        header = chunk.header
        if header.part == 0:
            source.known = chunk.known
        try:
            complete = source.decoder.take(header, chunk.lines)
        except UnreadableMessage:
            self._count("reading_unusable")
            return
        share = share_of(source.stream, header.sender)
        position = Position(
            header.writes,
            header.settled,
            share,
            header.level,
            header.every,
            header.whole,
            header.settled_for_all,
        )
        if complete and source.known and chunk.believed and self._wants(source.stream, position):
            source.steps = self._pass_on(source, header, position)

    def _pass_on(self, source: _Source, header: BroadcastLine, position: Position) -> Generator[None, None, None]:
        if (sender := self._senders.get(source.sender)) is None:
            return
        shift, now = sender.clock.shift, self._clock.now()

        def to_own(mono: float) -> Now:
            return Now(mono + shift, now.wall - (now.mono - (mono + shift)))

        shown = yield from source.decoder.shown(to_own)
        answered_at, asked_at = header.answered + shift, header.asked + shift
        base = source.decoder.base()
        self._take(Received(source.stream, source.sender, position, answered_at, asked_at, shown, base))

    def add_report(self, sender: str, sent: float) -> None:
        """Another process reported its presence, at a time of its own clock: that relates the clocks before it reads
        anything."""
        self.shift(sender, sent, self._clock.now())

    def shift(self, name: str, sent: float, now: Now) -> float | None:
        """What to add to the times of a sender, of which a message came; None while that is not known. Its first
        message may be late, and all that wait behind it on their way to us: nothing is used before a round trip that
        began after it is complete."""
        if (sender := self._senders.get(name)) is None:
            sender = self._senders[name] = _Sender(SenderClock(), now.mono)
            self._on_new(name)
        self._senders.move_to_end(name)
        sender.used_at = now.mono
        clock = sender.clock
        clock.add(sent, now.mono)
        return clock.shift if clock.messages > 1 and self._listening_time(clock.first_at) > 0 else None

    def _source(self, stream: str, sender: str, now: float) -> _Source:
        if (source := self._sources.get((stream, sender))) is None:
            source = self._sources[stream, sender] = _Source(stream, sender, BroadcastDecoder(stream), deque())
        self._sources.move_to_end((stream, sender))
        source.used_at = now
        return source
