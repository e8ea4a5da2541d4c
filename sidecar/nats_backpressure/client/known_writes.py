"""KnownWrites: which writes of the state bucket were read, and whether it is still the same bucket."""

from __future__ import annotations

from collections.abc import Mapping

from nats_backpressure.client.bucket_reader import Write

NEVER = (0, 0.0, 0)
"""The revision, time and hash of a key that was not read."""


class KnownWrites:
    """The last write of each key that was read, and whether the bucket may still be the one they were read from."""

    def __init__(self) -> None:
        self.newest = 0
        """The highest revision."""
        self._writes: dict[str, tuple[int, float, int]] = {}
        """Revision, time (the server's clock) and hash of the value by key, the oldest first; as many as the bucket has
        keys."""

    def add(self, write: Write) -> None:
        self._writes.pop(write.key, None)
        self._writes[write.key] = write.revision, write.stamp, hash(write.value)
        self.newest = write.revision

    def has(self, values: Mapping[str, int]) -> bool:
        """Whether these are the values of these keys, by their hashes."""
        return all(self._writes.get(key, NEVER)[2] == value for key, value in values.items())

    def is_continued_by(self, writes: list[Write]) -> bool:
        """Whether these can be the writes from the newest known one on: that one itself, or where it was overwritten, a
        later one. Where the bucket was created again, or set back to an older copy, there is none, or another one."""
        first = writes[0] if writes else None
        if first is None or first.revision > self.newest:
            return first is not None
        return self._writes.get(first.key, NEVER)[:2] == (first.revision, first.stamp)

    def agrees_with(self, first: Write | None) -> bool:
        """Whether this can be the oldest write in the bucket. Where the bucket was created again, revisions count from
        1 again: its oldest write is one that was not read, or later than what was read of that key."""
        if first is None or not self._writes:
            return first is None and not self._writes
        revision, stamp, _ = self._writes.get(first.key, NEVER)
        oldest, _, _ = next(iter(self._writes.values()))
        return first.revision <= min(revision, oldest) and first.stamp <= stamp
