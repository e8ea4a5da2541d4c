"""The inputs that `step` takes and the effects that it returns."""

from __future__ import annotations

import math

from msgspec import Struct

from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.subject.record import Record, Writing
from nats_backpressure.policy.schema import Policy, Rejection
from nats_backpressure.protocol.values import ConsumerKey, Status


class ConsumerJoined(Struct, frozen=True):
    """A consumer became a member of the subject, or its policy changed."""

    key: ConsumerKey
    policy: Policy


class ConsumerRead(Struct, frozen=True):
    """A sample of a member passed its checks and gave a reading."""

    reading: Reading


class ConsumersRead(Struct, frozen=True):
    """The same for several members, all read at about the same time: one change of the subject, not one for each."""

    readings: tuple[Reading, ...]


class ConsumerLeft(Struct, frozen=True):
    """A member no longer exists, or (`exists`) no longer counts under the subject."""

    key: ConsumerKey
    exists: bool = False


class PolicyChanged(Struct, frozen=True):
    """The policy of the subject itself changed."""

    policy: Policy


class PolicyRefused(Struct, frozen=True):
    """A policy for the subject was refused; the last good one stays."""

    rejection: Rejection


class GatewayReported(Struct, frozen=True):
    """A gateway reported how many requests it was offered and how many it admitted in the last seconds."""

    offered: int
    admitted: int
    seconds: float


class Dismissed(Struct, frozen=True):
    """An operator wants a subject without consumers removed now."""


class Tick(Struct, frozen=True):
    """Time passed."""

    reported_at: float = -math.inf
    """Monotonic time of the newest report of another replica, which runs and can write, that it has readings of what is
    stored."""


class RecordCreated(Struct, frozen=True):
    """No record of ours is stored: start a new epoch after the last published event, or store the last known record
    again. `revision`: of the key, or 0."""

    epoch: str
    revision: int = 0
    seq: int = 0
    status: Status = Status.INACTIVE
    incident: str | None = None
    lost: bool = False
    """Whether the last published event reports the subject as unknown."""
    moved: bool = False
    """Whether any published event led to `status`."""


class RecordLoaded(Struct, frozen=True):
    """The stored record was read."""

    record: Record
    revision: int
    newer: bool = False
    """Whether a newer version stored it, in a schema that this one cannot write."""
    absent: frozenset[ConsumerKey] = frozenset()
    """Members that the newest list of their stream lacks."""
    unwatched: frozenset[ConsumerKey] = frozenset()
    """Consumers with latches that only other replicas watch: they do not become members here."""
    instead: RecordCreated | None = None
    """What holds if the record is not the newest one; the events were read before it. None where that was not read."""


class RecordFollowed(Struct, frozen=True):
    """A write was seen in the store: of another replica, or our own, under way, before its reply."""

    record: Record
    revision: int
    nonce: str = ""
    newer: bool = False
    absent: frozenset[ConsumerKey] = frozenset()
    """Members that the newest list of their stream lacks."""
    unwatched: frozenset[ConsumerKey] = frozenset()
    """Consumers with latches that only other replicas watch: they do not become members here."""


class NewerHeartbeat(Struct, frozen=True):
    """A replica of a newer version wrote a heartbeat: what it stored is still its own."""


class WriteDone(Struct, frozen=True):
    """The write with this nonce is stored."""

    nonce: str
    revision: int


class WriteFailing(Struct, frozen=True):
    """A write is retried; meanwhile the last written state is answered, as stale."""

    nonce: str


class WriteConflict(Struct, frozen=True):
    """Another writer was first: the stored record must be read before the next write."""

    nonce: str


class RecordMissing(Struct, frozen=True):
    """The stored record is gone, or what is stored may not be ours: it must be read before the next write."""

    recreated: bool = False
    """Whether the bucket was created again: its revisions are no longer those that we know."""


class EventSeen(Struct, frozen=True):
    """An event is in the event stream, of any replica."""

    epoch: str
    seq: int


class EventSent(Struct, frozen=True):
    """The event is in the event stream."""

    id: str


class EventConflict(Struct, frozen=True):
    """Another writer published an event with this `seq`: continue after it in a new epoch."""

    id: str
    seq: int
    epoch: str


class KeyRemoved(Struct, frozen=True):
    """The stored key was removed, or another writer wrote it first (`conflict`); either way it is no longer ours."""

    conflict: bool = False


class EventDropped(Struct, frozen=True):
    """An event can never be published: it is dropped, and those after it are renumbered in a new epoch."""

    id: str
    epoch: str


Input = (
    ConsumerJoined
    | ConsumerRead
    | ConsumersRead
    | ConsumerLeft
    | PolicyChanged
    | PolicyRefused
    | GatewayReported
    | Dismissed
    | Tick
    | RecordLoaded
    | RecordFollowed
    | NewerHeartbeat
    | RecordCreated
    | WriteDone
    | WriteFailing
    | WriteConflict
    | RecordMissing
    | EventSeen
    | EventSent
    | EventConflict
    | EventDropped
    | KeyRemoved
)


class LoadRecord(Struct, frozen=True):
    """Read the stored record; its result is RecordLoaded or RecordCreated."""

    subject: str
    replacing: int = 0
    """Revision of a newer version's record that counts as none, since no replica of that version is left; 0: none."""
    doubted: bool = False
    """Whether to read before it what was published last: what is stored may not be the newest record."""


class WriteRecord(Struct, frozen=True):
    """Store by compare-and-set, and retry until the result is certain; its result is WriteDone or WriteConflict."""

    subject: str
    writing: Writing


class PublishEvent(Struct, frozen=True):
    """Publish exactly once, and retry until acknowledged; its result is EventSent, EventConflict or EventDropped."""

    subject: str
    event: SubjectEvent


class RemoveKey(Struct, frozen=True):
    """Remove the stored key, unless the state is no longer `removing`; its result is KeyRemoved."""

    subject: str
    revision: int


class DropSubject(Struct, frozen=True):
    """Nothing of the subject is left: drop its state at once."""

    subject: str


class ReportDifference(Struct, frozen=True):
    """Report that our policies would change what replicas with other policies have stored; it has no result."""

    subject: str
    stored: Record
    ours: Record


Effect = LoadRecord | WriteRecord | PublishEvent | RemoveKey | DropSubject | ReportDifference
