"""Which values count where the policy bucket holds more than is read: overrides, then what counted before, then the
oldest. So neither an emergency nor a change of what is in force depends on what else was stored."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from nats_backpressure.adapters.nats.api import Message
from nats_backpressure.policy.external import LARGEST_OVERRIDE, LARGEST_VALUE, OVERRIDES
from nats_backpressure.policy.snapshot import PolicyValue

MOST_KEYS, MOST_BYTES = 10_000, 8 * 1024 * 1024
"""Policies in the bucket, and what they have together; further ones are ignored, counted and logged. Nothing of them is
kept but what they say, which takes some five times as much at most. While the bucket is read there may be twice as
many bytes."""
MOST_OVERRIDES = 10_000
"""Overrides in the bucket, each of LARGEST_OVERRIDE bytes at most: of more the newest count, not the oldest."""
TOO_LARGE = b" " * (LARGEST_VALUE + 1)
"""In place of every value that is larger than its kind may be: one object for all."""


class BucketReading:
    """The values of one reading, added in the order of the writes. `counted`: the keys that counted before; one whose
    new value does not fit is there without it, so that the last good value stays."""

    def __init__(self, counted: Collection[str] = ()) -> None:
        self._counted = counted
        self._overrides: dict[str, PolicyValue] = {}
        self._known, self._new = _Policies(), _Policies()
        self.ignored: str | None = None
        """A key that does not count; None if all do."""

    def add(self, key: str, message: Message) -> None:
        override = key.startswith(OVERRIDES)
        large = len(message.data) > (LARGEST_OVERRIDE if override else LARGEST_VALUE)
        value = PolicyValue(TOO_LARGE if large else message.data, message.seq, message.at)
        if override:
            self._overrides[key] = value
            if len(self._overrides) > MOST_OVERRIDES:
                self.ignored = next(iter(self._overrides))
                del self._overrides[self.ignored]
        elif key in self._counted:
            if not self._known.add(key, value):
                self._known.values[key] = PolicyValue(b"", message.seq, message.at, fits=False)
        elif not self._new.add(key, value):
            self.ignored = key

    def values(self) -> dict[str, PolicyValue]:
        """What counts. To be called once, at the end."""
        for key, value in self._new.taken():
            if not self._known.add(key, value):
                self.ignored = key
        return self._known.values | self._overrides


class _Policies:
    """Values of policies, as many as count."""

    def __init__(self) -> None:
        self.values: dict[str, PolicyValue] = {}
        self._size = 0

    def add(self, key: str, value: PolicyValue) -> bool:
        """Returns whether it fits."""
        size = 0 if value.value is TOO_LARGE else len(value.value)
        if len(self.values) >= MOST_KEYS or self._size + size > MOST_BYTES:
            return False
        self.values[key] = value
        self._size += size
        return True

    def taken(self) -> Iterator[tuple[str, PolicyValue]]:
        """Each value, which is no longer kept here."""
        while self.values:
            key = next(iter(self.values))
            yield key, self.values.pop(key)
