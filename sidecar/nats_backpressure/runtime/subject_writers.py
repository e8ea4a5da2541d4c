"""Knows which replica writes the changes of a subject: the reader of the first of its streams, by name."""

from __future__ import annotations

import math
from collections.abc import Iterable

from nats_backpressure.core.reading.sharing import share_of
from nats_backpressure.runtime.replicas import Replicas
from nats_backpressure.runtime.shared_reading import SharedReading


class SubjectWriters:
    """The writer of each subject, among the replicas that have our policies and whose writes arrive.

    Where the reader is none of these, or nobody shares what it reads, it is the first of them in an order by the
    stream's name. Two that think of themselves as the writer, or none that does for a moment, is no error.
    """

    def __init__(self, replicas: Replicas, shared: SharedReading, *, sharing: bool) -> None:
        self._replicas, self._shared, self._sharing = replicas, shared, sharing

    def seen_at(self, subject: str, streams: Iterable[str]) -> float | None:
        """Monotonic time of the newest sign of the replica that writes a subject with members in these streams; None
        where this one does, -inf where it is too early to know."""
        stream, marks = min(streams, default=""), self._replicas.marks()
        if marks is not None and self._replicas.policies not in marks:
            return None
        if self._sharing and self._shared.reads_all(stream):
            # One that began to read a moment ago may soon receive the readings of another one.
            return None if self._shared.is_settled(stream) and marks is not None else -math.inf
        seen = self._seen()
        reader, received_at = self._shared.reader(stream)
        if reader in seen or marks is None:
            return max(seen.get(reader, -math.inf), received_at)
        own = self._replicas.id
        first = min((own, *seen), key=lambda id_: share_of(stream or subject, id_))
        return None if first == own else seen[first]

    def _seen(self) -> dict[str, float]:
        """The others that may write, with the monotonic time of the newest sign of each."""
        others, ours = self._replicas.others, self._replicas.policies
        return {
            id_: one.received_at for id_, one in others.items() if one.presence.writes and one.presence.policies == ours
        }
