"""What is remembered of one subject: its members, what is stored of it, and what is on its way."""

from __future__ import annotations

import math

from msgspec import Struct

from nats_backpressure.core.admission.adaptive import OPEN, Shedding
from nats_backpressure.core.admission.gateway_reports import OfferedLoad
from nats_backpressure.core.model import Account, Admission, Alert, Carried, Event, Member
from nats_backpressure.policy.schema import Override, Policy, Rejection
from nats_backpressure.protocol.values import ConsumerKey, Diagnosis, Status

CARRIED_LIMIT = 256
"""Consumers of which `Carried` is stored, some 40 KB at most: those with latches first, then by how much waits for
them; the others start from nothing after a restart."""
UNSENT_LIMIT = 8
"""Events that wait in a stored state; at the limit, further changes are folded into the next event."""


LOSS_INTERVAL = 10.0
"""Seconds between two reports of one ongoing loss; what is lost in between is summed."""


class Recoveries(Struct, frozen=True):
    """The last incident and the sum of all that ended; times are Unix seconds, counted per incident."""

    incident: str | None = None
    began: float | None = None
    ended: float | None = None
    total: int = 0
    total_seconds: float = 0.0


class Totals(Struct, frozen=True):
    """Changes of status ever told of a subject."""

    active: int = 0
    warning: int = 0
    recovery: int = 0
    last: float | None = None
    """Unix seconds of the newest of them."""


class Record(Struct, frozen=True, omit_defaults=True):
    """What is stored of a subject; two records that are equal but for `unsent` say the same."""

    subject: str
    epoch: str
    seq: int = 0
    """Of the newest event ever listed; 0 if there was none."""
    status: Status = Status.INACTIVE
    """The last known status: never UNKNOWN."""
    announced: Status = Status.INACTIVE
    """The status the last listed event led to; differs from `status` only while `unsent` is full."""
    unknown: bool = False
    """Whether the subject is unknown now."""
    unknown_announced: bool = False
    """Whether the events listed so far say so; differs from `lost` only while `unsent` is full."""
    stale: bool = False
    """Whether it was stored that nothing proves it now, while other subjects are read."""
    since: float = 0.0
    """Unix seconds at which the present status (or the loss of it) began."""
    incident: str | None = None
    reasons: tuple[str, ...] = ()
    admission: Admission = Admission()
    latched: tuple[tuple[ConsumerKey, tuple[str, ...]], ...] = ()
    """The set latches of every consumer that has any."""
    carried: tuple[tuple[ConsumerKey, Carried], ...] = ()
    """By consumer, CARRIED_LIMIT at most; not compared when it is decided whether there is something to store."""
    recoveries: Recoveries = Recoveries()
    totals: Totals = Totals()
    diagnosis: Diagnosis | None = None
    override: Override | None = None
    """In force when it was stored."""
    alerts: tuple[Alert, ...] = ()
    announced_rejection: str = ""
    """The mark of the last refused policy that was told."""
    unsent: tuple[Event, ...] = ()


class Loss(Struct, frozen=True):
    """How many messages of a consumer are reported as lost in all, and where its accounting then stands."""

    key: ConsumerKey
    lost: int
    account: Account | None


class Writing(Struct, frozen=True):
    """A write on its way: `nonce` recognises it if it was applied although its answer was lost."""

    record: Record
    expected: int
    nonce: str
    failing: bool = False
    losses: tuple[Loss, ...] = ()
    """The losses that events in the record report."""
    departed_lost: int = 0
    """The same of consumers that are gone."""
    started_at: float = math.inf
    """Monotonic time at which it began."""


class SubjectState(Struct, frozen=True):
    subject: str
    policy: Policy
    """In force for the subject itself: what is answered while no member is known."""
    deadline: float
    """Monotonic time from which a subject without any proof is unknown."""
    members: dict[ConsumerKey, Member] = {}
    """Treated as frozen: replaced, never changed in place."""
    carried: dict[ConsumerKey, Carried] = {}
    """As stored when the record was loaded, also of consumers that were not read since. Treated as frozen."""
    record: Record | None = None
    """What is stored, as far as known; None until it was loaded or begun."""
    revision: int = 0
    """Of the stored key; 0 where there is none."""
    unstored: bool = False
    """Whether `record` was begun anew and is not stored yet."""
    must_reload: bool = False
    """Whether what is stored is another than `record` now and must be read before anything is written; `record` is
    still what is answered."""
    loading: bool = False
    writing: Writing | None = None
    written_at: float = 0.0
    """Monotonic time at which the newest write was asked for, or the record was read back."""
    publishing: str | None = None
    """Id of the event being published."""
    published: frozenset[str] = frozenset()
    """Ids in `record.unsent` that are acknowledged, until a write takes them off."""
    write_count: int = 0
    """Counted into each nonce."""
    empty_since: float | None = None
    """Monotonic time at which the last member went."""
    read_at: float | None = None
    """Monotonic time at which any member was last read."""
    watched_since: float | None = None
    """Monotonic time since which it has been read without a gap; None before the first reading of this process."""
    removing: bool = False
    """Whether the stored key is being removed; a member that joins meanwhile calls it off."""
    renumber_from: tuple[str, int] | None = None
    """Epoch and sequence to go on from after the events stream turned out to be ahead."""
    shedding: Shedding = OPEN
    """What adaptive admission came to; OPEN in binary mode."""
    offered_load: OfferedLoad | None = None
    """What gateways report; None where none does."""
    rejection: Rejection | None = None
    """The last policy that was refused."""
    departed_lost: int = 0
    """Lost messages of consumers that are gone, not reported yet."""
    unproved_at_load: bool = False
    """Whether what was loaded at the start was proved by nothing even then, and nobody was read since."""
    member_deleted: bool = False
    """Whether a member was deleted since the last change was told."""
