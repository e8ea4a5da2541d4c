"""Knows which replica writes the changes of a subject: the reader of the first of its streams, by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from nats_backpressure.core.reading.sharing import share_of
from nats_backpressure.protocol.between_replicas import ALL_UNREAD, Presence
from nats_backpressure.runtime.ports import TimeSource
from nats_backpressure.runtime.replicas import PRESENT_FOR, Replica, Replicas
from nats_backpressure.runtime.shared_reading import SharedReading

BACK_AFTER = 1.5
"""Seconds after which a replica that was cut off, or stood still, has received what the others read meanwhile."""
CHECK_EVERY = 0.1
"""Seconds."""
UNPROVED = 4.0
"""Seconds without a completed round trip after which that may not come any more; there is one every two."""


class SubjectWriters:
    """The writer of each subject, among the replicas that have our policies and whose writes arrive.

    Where the reader is none of these, or nobody shares what it reads, it is the first of them in an order by the
    stream's name, or by the subject's where that has no members: of those that have readings of it, if there are any.
    Two that think of themselves as the writer, or none that does for a moment, is no error.
    """

    def __init__(self, clock: TimeSource, replicas: Replicas, shared: SharedReading, *, sharing: bool) -> None:
        self._clock, self._replicas, self._shared, self._sharing = clock, replicas, shared, sharing
        self._cut_off, self._checked_at = False, -math.inf

    def seen_at(self, subject: str, streams: Iterable[str], any_policies: bool) -> float | None:
        """Monotonic time of the newest sign of the replica that writes a subject with members in these streams; None
        where this one does, -inf where it is too early to know. `any_policies`: whether it may be one with others."""
        stream, marks = min(streams, default=""), self._replicas.marks()
        if marks is not None and not (any_policies and marks) and self._replicas.policies not in marks:
            return None
        if self._sharing and self._shared.reads_all(stream):
            if marks is not None and self._shared.is_settled(stream):
                return None
            if sees(self._replicas.unread(), stream):
                return -math.inf  # it began to read a moment ago, and may soon receive the readings of another one
        able = [one for one in self._replicas.others.values() if self._is_able(one.presence, any_policies)]
        sender, received_at = self._shared.sender(stream), self._shared.received_at(stream)
        if marks is None:
            return received_at
        for one in able:
            if one.presence.id == sender and sees(one.presence.unread, stream):
                return max(one.received_at, received_at)
        return self._first_seen_at(subject, stream, able)

    def are_cut_off(self) -> bool:
        """Whether there are other replicas, and what they read may not have come: they may see what this one does not.
        As it was CHECK_EVERY ago at most, since it is asked for each input."""
        now = self._clock.now().mono
        if now - self._checked_at >= CHECK_EVERY:
            received_for = self._shared.received_for(UNPROVED + BACK_AFTER)
            self._cut_off, self._checked_at = bool(self._replicas.others) and received_for < BACK_AFTER, now
        return self._cut_off

    def proves(self, mark: str, streams: Iterable[str]) -> bool:
        """Whether another replica has readings of a subject with members in these streams, and keeps what is stored of
        it, under policies with this mark."""
        stream, since = min(streams, default=""), self._clock.now().mono - PRESENT_FOR
        present = (one.presence for one in self._replicas.others.values() if one.received_at >= since)
        return any(one.writes and one.policies == mark and sees(one.unread, stream) for one in present)

    def _is_able(self, other: Presence, any_policies: bool) -> bool:
        return other.writes and (any_policies or other.policies == self._replicas.policies)

    def _first_seen_at(self, subject: str, stream: str, able: Sequence[Replica]) -> float | None:
        """The same where the reader of the stream is none of those that are able. Those that have readings of the
        stream come first; of a subject without members any stream may be the one that has some."""
        seen = {one.presence.id: one.received_at for one in able}
        unread = {one.presence.id: one.presence.unread for one in able} | {self._replicas.id: self._replicas.unread()}
        seeing = [id_ for id_, streams in unread.items() if sees(streams, stream)]
        return seen.get(min(seeing or unread, key=lambda id_: share_of(stream or subject, id_)))


def sees(unread: Sequence[str], stream: str) -> bool:
    """Whether a replica with these unread streams has readings of one; without a name, of all that are watched."""
    return not unread or (bool(stream) and stream not in unread and tuple(unread) != ALL_UNREAD)
