"""What the outcome of a publish means: told, to be told again, or told by somebody else."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class Newest(Struct, frozen=True):
    """The newest message on an event's own subject: its place in the stream, and the event in it."""

    place: int = 0
    id: str = ""
    seq: int = 0


class Next(StrEnum):
    TOLD = "told"
    PUBLISH = "publish"
    CONFLICT = "conflict"


def before(id: str, seq: int, newest: Newest) -> Next:
    """What to do, seeing the newest message on the subject: at first, and after an expected place was refused."""
    if newest.id == id:
        return Next.TOLD
    return Next.CONFLICT if newest.seq >= seq else Next.PUBLISH


def acknowledged(duplicate: bool, attempted: bool) -> Next:
    """A duplicate is our own late copy if we tried before; on a first attempt somebody else used the id."""
    return Next.CONFLICT if duplicate and not attempted else Next.TOLD
