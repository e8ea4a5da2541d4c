"""What the events stream holds, and what that means for an event: told, to be told, or told by somebody else.

A subject's events are told in the order of their `seq`. So one is in the stream if a later one is, unless somebody
else told that one: then ours, known by its id and its time, is not there.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class StoredPosition(Struct, frozen=True):
    """A message on an event's own subject: its place in the stream, and the event in it; no id if it is foreign."""

    stream_seq: int = 0
    id: str = ""
    seq: int = 0
    at: str = ""


class OwnEvent(Struct, frozen=True):
    """The event to be told."""

    id: str
    seq: int
    at: str
    """As rendered: two events of one id and another time are two changes (a state bucket put back from a backup)."""


class PublishStep(StrEnum):
    STORED = "told"
    PUBLISH = "publish"
    SEARCH = "search"
    """Ours may lie behind the newest: a process that died before it could take its events off the list."""
    CONFLICT = "conflict"


def step_before_publish(mine: OwnEvent, newest: StoredPosition, top: int) -> PublishStep:
    """What to do, seeing the newest message on the event's own subject and the subject's highest `seq` of any type."""
    if newest.id == mine.id:
        return _same(mine, newest)
    if newest.stream_seq and (not newest.id or newest.seq >= mine.seq):
        return PublishStep.SEARCH
    return PublishStep.CONFLICT if top >= mine.seq else PublishStep.PUBLISH


def step_after_search(mine: OwnEvent, found: StoredPosition | None, top: int) -> PublishStep:
    """`found` is the first message on the event's own subject whose `seq` is not below ours."""
    if found is not None and found.id == mine.id:
        return _same(mine, found)
    return PublishStep.CONFLICT if found is not None or top >= mine.seq else PublishStep.PUBLISH


def step_after_ack(duplicate: bool, attempted: bool) -> PublishStep:
    """A duplicate is our own late copy if we tried before; on a first attempt the stream has to say whose it is."""
    return PublishStep.SEARCH if duplicate and not attempted else PublishStep.STORED


def step_after_duplicate(verdict: PublishStep) -> PublishStep:
    """After a duplicate on a first attempt: told if the stream shows ours; it knows the id but not the event if not."""
    return PublishStep.STORED if verdict is PublishStep.STORED else PublishStep.CONFLICT


def next_base(mine: OwnEvent, top: int) -> int:
    """The `seq` a new epoch goes on from after a conflict: never back, even if the stream was emptied."""
    return max(top, mine.seq - 1)


def _same(mine: OwnEvent, found: StoredPosition) -> PublishStep:
    return PublishStep.STORED if found.at == mine.at else PublishStep.CONFLICT
