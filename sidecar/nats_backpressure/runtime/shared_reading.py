"""SharedReading: which streams this replica reads itself, and which of them it receives from others instead.

The rule is in `core.reading.sharing`. Without other replicas, or with `sharing.enabled: false`, it reads all.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from msgspec import Struct

from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.reading.sharing import Position, Turn, share_of, silence
from nats_backpressure.runtime.observations import Received
from nats_backpressure.runtime.ports import TimeSource

GAP = 1.5
"""Seconds without a sign of life of our own loop after which it did not run (suspended, blocked): what then waits to be
received may be as old."""
UNPROVED = 10.0
"""Seconds without a completed round trip after which a connection may be half open."""


class _Shared(Struct):
    """One stream, or ALL_STREAMS."""

    turn: Turn
    silent_for: float
    """The silence in force."""
    sender: str = ""
    """The process that the newest reading was received from."""
    received_at: float = -math.inf
    """When that one was received."""


class SharedReading:
    """The turns of this replica, by stream. At most as many as streams are followed."""

    def __init__(
        self,
        clock: TimeSource,
        replica: str,
        least_silence: float,
        *,
        writes: Callable[[], bool] = lambda: True,
        listening_time: Callable[[float], float] = lambda since: math.inf,
    ) -> None:
        """`replica`: a name of this process that no other has; `listening_time`: that of the ReplicaChannel."""
        self._clock, self._replica, self._least = clock, replica, least_silence
        self._writes, self._listening_time = writes, listening_time
        self._streams: dict[str, _Shared] = {}
        self._alive_at = self._gap_at = clock.now().mono
        self.look_of: Callable[[str], StreamLook | None] = lambda stream: None
        """The newest look at a stream."""
        self.on_silent: Callable[[str], None] = lambda sender: None
        """Called with the process that this replica replaced, if nothing else was received from it lately either."""

    def starts_at(self, stream: str, due_at: float, interval: float, took: float) -> float:
        """When an own reading that is due at `due_at` starts. `interval`: the one in force; `took`: seconds that the
        last reading took."""
        shared = self._of(stream)
        shared.silent_for = silence(self._least, interval, took, shared.turn.share)
        return shared.turn.starts_at(due_at, shared.silent_for)

    def start(self, stream: str) -> None:
        """An own reading starts. Who read the stream until now was silent too long: if that holds for all it reads, its
        other streams do not wait as long once more."""
        shared, now = self._of(stream), self._clock.now().mono
        replaced = shared.sender if shared.turn.receives else ""
        shared.turn.start(now)
        if replaced and now - self._newest_of(replaced) >= shared.silent_for:
            self.on_silent(replaced)

    def _newest_of(self, sender: str) -> float:
        return max(shared.received_at for shared in self._streams.values() if shared.sender == sender)

    def end(self, stream: str, *, failed: bool) -> None:
        """It was answered, or failed."""
        self._of(stream).turn.end(failed=failed)

    def receive(self, received: Received, *, covers: bool) -> bool:
        """Another replica read a stream; returns whether that is to be taken in. `covers`: whether it shows all that is
        due; otherwise it makes nobody silent."""
        shared, now = self._of(received.stream), self._clock.now().mono
        if not covers:
            return not shared.turn.reads
        own, shared.sender, shared.received_at = self.position(received.stream), received.sender, now
        return shared.turn.receive(received.position, own, received.sent_at, shared.silent_for, now)

    def wants(self, stream: str, sender: Position) -> bool:
        """Whether a reading by one that stands there may replace an own one."""
        return not self.reads(stream) or sender.is_before(self.position(stream))

    def position(self, stream: str) -> Position:
        """Where this replica stands among those that may read the stream."""
        shared = self._of(stream)
        return shared.turn.position(self._writes(), shared.silent_for, self._clock.now().mono)

    def reads(self, stream: str) -> bool:
        """Whether this replica reads the stream."""
        return stream in self._streams and self._streams[stream].turn.reads

    def receives(self, stream: str) -> bool:
        """Whether other replicas read the stream for this one."""
        return stream in self._streams and self._streams[stream].turn.receives

    def forget(self, stream: str) -> None:
        """The stream is not followed any more."""
        self._streams.pop(stream, None)

    def leave(self, sender: str) -> list[str]:
        """Another process reported that it stops; returns the streams that it read."""
        streams = [name for name, shared in self._streams.items() if shared.sender == sender and not shared.turn.reads]
        for name in streams:
            self._streams[name].turn.forget_others(self._clock.now().mono)
        return streams

    def pulse(self) -> None:
        """The loop runs; to be called more often than every GAP seconds."""
        now = self._clock.now().mono
        if now - self._alive_at > GAP:
            self._gap_at = now
        self._alive_at = now

    def believes(self) -> bool:
        """Whether what is received now may be used: after a gap in our own running, a reconnect, or a time without
        answers, not before a round trip shows that nothing older waits on the way."""
        self.pulse()
        return self._listening_time(max(self._gap_at, self._alive_at - UNPROVED)) > 0

    def _of(self, stream: str) -> _Shared:
        if (shared := self._streams.get(stream)) is None:
            turn = Turn(share_of(stream, self._replica), self._clock.now().mono)
            shared = self._streams[stream] = _Shared(turn, self._least)
        return shared
