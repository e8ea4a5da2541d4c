"""SharedReading: which streams this replica reads itself, and which of them it receives from others instead.

The rule is in `core.reading.sharing`. Without other replicas, or with `sharing.enabled: false`, it reads all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.reading.budget import Level
from nats_backpressure.core.reading.sharing import Position, share_of
from nats_backpressure.core.reading.turns import Turns
from nats_backpressure.runtime.observations import Received
from nats_backpressure.runtime.ports import TimeSource
from nats_backpressure.runtime.tasks import Bounded

GAP = 1.5
"""Seconds without a sign of life of our own loop after which it did not run (suspended, blocked): what then waits to be
received may be as old."""
UNPROVED = 10.0
"""Seconds without a completed round trip after which a connection may be half open."""
PROVED_EVERY = 4.0
"""Seconds within which a round trip is completed on a connection that works; one begins every two."""
MOST_SENDERS = 256
"""Other processes of which is known when they sent the newest reading; the one that sent least recently is dropped."""


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
        machine: TimeSource | None = None,
    ) -> None:
        """`replica`: a name of this process that no other has; `listening_time`: that of the ReplicaChannel. `machine`:
        the clock with the machine's own time of day, where `clock` shows the server's."""
        self._clock, self._replica, self._least = clock, replica, least_silence
        self._writes, self._listening_time = writes, listening_time
        self._streams: dict[str, Turns] = {}
        self._newest_from: Bounded[str, float] = Bounded(MOST_SENDERS)
        """When the newest reading was received from each other process."""
        self._replaced: Bounded[str, float] = Bounded(MOST_SENDERS)
        """Processes that this one replaced on a stream, and that sent nothing since: the silence after which that
        holds for all that they read."""
        self._machine = machine or clock
        self._alive_at = self._gap_at = clock.now().mono
        self._ahead = self._machine.now().wall - self._machine.now().mono
        """The wall clock beside the monotonic one, which stands still while the whole machine does."""
        self.look_of: Callable[[str], StreamLook | None] = lambda stream: None
        """The newest look at a stream."""
        self.on_forget: Callable[[str], None] = lambda stream: None
        """Called with each stream that is not followed any more."""
        self.on_silent: Callable[[str], None] = lambda sender: None
        """Called with the process that this replica replaced, if nothing else was received from it lately either."""

    def starts_at(self, stream: str, level: Level, due_at: float, interval: float, took: float) -> float:
        """When an own reading that is due at `due_at` starts. `interval`: the one in force; `took`: seconds that the
        last such reading took."""
        return self._of(stream).starts_at(level, due_at, interval, took)

    def start(self, stream: str, due: Level, highest: Level, every: float) -> None:
        """An own reading starts that is due at one level and covers all up to `highest`; `every`: seconds between two
        of its kind. Who read that until now was silent too long: if that holds for all it reads, its other streams do
        not wait as long once more."""
        turns, now = self._of(stream), self._clock.now().mono
        silent_for = turns.silent_for(due)
        was_listening = self.received_for(silent_for + PROVED_EVERY) >= silent_for
        replaced = turns.start(due, highest, every, now, was_listening)
        if replaced and was_listening:
            self._replaced[replaced] = silent_for
        for sender, silent_for in tuple(self._replaced.items()):
            if now - self._newest_from.get(sender, -math.inf) >= silent_for:
                del self._replaced[sender]
                self.on_silent(sender)

    def end(self, stream: str, highest: Level, *, failed: bool) -> None:
        """It was answered, or failed."""
        self._of(stream).end(highest, failed=failed)

    def receive(self, received: Received, levels: Collection[Level]) -> bool:
        """Another replica read a stream, and covers all that is due at these levels; returns whether that is to be
        taken in."""
        where, now = received.position, self._clock.now().mono
        self._newest_from[received.sender] = now
        self._newest_from.move_to_end(received.sender)
        self._replaced.pop(received.sender, None)
        turns = self._of(received.stream)
        return turns.receive(levels, received.sender, where, received.sent_at, self._writes(), now)

    def wants(self, stream: str, sender: Position) -> bool:
        """Whether a reading by one that stands there may replace an own one."""
        turns = self._streams.get(stream)  # none where the stream is not followed
        return turns is not None and turns.wants(sender, self._writes(), self._clock.now().mono)

    def position(self, stream: str, *, partial: bool = False) -> Position:
        """Where this replica stands with its newest reading of the whole stream, or of a part."""
        return self._of(stream).position(partial, self._writes(), self._clock.now().mono)

    def reads(self, stream: str) -> bool:
        """Whether this replica reads the stream, or something of it."""
        return stream in self._streams and self._streams[stream].reads

    def reads_all(self, stream: str) -> bool:
        """Whether this replica reads all of the stream."""
        return stream in self._streams and self._streams[stream].reads_all

    def is_settled(self, stream: str) -> bool:
        """Whether it reads the stream, and has followed it for a while, reads it unopposed, or was the next in line."""
        return stream in self._streams and self._streams[stream].is_settled(self._clock.now().mono)

    def receives(self, stream: str) -> bool:
        """Whether other replicas read all of the stream for this one."""
        return stream in self._streams and self._streams[stream].receives

    def sender(self, stream: str) -> str:
        """The process that reads all of the stream for this one; empty if there is none."""
        return self._streams[stream].sender if stream in self._streams else ""

    def received_at(self, stream: str) -> float:
        """When the newest reading of anything was received from that process; -inf where there is none."""
        return self._newest_from.get(self.sender(stream), -math.inf)

    def forget(self, stream: str) -> None:
        """The stream is not followed any more."""
        self._streams.pop(stream, None)
        self.on_forget(stream)

    def leave(self, sender: str) -> list[str]:
        """Another process reported that it stops; returns the streams that it read."""
        now = self._clock.now().mono
        return [name for name, turns in self._streams.items() if turns.forget(sender, now)]

    def pulse(self) -> None:
        """The loop runs; to be called more often than every GAP seconds."""
        now = self._machine.now()
        ahead = now.wall - now.mono
        if now.mono - self._alive_at > GAP or abs(ahead - self._ahead) > GAP:
            self._gap_at = now.mono
        self._alive_at, self._ahead = now.mono, ahead

    def believes(self) -> bool:
        """Whether what is received now may be used: after a gap in our own running, a reconnect, or a time without
        answers, not before a round trip shows that nothing older waits on the way."""
        return self.received_for(UNPROVED) > 0

    def received_for(self, last: float) -> float:
        """For how many of these last seconds all that the others sent has surely come."""
        self.pulse()
        return self._listening_time(max(self._gap_at, self._alive_at - last))

    def connected_for(self) -> float:
        """Seconds for which the connection is there, as far as round trips prove it, whether our loop ran or not."""
        return self._listening_time(-math.inf)

    def _of(self, stream: str) -> Turns:
        if (turns := self._streams.get(stream)) is None:
            share = share_of(stream, self._replica)
            turns = self._streams[stream] = Turns(share, self._least, self._clock.now().mono)
        return turns
