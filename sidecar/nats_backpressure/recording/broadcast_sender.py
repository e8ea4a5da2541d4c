"""Sends what this replica reads to the others: encoded a chunk at a time, as fast as the connection takes it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator

from msgspec import Struct

from nats_backpressure.core.model.samples import Sample
from nats_backpressure.core.reading.sharing import ALL_STREAMS, Position
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.recording.broadcast_encoder import ReadingEncoder
from nats_backpressure.recording.broadcast_format import BroadcastMessage, TooLong, chunks_of, topic_of
from nats_backpressure.recording.broadcast_list_encoder import ListEncoder
from nats_backpressure.recording.broadcast_numbers import AskedFor
from nats_backpressure.runtime.observations import ConsumersReading, StreamsReading
from nats_backpressure.runtime.ports import Clock, ReplicaChannel
from nats_backpressure.runtime.slices import Slices
from nats_backpressure.runtime.tasks import Bounded, drop_unused

MOST_STREAMS = 100_000
"""Streams whose last message is remembered; one more drops the one that was read least recently, whose next message is
whole."""
MOST_UNSENT = 8
"""Readings of one stream that wait; one more drops the oldest. One that shows all drops all that wait."""
UNUSED_FOR = 300.0
"""Seconds without a reading after which the memory of a stream is given back."""
WAIT_FOR_ROOM = 0.005
"""Seconds after which a connection that had no room is looked at again."""


class Unsent(Struct, frozen=True):
    """A reading that was answered `now`."""

    shown: ConsumersReading | StreamsReading | Sample
    asked: AskedFor
    position: Position
    now: Now


class _SendingStream(Struct):
    name: str
    encoder: ReadingEncoder | ListEncoder
    unsent: deque[Unsent]
    chunks: Iterator[bytes] | None = None
    """What follows of the message that is being sent."""
    used_at: float = 0.0


class BroadcastSender:
    """`add` takes a reading and returns at once, `run` sends it, and counts what is not sent. `own`: the name of this
    process; `whole_every`: seconds after which a message shows all, not only what changed."""

    def __init__(
        self,
        clock: Clock,
        own: str,
        channel: ReplicaChannel,
        whole_every: float,
        count: Callable[[str], None],
    ) -> None:
        self._clock, self._own, self._channel, self._count = clock, own, channel, count
        self._whole_every = whole_every
        self._streams: Bounded[str, _SendingStream] = Bounded(MOST_STREAMS)
        """The one that was read least recently first."""
        self._busy: dict[str, _SendingStream] = {}
        self._messages = 0
        """How many were started: no message of any stream has a higher number."""
        self._added = asyncio.Event()

    @property
    def busy(self) -> bool:
        """Whether anything waits to be sent."""
        return bool(self._busy)

    def send_whole(self) -> None:
        """Another replica is new: the next message of each stream shows all."""
        for stream in self._streams.values():
            stream.encoder.messages.whole_wanted = True

    def clear(self) -> None:
        """Nobody is there who wants to have what waits."""
        self._streams.clear()
        self._busy.clear()

    def add(self, name: str, unsent: Unsent) -> None:
        """A reading of a stream, or of ALL_STREAMS, is to be sent."""
        stream = self._stream(name)
        stream.used_at = unsent.now.mono
        if isinstance(unsent.shown, ConsumersReading | StreamsReading) and not unsent.shown.partial:
            self._drop(stream, len(stream.unsent))
        self._drop(stream, len(stream.unsent) - MOST_UNSENT + 1)
        stream.unsent.append(unsent)
        self._busy[name] = stream
        self._added.set()

    async def run(self) -> None:
        """Send what was added, a chunk of each stream by turns, until cancelled."""
        slices = Slices(self._clock)
        while True:
            self._added.clear()
            while self._busy:
                for name in tuple(self._busy):
                    while not (room := self._channel.room()):
                        await self._clock.sleep(WAIT_FOR_ROOM)
                    if (stream := self._busy.get(name)) is not None and not self._step(stream, room):
                        del self._busy[name]
                    await slices.pause()
            await self._clock.wait(self._added, UNUSED_FOR)
            drop_unused(self._streams, self._clock.now().mono - UNUSED_FOR)

    def _step(self, stream: _SendingStream, room: int) -> bool:
        """Send the next chunk of a stream, of a message of such chunks; returns whether there is more to send."""
        try:
            if stream.chunks is None:
                stream.chunks = self._begin(stream, stream.unsent.popleft(), room)
            chunk = next(stream.chunks, None)
        except TooLong:
            self._give_up(stream)
        else:
            if chunk is None:
                stream.chunks = None
            elif chunk and not self._channel.publish(topic_of(stream.name), chunk):
                self._give_up(stream)
        return stream.chunks is not None or bool(stream.unsent)

    def _begin(self, stream: _SendingStream, unsent: Unsent, room: int) -> Iterator[bytes]:
        self._messages += 1
        message = _encode(stream.encoder, unsent)
        return iter(()) if message is None else chunks_of(message, room, lambda: self._clock.now().mono)

    def _give_up(self, stream: _SendingStream) -> None:
        """The others do not get the whole message, and can use nothing that rests on it."""
        self._count("reading_unsent")
        stream.chunks, stream.encoder.messages.whole_wanted = None, True

    def _drop(self, stream: _SendingStream, n: int) -> None:
        for _ in range(n):
            stream.unsent.popleft()
            self._count("reading_unsent")

    def _stream(self, name: str) -> _SendingStream:
        if (stream := self._streams.get(name)) is None:
            kind = ListEncoder if name == ALL_STREAMS else ReadingEncoder
            encoder = kind(self._own, self._whole_every, self._messages)
            stream = self._streams[name] = _SendingStream(name, encoder, deque())
        self._streams.move_to_end(name)
        return stream


def _encode(encoder: ReadingEncoder | ListEncoder, unsent: Unsent) -> BroadcastMessage | None:
    """The message of a reading; None if what it rests on was not sent. Raises TooLong."""
    more = unsent.asked, unsent.position, unsent.now
    match unsent.shown:
        case ConsumersReading() as reading if isinstance(encoder, ReadingEncoder):
            return encoder.reading(reading, *more)
        case Sample() as sample if isinstance(encoder, ReadingEncoder):
            return encoder.sample(sample, *more)
        case StreamsReading() as reading if isinstance(encoder, ListEncoder):
            return encoder.look(reading, *more) if reading.partial else encoder.streams(reading, *more)
    raise TypeError(unsent.shown)
