"""What the policy bucket holds at one moment."""

from __future__ import annotations

from msgspec import Struct


class PolicyValue(Struct, frozen=True):
    """One key's value in the policy bucket."""

    value: bytes
    revision: int
    at: float = 0.0
    """Unix seconds at which the server stored it."""
    fits: bool = True
    """Whether the value was read: if not, the bucket holds too much beside it."""


class PolicySnapshot(Struct, frozen=True):
    """The whole policy bucket at one moment."""

    bucket: str
    """When the bucket was created, which distinguishes it from another bucket of the same name."""
    entries: dict[str, PolicyValue]
    """By key as it is in the bucket (an encoded subject or pattern). Treated as frozen."""
