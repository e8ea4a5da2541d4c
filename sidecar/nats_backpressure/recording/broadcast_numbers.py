"""The numbers of the messages about one stream, and which of them are whole."""

from __future__ import annotations

from msgspec import Struct

from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.reading.sharing import Position
from nats_backpressure.recording.broadcast_format import VERSION, BroadcastLine


class AskedFor(Struct, frozen=True):
    """What must be known of a reading beside what it showed."""

    at: float
    """Monotonic time at which it was asked for."""
    base: StreamLook | None = None
    """The newest look at the stream that was answered before."""


class MessageNumbers:
    """The numbers of the messages about one stream, and when they are whole."""

    def __init__(self, sender: str, whole_every: float, first: int) -> None:
        self._sender, self._whole_every = sender, whole_every
        self._n = self._rests = first - 1
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

    def header(self, asked: AskedFor, position: Position, answered: float) -> BroadcastLine:
        return BroadcastLine(
            VERSION,
            self._sender,
            answered,
            self._n,
            self._rests,
            writes=position.writes,
            settled=position.settled,
            level=position.level,
            every=position.every,
            whole=position.whole,
            settled_for_all=position.settled_for_all,
            asked=asked.at,
            answered=answered,
        )
