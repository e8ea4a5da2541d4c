"""Encodes lists of streams as messages for the other replicas, like `broadcast_encoder` the readings of a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

from msgspec.structs import replace

from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.reading.sharing import Position
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.recording.broadcast_encoder import PAUSE, PAUSE_AFTER
from nats_backpressure.recording.broadcast_format import (
    BroadcastMessage,
    ListLine,
    LookLine,
    TooLong,
    encode_line,
    stream_line,
)
from nats_backpressure.recording.broadcast_numbers import AskedFor, MessageNumbers
from nats_backpressure.recording.encoder import same_look, stream_identity, stream_numbers
from nats_backpressure.recording.format import idle_look
from nats_backpressure.runtime.observations import StreamsReading


class ListEncoder:
    """Encodes lists of streams, and looks at single ones."""

    def __init__(self, sender: str, whole_every: float, first: int = 0) -> None:
        self.messages = MessageNumbers(sender, whole_every, first)
        self._streams: dict[str, tuple[int, StreamLook, float]] = {}
        """The number of each, its last look that was written, and when that was."""
        self._numbers = count()

    def look(self, reading: StreamsReading, asked: AskedFor, position: Position, now: Now) -> BroadcastMessage | None:
        """A look at a single stream; None before a list, which it rests on."""
        if not self._streams or self.messages.whole_wanted:
            return None
        self.messages.begin_part()
        return self._message(reading, asked, position, now, ListLine(only=True))

    def streams(self, reading: StreamsReading, asked: AskedFor, position: Position, now: Now) -> BroadcastMessage:
        """A list of streams that was answered `now`."""
        if self.messages.begin(now.mono, shows_all=True):
            self._streams, self._numbers = {}, count()
        shown = {look.name for look in reading.looks}
        gone = [name for name in self._streams if name not in shown]
        left = tuple(self._streams.pop(name)[0] for name in gone)
        return self._message(reading, asked, position, now, ListLine(left))

    def _message(
        self, reading: StreamsReading, asked: AskedFor, position: Position, now: Now, end: ListLine
    ) -> BroadcastMessage:
        header = replace(
            self.messages.header(asked, position, now.mono),
            first=now.mono,
            took=reading.took,
            trip=reading.trip,
            complete=reading.complete,
            server_time=reading.server_time,
        )
        return BroadcastMessage(header, self._lines(reading, now, end))

    def _lines(self, reading: StreamsReading, now: Now, end: ListLine) -> Iterator[bytes]:
        left = list(end.left)
        partly = False
        for n, look in enumerate(reading.looks, 1):
            try:
                yield from self._look_lines(look, now, end.only)
            except TooLong:
                partly = True
                if look.name in self._streams:
                    left.append(self._streams.pop(look.name)[0])
            if n % PAUSE_AFTER == 0:
                yield PAUSE
        yield encode_line(replace(end, left=tuple(left), partly=partly))

    def _look_lines(self, look: StreamLook, now: Now, always: bool) -> Sequence[bytes]:
        """Raises TooLong; the stream has no line then."""
        written = self._streams.get(look.name)
        lines: list[bytes] = []
        if written is None or stream_identity(written[1]) != stream_identity(look):
            number = next(self._numbers) if written is None else written[0]
            lines.append(encode_line(stream_line(number, look)))
        else:
            number, before, at = written
            if not always and same_look(idle_look(before, now.mono - at), look):
                return ()
        self._streams[look.name] = number, look, now.mono
        lines.append(encode_line(LookLine(number, stream_numbers(look), look.consumers)))
        return lines
