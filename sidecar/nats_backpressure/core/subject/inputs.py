"""What can happen to a subject, and what is to be done about it: the two alphabets of `step`."""

from __future__ import annotations

from msgspec import Struct

from nats_backpressure.core.model import Event, Reading
from nats_backpressure.core.subject.state import Record, Writing
from nats_backpressure.policy.schema import Policy, Rejection
from nats_backpressure.protocol.values import ConsumerKey, Status


class Joined(Struct, frozen=True):
    """A consumer that counts was found under the subject, or its policy is another now."""

    key: ConsumerKey
    policy: Policy


class Read(Struct, frozen=True):
    """A sample of a member was believed."""

    reading: Reading


class Gone(Struct, frozen=True):
    """A member was confirmed to exist no more, or (`exists`) to count under the subject no more."""

    key: ConsumerKey
    exists: bool = False


class Ruled(Struct, frozen=True):
    """The policy of the subject itself is another now."""

    policy: Policy


class Refused(Struct, frozen=True):
    """A policy for the subject was refused; the last good one stays."""

    rejection: Rejection


class Reported(Struct, frozen=True):
    """A gateway told what it was offered and what it let through in the last seconds."""

    offered: int
    admitted: int
    seconds: float


class Tick(Struct, frozen=True):
    """Time passed."""


class Loaded(Struct, frozen=True):
    """The stored record was read."""

    record: Record
    revision: int


class Begun(Struct, frozen=True):
    """Nothing of ours is stored: begin a new epoch where the events stream left off. `revision` is the key's, or 0."""

    epoch: str
    revision: int = 0
    seq: int = 0
    status: Status = Status.INACTIVE
    incident: str | None = None
    lost: bool = False
    """Whether the stream says last that the subject is unknown."""


class Written(Struct, frozen=True):
    nonce: str
    revision: int


class WriteFailing(Struct, frozen=True):
    """A write is being retried; what is answered meanwhile is the last written state, stale."""

    nonce: str


class WriteConflict(Struct, frozen=True):
    """Somebody else wrote: what is stored must be read before anything is said."""

    nonce: str


class Unstored(Struct, frozen=True):
    """The bucket is another one now: what was stored is not there any more."""


class Sent(Struct, frozen=True):
    id: str


class SendConflicted(Struct, frozen=True):
    """The events stream holds `seq` already, told by somebody else: go on from there in a new epoch."""

    id: str
    seq: int
    epoch: str


class Removed(Struct, frozen=True):
    """The stored key was removed, or somebody else wrote it first; either way it is not ours any more."""


class SendDropped(Struct, frozen=True):
    """An event can never be published: it leaves the list, and those after it are numbered on in a new epoch."""

    id: str
    epoch: str


Stimulus = (
    Joined
    | Read
    | Gone
    | Ruled
    | Refused
    | Reported
    | Tick
    | Loaded
    | Begun
    | Written
    | WriteFailing
    | WriteConflict
    | Unstored
    | Sent
    | SendConflicted
    | SendDropped
    | Removed
)


class Load(Struct, frozen=True):
    """Read what is stored; answer with Loaded or Begun."""

    subject: str


class Write(Struct, frozen=True):
    """Store by compare-and-set, again until it is certain; answer with Written or WriteConflict."""

    subject: str
    writing: Writing


class Publish(Struct, frozen=True):
    """Tell exactly once, again until acknowledged; answer with Sent or SendConflicted."""

    subject: str
    event: Event


class Forget(Struct, frozen=True):
    """Remove the stored key, unless the state is not `forgetting` any more; answer with Removed."""

    subject: str
    revision: int


class Drop(Struct, frozen=True):
    """Nothing is left of the subject: let go of its state, at once."""

    subject: str


Act = Load | Write | Publish | Forget | Drop
