"""put_newest: what every bounded dict of the client is written with."""

from __future__ import annotations

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def put_newest(entries: dict[K, V], key: K, value: V, most: int) -> V | None:
    """Store it as the newest, also where the key was there before: of more than `most` the oldest goes, which must not
    be one in use. Returns the value that went."""
    entries.pop(key, None)
    gone = entries.pop(next(iter(entries))) if entries and len(entries) >= most else None
    entries[key] = value
    return gone
