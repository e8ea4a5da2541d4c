"""Receives what other replicas read: decodes their messages, and converts their times to the own clock."""

from __future__ import annotations

from collections.abc import Callable

from nats_backpressure.core.reading.sender_clock import SenderClock
from nats_backpressure.core.reading.sharing import Position, share_of
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.recording.broadcast_decoder import BroadcastDecoder
from nats_backpressure.recording.broadcast_format import BroadcastLine, UnreadableMessage, decode_chunk, stream_of
from nats_backpressure.runtime.observations import Received
from nats_backpressure.runtime.ports import TimeSource
from nats_backpressure.runtime.tasks import Bounded

MOST_SENDERS = 256
"""Processes whose clocks are known; one more drops the oldest, which begins again."""
SENDERS_OF_STREAM = 3
"""Processes whose readings of one stream can be used at a time; while one takes over from another there are two."""
MOST_STREAMS = 100_000
"""Streams of which readings can be used at a time."""


class BroadcastReceiver:
    """Passes on to `take` what can be used, and counts what cannot. `on_new` is called with the name of each process
    that is new: it needs whole messages. `own`: the name of this one."""

    def __init__(
        self,
        clock: TimeSource,
        own: str,
        take: Callable[[Received], None],
        count: Callable[[str], None],
        on_new: Callable[[str], None] = lambda sender: None,
    ) -> None:
        self._clock, self._own, self._take, self._count, self._on_new = clock, own, take, count, on_new
        self._clocks: Bounded[str, SenderClock] = Bounded(MOST_SENDERS)
        self._decoders: Bounded[str, Bounded[str, BroadcastDecoder]] = Bounded(MOST_STREAMS)

    def receive(self, topic: str, payload: bytes) -> None:
        """A message of another replica came."""
        now = self._clock.now()
        try:
            stream = stream_of(topic)
            header, lines = decode_chunk(payload)
            if header.sender == self._own:  # it comes back where the connection was lost just then
                return
            known = self._add_time(header, now)
            received = self._decode(stream, header, lines, now)
        except UnreadableMessage:
            self._count("reading_unusable")
            return
        if received is not None and known:
            self._take(received)

    def _add_time(self, header: BroadcastLine, now: Now) -> bool:
        """Whether the sender's times can be converted: its first message may be late, and shows nothing of that."""
        if (clock := self._clocks.get(header.sender)) is None:
            clock = self._clocks[header.sender] = SenderClock()
            self._on_new(header.sender)
        clock.add(header.sent, now.mono)
        return clock.messages > 1

    def _decode(self, stream: str, header: BroadcastLine, lines: list[bytes], now: Now) -> Received | None:
        shift = self._clocks[header.sender].shift

        def to_own(mono: float) -> Now:
            return Now(mono + shift, now.wall - (now.mono - (mono + shift)))

        if (senders := self._decoders.get(stream)) is None:
            senders = self._decoders[stream] = Bounded(SENDERS_OF_STREAM)
        if (decoder := senders.get(header.sender)) is None:
            decoder = senders[header.sender] = BroadcastDecoder()
        shown = decoder.decode(header, lines, to_own)
        if shown is None:
            return None
        return Received(
            stream,
            header.sender,
            Position(header.writes, header.settled, share_of(stream, header.sender)),
            header.sent + shift,
            header.asked + shift,
            shown,
            decoder.base(header),
        )
