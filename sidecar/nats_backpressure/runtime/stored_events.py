"""Events as they are stored in the events stream: which are wanted, those that were read, and what the newest show."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from nats_backpressure.protocol import messages
from nats_backpressure.protocol.values import Status


class CachedEvent(Struct, frozen=True, gc=False):
    """One event as it was published, with the fields it is found by."""

    subject: str
    type: str
    epoch: str
    seq: int
    at: int
    """Unix milliseconds at which the status changed."""
    body: bytes
    """The encoded event, as it is on the wire."""

    def event(self) -> messages.Event:
        """The decoded event."""
        return msgspec.json.decode(self.body, type=messages.Event)


class EventQuery(Struct, frozen=True):
    """Which events of a subject are wanted; times are Unix milliseconds, both ends included."""

    subject: str
    limit: int
    types: frozenset[str] = frozenset()
    """Empty means all."""
    since: int = 0
    until: int | None = None
    before: int | None = None
    """Only those of a lower `seq`."""

    def has(self, event: CachedEvent) -> bool:
        """Whether an event of the subject is wanted, but for the limit."""
        return (
            self.since <= event.at
            and (self.until is None or event.at <= self.until)
            and (self.before is None or event.seq < self.before)
            and (not self.types or event.type in self.types)
        )


class EventPage(Struct, frozen=True):
    """Some of the wanted events."""

    events: tuple[CachedEvent, ...]
    """The newest first."""
    whole: bool
    """Whether no wanted event is left out."""


def status_after(to: str) -> Status:
    """The status that an event led to, by its `to`."""
    return {"active": Status.ACTIVE, "warning": Status.WARNING}.get(to, Status.INACTIVE)


class LastEvent(Struct, frozen=True):
    """What the newest events of a subject show."""

    seq: int
    status: Status
    incident: str | None
    lost: bool = False
    """Whether the newest event about monitoring reports the subject as unknown."""
    moved: bool = False
    """Whether there is any event that led to `status`."""
