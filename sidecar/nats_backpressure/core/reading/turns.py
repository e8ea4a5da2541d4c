"""Turns: at which levels one replica reads one stream, and how that goes from one replica to another.

Each level has a turn of its own. A reading that covers nothing that is due here, because its sender watches less or
judges by other policies, silences nobody: this replica reads that level itself, and leaves the others alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from msgspec.structs import replace

from nats_backpressure.core.reading.budget import Level
from nats_backpressure.core.reading.sharing import Position, Turn, silence

ROUNDING = 1e-6
"""Seconds."""


class Turns:
    """All times are monotonic, of the replica's own clock."""

    __slots__ = ("_every", "_least", "_own", "_received_at", "_senders", "_silent_for", "_turns")

    def __init__(self, share: float, least_silence: float, now: float) -> None:
        """`share`: see `sharing.share_of`; it follows the stream from now on."""
        self._least = least_silence
        self._turns = [Turn(share, now) for _ in Level]
        self._silent_for = [least_silence] * len(Level)
        """The silence in force at each level."""
        self._every = [0.0] * len(Level)
        """Seconds between two readings of the one that reads this level, as it sent them."""
        self._senders = [""] * len(Level)
        """Whose reading the newest one was that covers this level."""
        self._own = {False: (Level.ALL, 0.0), True: (Level.HOT, 0.0)}
        """For own readings, by whether they are partial: the level that was due, and its interval."""
        self._received_at = -math.inf
        """When any reading of a replica that stands before this one was sent."""

    @property
    def reads(self) -> bool:
        """Whether it reads at any level, as far as it knows."""
        return any(turn.reads for turn in self._turns)

    @property
    def sender(self) -> str:
        """Who reads all of the stream for this one, whatever it reads more often itself; empty if nobody does."""
        return self._senders[Level.ALL] if self._turns[Level.ALL].receives else ""

    @property
    def receives(self) -> bool:
        """Whether others read all of it for this one."""
        return self._turns[Level.ALL].receives and not self.reads

    @property
    def reads_all(self) -> bool:
        """Whether it reads all of the stream."""
        return self._turns[Level.ALL].reads

    def is_settled(self, now: float) -> bool:
        """Whether it reads any of the stream, and has followed it for a while, reads it unopposed, or was the next in
        line for it."""
        return any(turn.succeeds for turn in self._turns) or self._reads_settled(now)

    def _reads_settled(self, now: float) -> bool:
        turns = zip(self._turns, self._silent_for, strict=True)
        return any(turn.reads and turn.position(True, silent_for, now).settled for turn, silent_for in turns)

    def _position_at(self, level: Level, writes: bool, now: float) -> Position:
        """Where it stands among those that may read a level. Who reads all of the stream is settled for that as soon as
        it is for any level, since it is read rarely."""
        where = self._turns[level].position(writes, self._silent_for[level], now)
        if level is Level.ALL and self.reads_all and not where.settled:
            return replace(where, settled=self._reads_settled(now))
        return where

    def position(self, partial: bool, writes: bool, now: float) -> Position:
        """Where it stands with its newest reading of all, or of a part."""
        level, every = self._own[partial]
        where, of_all = (self._position_at(one, writes, now) for one in (level, Level.ALL))
        settled_for_all = None if of_all.settled is where.settled else of_all.settled
        whole = self._turns[Level.ALL].reads
        return Position(writes, where.settled, where.share, level, every, whole, settled_for_all)

    def starts_at(self, level: Level, due_at: float, interval: float, took: float) -> float:
        """When a reading that is due at this level starts, unless one that covers it is received before. `interval`:
        the one in force; `took`: seconds that the last such reading took."""
        turn, every = self._turns[level], max(interval, self._every[level])
        self._silent_for[level] = silence(self._least, every, took, turn.share)
        return turn.starts_at(due_at, self._silent_for[level])

    def silent_for(self, level: Level) -> float:
        """The silence in force."""
        return self._silent_for[level]

    def start(self, due: Level, highest: Level, every: float, now: float, was_listening: bool = True) -> str:
        """A reading starts that is due at one level, and covers all up to `highest`. `every`: seconds between two of
        its kind; `was_listening`: whether all that was sent for a silence has come. Returns the process that is silent,
        if one stood before this one and read it until now. Where nothing at all was received for a silence, no other
        replica reads any level."""
        replaced = self._senders[due] if self._turns[due].is_overdue else ""
        self._own[highest < Level.ALL] = due, every
        alone = now - self._received_at >= self._silent_for[due] - ROUNDING
        for level in Level:
            if alone or due <= level <= highest:
                self._turns[level].start(now, was_listening)
                self._every[level] = 0.0
        return replaced

    def end(self, highest: Level, *, failed: bool) -> None:
        """It was answered, or failed: then it takes what any other one reads."""
        for turn in self._turns[: highest + 1]:
            turn.end(failed=failed)

    def wants(self, sender: Position, writes: bool, now: float) -> bool:
        """Whether a reading of one that stands there is to be taken in."""
        return not all(turn.reads for turn in self._turns) or sender.is_before(self.position(False, writes, now))

    def receive(
        self, levels: Collection[Level], sender: str, position: Position, sent_at: float, writes: bool, now: float
    ) -> bool:
        """A reading of another replica came that covers these levels; returns whether it is to be taken in."""
        own = self._position_at(Level.ALL, writes, now)
        if position.at(Level.ALL).is_before(own) and now - sent_at < self._silent_for[Level.ALL]:
            self._received_at = max(self._received_at, sent_at)
            if position.whole and Level.ALL not in levels:
                self._turns[Level.ALL].leave_to_others(sent_at)
                self._senders[Level.ALL] = sender
        for level in levels:
            self._receive(level, sender, position.at(level), sent_at, writes, now)
        return not all(turn.reads for turn in self._turns)

    def _receive(self, level: Level, sender: str, position: Position, sent_at: float, writes: bool, now: float) -> None:
        turn, silent_for = self._turns[level], self._silent_for[level]
        if position.level > level and turn.reads_now(silent_for, now):
            return  # it was due for other reasons: who reads this level does not show in it
        own = self._position_at(level, writes, now)
        self._senders[level] = sender
        if position.is_before(own) and position.level <= level:
            self._every[level] = position.every
        turn.receive(position, own, sent_at, silent_for, now)

    def forget(self, sender: str, now: float) -> bool:
        """This other process reads no more; returns whether something was received from it that is due here now."""
        levels = [level for level in Level if self._senders[level] == sender and not self._turns[level].reads]
        for level in levels:
            self._turns[level].forget_others(now)
            self._every[level] = 0.0
        if levels:
            self._received_at = -math.inf
        return bool(levels)
