"""Sharing: which of several replicas reads a stream. Each decides for itself, from the readings that it receives.

The rule: a replica reads a stream unless it received a reading of it, within the last *silence*, from a replica that
stands before it. It needs no list of replicas, no election and no common clock. Two that read at once are waste and no
error; and who is silent, for whatever reason, is replaced after one silence.
"""

from __future__ import annotations

import math
from hashlib import blake2b

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.reading.budget import Level

ALL_STREAMS = "=streams"
"""What looks at streams are shared under: the list of streams, and looks at single ones. No stream has this name."""
LOOKS, LISTS = Level.HOT, Level.ALL
"""The levels of ALL_STREAMS: looks at the watched streams, and lists, which show all others too. There is nothing
between them: what covers looks covers Level.QUIET."""
SETTLED_AFTER = 60.0
"""Seconds for which a replica follows a stream before it may replace one that reads it."""
MISSED_INTERVALS = 3
"""Readings that must be missing before another replica reads."""
MISSED_ANSWERS = 2
"""How many times as long as the last reading took a further one may take."""
APART = 0.1
"""Seconds between the first and the last replica in line, so that only the first one reads."""


class Position(Struct, frozen=True):
    """Where a replica stands in the order of those that may read a stream, and what it reads."""

    writes: bool
    """Whether its writes and publishes succeed."""
    settled: bool
    """Whether it has followed the stream for SETTLED_AFTER, or is the one that reads it, at this level."""
    share: float
    """See `share_of`."""
    level: Level = Level.HOT
    """The level at which its reading was due."""
    every: float = 0.0
    """Seconds between two of its readings at this level, as far as its budget allows."""
    whole: bool = True
    """Whether it reads all of the stream, and not only this level."""
    settled_for_all: bool | None = None
    """`settled` for Level.ALL, where that differs; None where it does not, or an older version sent it."""

    def at(self, level: Level) -> Position:
        """Where it stands among those that may read a level."""
        if level is not Level.ALL or self.settled_for_all is None:
            return self
        return replace(self, settled=self.settled_for_all)

    def is_before(self, other: Position) -> bool:
        """Whether this one is to read rather than the other."""
        return self._rank() < other._rank()

    def _rank(self) -> tuple[bool, bool, float]:
        return not self.writes, not self.settled, self.share


def share_of(stream: str, replica: str) -> float:
    """A number from 0 to 1 by which replicas are ordered, in another order for each stream."""
    return int.from_bytes(blake2b(f"{stream}\0{replica}".encode(), digest_size=8).digest()) / 2**64


def silence(least: float, interval: float, took: float, share: float) -> float:
    """Seconds without a reading after which a replica reads: `least` is from the settings, `interval` the one between
    two readings that is in force, `took` what the last reading took, `share` the replica's own."""
    return max(least, MISSED_INTERVALS * interval, MISSED_ANSWERS * took) + APART * share


class Turn:
    """Whether one replica reads one level of one stream. All times are monotonic, of its own clock."""

    __slots__ = (
        "_behind_at",
        "_blind",
        "_followed_since",
        "_left_at",
        "_read_since",
        "_received_at",
        "_started_at",
        "_succeeds",
        "share",
    )

    def __init__(self, share: float, now: float) -> None:
        """`now`: it follows the stream from now on."""
        self.share, self._followed_since = share, now
        self._read_since: float | None = None
        self._succeeds = False
        """Whether it reads because those that did are silent, or stopped."""
        self._started_at = -math.inf
        """When the last own reading started."""
        self._blind = False
        """Whether its last reading failed."""
        self._received_at: float | None = None
        """When the newest reading of a replica that stands before this one was sent."""
        self._behind_at: float | None = None
        """When a replica that stands behind this one sent the first reading after that."""
        self._left_at: float | None = None
        """When the one that read it stopped."""

    @property
    def reads(self) -> bool:
        """Whether it is the one that reads, as far as it knows."""
        return self._read_since is not None and not self._blind

    @property
    def receives(self) -> bool:
        """Whether others read for it."""
        received = self._received_at is not None or self._behind_at is not None
        return received and self._read_since is None

    @property
    def succeeds(self) -> bool:
        """Whether it reads because it was the next in line when those that did fell silent, or stopped."""
        return self.reads and self._succeeds

    def position(self, writes: bool, silent_for: float, now: float) -> Position:
        """Where it stands; `silent_for`: the silence in force."""
        read_since = now if self._read_since is None or now - self._started_at >= silent_for else self._read_since
        reads_alone = now - read_since >= silent_for
        return Position(writes, reads_alone or now - self._followed_since >= SETTLED_AFTER, self.share)

    def starts_at(self, due_at: float, silent_for: float) -> float:
        """When it starts a reading that is due at `due_at`, unless it receives one before."""
        received = [at for at in (self._received_at, self._behind_at) if at is not None]
        if self._read_since is not None:
            return due_at
        if not received:
            return due_at if self._left_at is None else max(due_at, self._left_at) + APART * self.share
        # From when it is due: a stream that begins to move is not read by all at once.
        waits_from = max(*received, due_at)
        if self._behind_at is not None:  # what those behind read makes the next one due later, and no wait longer
            waits_from = min(waits_from, max(received))
        return max(due_at, waits_from + silent_for)

    @property
    def is_overdue(self) -> bool:
        """Whether the one that reads stands before this one, so that it would read now unless it is gone."""
        return self._received_at is not None and self._behind_at is None and self._read_since is None

    def start(self, now: float, was_listening: bool = True) -> None:
        """It starts a reading. `was_listening`: whether all that others sent for a silence has come: one that was away
        itself is not the next in line."""
        if self._read_since is None:
            self._succeeds = self._left_at is not None or (was_listening and self.receives)
            self._read_since = now
        self._started_at = now
        self._behind_at = self._left_at = None

    def end(self, *, failed: bool) -> None:
        """Its reading was answered, or failed: then it takes what any other one reads."""
        self._blind = failed

    def reads_now(self, silent_for: float, now: float) -> bool:
        """Whether it is the one that reads, and had something to read within a silence."""
        return self.reads and now - self._started_at < silent_for

    def receive(self, sender: Position, own: Position, sent_at: float, silent_for: float, now: float) -> bool:
        """A reading of another replica came, which can be used; returns whether it replaces an own one. One that is as
        old as the silence in force is used, and makes nobody silent."""
        if sender.is_before(own):
            if now - sent_at < silent_for:
                self._received_at = max(self._received_at or sent_at, sent_at)
                self._read_since = self._behind_at = self._left_at = None
        elif self._read_since is None and self._behind_at is None:
            self._behind_at = sent_at
        return not self.reads

    def leave_to_others(self, at: float) -> None:
        """One that stands before this one reads this level too, though it did not just now."""
        if self._read_since is not None:
            self._received_at, self._read_since = at, None

    def forget_others(self, now: float) -> None:
        """Those that read it do so no more: the first in line reads as soon as a reading is due."""
        self._received_at = self._behind_at = None
        self._left_at = now
