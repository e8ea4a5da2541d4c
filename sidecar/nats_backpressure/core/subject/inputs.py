"""What can happen to a subject, and what is to be done about it: the two alphabets of `step`."""

from __future__ import annotations

from msgspec import Struct

from nats_backpressure.core.model import Event, Reading
from nats_backpressure.core.subject.state import Record, Writing
from nats_backpressure.policy.schema import Policy, Rejection
from nats_backpressure.protocol.values import ConsumerKey, Status


class ConsumerJoined(Struct, frozen=True):
    """A consumer that counts was found under the subject, or its policy is another now."""

    key: ConsumerKey
    policy: Policy


class ConsumerRead(Struct, frozen=True):
    """A sample of a member was believed."""

    reading: Reading


class ConsumerLeft(Struct, frozen=True):
    """A member was confirmed to exist no more, or (`exists`) to count under the subject no more."""

    key: ConsumerKey
    exists: bool = False


class PolicyChanged(Struct, frozen=True):
    """The policy of the subject itself is another now."""

    policy: Policy


class PolicyRefused(Struct, frozen=True):
    """A policy for the subject was refused; the last good one stays."""

    rejection: Rejection


class GatewayReported(Struct, frozen=True):
    """A gateway told what it was offered and what it let through in the last seconds."""

    offered: int
    admitted: int
    seconds: float


class Tick(Struct, frozen=True):
    """Time passed."""


class RecordLoaded(Struct, frozen=True):
    """The stored record was read."""

    record: Record
    revision: int


class RecordCreated(Struct, frozen=True):
    """Nothing of ours is stored: begin a new epoch where the events stream left off. `revision` is the key's, or 0."""

    epoch: str
    revision: int = 0
    seq: int = 0
    status: Status = Status.INACTIVE
    incident: str | None = None
    lost: bool = False
    """Whether the stream says last that the subject is unknown."""


class WriteDone(Struct, frozen=True):
    nonce: str
    revision: int


class WriteFailing(Struct, frozen=True):
    """A write is being retried; what is answered meanwhile is the last written state, stale."""

    nonce: str


class WriteConflict(Struct, frozen=True):
    """Somebody else wrote: what is stored must be read before anything is said."""

    nonce: str


class RecordMissing(Struct, frozen=True):
    """The bucket is another one now: what was stored is not there any more."""


class EventSent(Struct, frozen=True):
    id: str


class EventConflict(Struct, frozen=True):
    """The events stream holds `seq` already, told by somebody else: go on from there in a new epoch."""

    id: str
    seq: int
    epoch: str


class KeyRemoved(Struct, frozen=True):
    """The stored key was removed, or somebody else wrote it first; either way it is not ours any more."""


class EventDropped(Struct, frozen=True):
    """An event can never be published: it leaves the list, and those after it are numbered on in a new epoch."""

    id: str
    epoch: str


Input = (
    ConsumerJoined
    | ConsumerRead
    | ConsumerLeft
    | PolicyChanged
    | PolicyRefused
    | GatewayReported
    | Tick
    | RecordLoaded
    | RecordCreated
    | WriteDone
    | WriteFailing
    | WriteConflict
    | RecordMissing
    | EventSent
    | EventConflict
    | EventDropped
    | KeyRemoved
)


class LoadRecord(Struct, frozen=True):
    """Read what is stored; answer with Loaded or Begun."""

    subject: str


class WriteRecord(Struct, frozen=True):
    """Store by compare-and-set, again until it is certain; answer with Written or WriteConflict."""

    subject: str
    writing: Writing


class PublishEvent(Struct, frozen=True):
    """Tell exactly once, again until acknowledged; answer with Sent or SendConflicted."""

    subject: str
    event: Event


class RemoveKey(Struct, frozen=True):
    """Remove the stored key, unless the state is not `forgetting` any more; answer with Removed."""

    subject: str
    revision: int


class DropSubject(Struct, frozen=True):
    """Nothing is left of the subject: let go of its state, at once."""

    subject: str


Effect = LoadRecord | WriteRecord | PublishEvent | RemoveKey | DropSubject
