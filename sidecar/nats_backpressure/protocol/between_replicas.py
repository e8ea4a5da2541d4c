"""The messages between the replicas of one installation, apart from readings: presence and grants.

They are not for other programs and may change: what cannot be read counts as not sent. Unknown fields are ignored.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from nats_backpressure.protocol.requests import MOST_COUNTED, MOST_DUE, Due

SCHEMA = 1
"""Of these messages; one of another schema is not read."""
PRESENCE, GRANTS = "presence", "grants"
"""Topics: the subjects behind `NAME.v1.internal.`."""
MOST_GRANTS = 64
"""Grants in one message."""
MOST_UNREAD = 16
ALL_UNREAD = ("*",)
MOST_WATCHED = 64
"""Entries of `watch` in a report of presence, and names in each; a longer `watch` is not reported."""

Id = Annotated[str, Meta(min_length=1, max_length=64)]
"""Random, of one process."""
Name = Annotated[str, Meta(min_length=1, max_length=256)]


class Watched(Struct, frozen=True):
    """One entry of `watch` in the settings file of a replica."""

    stream: Name
    consumers: Annotated[tuple[Name, ...], Meta(max_length=MOST_WATCHED)]


class Presence(Struct, frozen=True, omit_defaults=True):
    """That a replica runs; each sends it once a second."""

    schema: int
    id: Id
    instance: Annotated[str, Meta(max_length=256)] = ""
    policies: Annotated[str, Meta(max_length=64)] = ""
    """The mark of the policies in its settings file."""
    writes: bool = True
    """Whether what it writes and publishes arrives."""
    leaving: bool = False
    """Whether it stops now."""
    shares: bool = True
    """Whether it uses the readings of others."""
    hints: bool = False
    """Whether it shares the ack metrics and advisories of the streams that it reads."""
    unread: Annotated[tuple[Name, ...], Meta(max_length=MOST_UNREAD)] = ()
    """The watched streams that it can neither read nor receive; ALL_UNREAD for all, or for more than MOST_UNREAD."""
    watch: Annotated[tuple[Watched, ...], Meta(max_length=MOST_WATCHED)] = ()
    """What it watches; empty where that is too long to report, or an older version does not."""
    missed: bool = False
    """Whether it has just connected, and did not receive what was sent before."""
    sent: Annotated[float, Meta(ge=0, le=32_503_680_000)] = 0.0
    """When it was sent, by the monotonic clock of that process."""


class SharedGrant(Struct, frozen=True):
    """One grant: `asker` may pull `n` messages of a consumer. With 0, the replica is asked, and claims a share."""

    stream: Name
    consumer: Name
    n: Annotated[int, Meta(ge=0, le=10_000)]
    asker: Annotated[str, Meta(max_length=256)] = ""
    held: Annotated[int, Meta(ge=0, le=MOST_COUNTED)] | None = None
    """What the asker reported to hold, less what it acknowledges before it pulls some of these."""
    wants: Annotated[int, Meta(ge=0, le=10_000)] = 0
    """How many messages it asked for."""
    lost: Annotated[int, Meta(ge=0, le=MOST_COUNTED)] = 0
    """What the asker reported as lost."""
    leaving: bool = False
    """Whether it asks no more."""
    unused: Annotated[int, Meta(ge=0, le=MOST_COUNTED)] = 0
    """What a leaving one gives back."""
    due: Annotated[tuple[Due, ...], Meta(max_length=MOST_DUE)] | None = None
    """When the asker said that the lost ones come back."""
    earlier: Annotated[tuple[Due, ...], Meta(max_length=MOST_DUE)] = ()
    """And those of earlier questions."""


class Grants(Struct, frozen=True):
    """What a replica granted just now."""

    schema: int
    id: Id
    grants: Annotated[tuple[SharedGrant, ...], Meta(max_length=MOST_GRANTS)] = ()


def grants_messages(id_: str, grants: tuple[SharedGrant, ...], longest: int) -> list[bytes]:
    """The messages with these grants, none longer than `longest` bytes unless it has only one."""
    message, half = msgspec.json.encode(Grants(SCHEMA, id_, grants)), len(grants) // 2
    if len(message) <= longest or not half:
        return [message]
    return [*grants_messages(id_, grants[:half], longest), *grants_messages(id_, grants[half:], longest)]


M = TypeVar("M", Presence, Grants)


def read(payload: bytes, kind: type[M]) -> M | None:
    """The message of another replica; None for what cannot be read."""
    try:
        message = msgspec.json.decode(payload, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return message if message.schema == SCHEMA else None
