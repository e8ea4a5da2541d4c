"""Decides from the event stream whether an event is already published, must be published, or conflicts with another.

The events of a subject are published in the order of `seq`. So an event is in the stream if a later one is, unless
another writer published that one: then ours, identified by its id and its time, is not there.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class StoredPosition(Struct, frozen=True):
    """A message on an event's own subject: its sequence in the stream, and the event in it; no id if it is not ours."""

    stream_seq: int = 0
    id: str = ""
    seq: int = 0
    at: str = ""


class OwnEvent(Struct, frozen=True):
    """The event to publish."""

    id: str
    seq: int
    at: str
    """As text. Two events with the same id and another time are two changes (a state bucket restored from a backup)."""


class PublishStep(StrEnum):
    """What to do next for an event."""

    STORED = "stored"
    PUBLISH = "publish"
    SEARCH = "search"
    """Ours may be older than the newest one: a process died before it could remove its events from the record."""
    CONFLICT = "conflict"


def step_before_publish(own: OwnEvent, newest: StoredPosition, top: int) -> PublishStep:
    """What to do. `newest`: the newest message on the event's own subject; `top`: the highest `seq` of any type."""
    if newest.id == own.id:
        return _same(own, newest)
    if newest.stream_seq and (not newest.id or newest.seq >= own.seq):
        return PublishStep.SEARCH
    return PublishStep.CONFLICT if top >= own.seq else PublishStep.PUBLISH


def step_after_search(own: OwnEvent, match: StoredPosition | None, top: int) -> PublishStep:
    """`match`: the first message on the event's own subject whose `seq` is not below ours."""
    if match is not None and match.id == own.id:
        return _same(own, match)
    return PublishStep.CONFLICT if match is not None or top >= own.seq else PublishStep.PUBLISH


def step_after_ack(duplicate: bool, attempted: bool) -> PublishStep:
    """After an attempt, a duplicate is our own late copy; on the first attempt the stream must show whose it is."""
    return PublishStep.SEARCH if duplicate and not attempted else PublishStep.STORED


def step_after_duplicate(step: PublishStep) -> PublishStep:
    """After a duplicate on the first attempt: stored if the stream shows our event, else another event has our id."""
    return PublishStep.STORED if step is PublishStep.STORED else PublishStep.CONFLICT


def next_base(own: OwnEvent, top: int) -> int:
    """The `seq` after which a new epoch continues after a conflict: never lower, even if the stream was emptied."""
    return max(top, own.seq - 1)


def _same(own: OwnEvent, stored: StoredPosition) -> PublishStep:
    return PublishStep.STORED if stored.at == own.at else PublishStep.CONFLICT
