"""Knows which replica writes the changes of a subject: the reader of the first of its streams, by name."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

from nats_backpressure.core.reading.sharing import share_of
from nats_backpressure.protocol.between_replicas import ALL_UNREAD, Presence
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.ports import TimeSource
from nats_backpressure.runtime.replicas import PRESENT_FOR, Replicas
from nats_backpressure.runtime.shared_reading import PROVED_EVERY, SharedReading

BACK_AFTER = 1.5
"""Seconds after which a replica that was cut off, or stood still, has received what the others read meanwhile."""
CHECK_EVERY = 0.1
"""Seconds."""


class SubjectWriters:
    """The writer of each subject, among the replicas that have our policies and whose writes arrive: of those that have
    readings of the most of its streams, the reader of the first one. Where that is none of these, or one of the
    replicas shares nothing, it is the first of them in an order by the stream's name, or by the subject's where no
    stream is known of it.

    All of them come to the same, since each knows the same reports of presence and the same record. Two that think of
    themselves as the writer, or none that does for a moment, is no error.
    """

    def __init__(self, clock: TimeSource, replicas: Replicas, shared: SharedReading, *, sharing: bool) -> None:
        self._clock, self._replicas, self._shared, self._sharing = clock, replicas, shared, sharing
        self._cut_off, self._checked_at = False, -math.inf

    def seen_at(self, subject: str, streams: Iterable[str], any_policies: bool) -> float | None:
        """Monotonic time of the newest sign of the replica that writes a subject with members in these streams; None
        where this one does, -inf where it is too early to know. `any_policies`: whether it may be one with others."""
        marks, ours = self._replicas.marks(), self._replicas.id
        if marks is not None and not (any_policies and marks) and self._replicas.policies not in marks:
            return None
        names = frozenset(streams)
        stream, best = min(names, default=""), self._seeing_most(names, any_policies)
        sharing = self._sharing and self._replicas.all_share
        if sharing and ours in best and self._shared.reads_all(stream):
            # Else it began to read a moment ago, and may soon receive the readings of another one.
            sure = marks is not None and self._shared.is_settled(stream) and not self.are_cut_off()
            return None if sure else -math.inf
        if marks is None:
            return self._shared.received_at(stream)
        sender = self._shared.sender(stream) if sharing else ""
        if sender in best:
            return max(self._replicas.others[sender].received_at, self._shared.received_at(stream))
        first = min(best, key=lambda id_: share_of(stream or subject, id_))
        return None if first == ours else self._replicas.others[first].received_at

    def are_cut_off(self) -> bool:
        """Whether there are other replicas, and what they read may not have come: they may see what this one does not.
        As it was CHECK_EVERY ago at most, since it is asked for each input."""
        now = self._clock.now().mono
        if now - self._checked_at >= CHECK_EVERY:
            received_for = self._shared.received_for(PROVED_EVERY + BACK_AFTER)
            self._cut_off, self._checked_at = bool(self._replicas.others) and received_for < BACK_AFTER, now
        return self._cut_off

    def connected_for(self) -> float:
        return self._shared.connected_for()

    def marks(self) -> frozenset[str] | None:
        return self._replicas.marks()

    def marks_that_lack(self, consumers: Collection[ConsumerKey]) -> frozenset[str]:
        return self._replicas.marks_that_lack(consumers)

    def reported_at(self, mark: str, streams: Iterable[str]) -> float:
        """Monotonic time of the newest report of a replica that runs, has readings of a subject with members in these
        streams, and keeps what is stored of it, under policies with this mark; -inf where there is none."""
        names, since = frozenset(streams), self._clock.now().mono - PRESENT_FOR
        at = (one.received_at for one in self._replicas.others.values() if _proves(one.presence, mark, names))
        return max((each for each in at if each >= since), default=-math.inf)

    def _is_able(self, other: Presence, any_policies: bool) -> bool:
        return other.writes and (any_policies or other.policies == self._replicas.policies)

    def _seeing_most(self, streams: frozenset[str], any_policies: bool) -> Collection[str]:
        """The ids of those that are able and have readings of the most of these streams, of all that have readings of
        those of which this replica has some: else what only it sees would be left to one that does not see it."""
        others = (one.presence for one in self._replicas.others.values())
        reported = {one.id: one.unread for one in others if self._is_able(one, any_policies)}
        reported[self._replicas.id] = self._replicas.unread()
        if not any(reported.values()):
            return reported
        unread = {id_: unread_of(names, streams) for id_, names in reported.items()}
        ours = unread[self._replicas.id]
        candidates = {id_: len(names) for id_, names in unread.items() if names <= ours}
        fewest = min(candidates.values())
        return [id_ for id_, count in candidates.items() if count == fewest]


def _proves(one: Presence, mark: str, streams: frozenset[str]) -> bool:
    return one.writes and one.policies == mark and not unread_of(one.unread, streams)


def unread_of(reported: Sequence[str], streams: frozenset[str]) -> frozenset[str]:
    """Which of these streams a replica has no readings of, that reported these as unread. A subject without any stream
    may have members in each of them."""
    if not reported:
        return frozenset()
    return streams.intersection(reported) if streams and tuple(reported) != ALL_UNREAD else streams or NO_STREAM


NO_STREAM = frozenset({""})
