"""The record of a subject: what is stored of it under its key, and the write of it that is under way."""

from __future__ import annotations

import math

from msgspec import Struct

from nats_backpressure.core.model.admission import GatewayAdmission
from nats_backpressure.core.model.event import SubjectAlert, SubjectEvent
from nats_backpressure.core.model.member import Carried
from nats_backpressure.core.model.reading import Account
from nats_backpressure.policy.schema import Override
from nats_backpressure.protocol.values import ConsumerKey, Diagnosis, Status

CARRIED_LIMIT = 256
"""Consumers whose `Carried` is stored, some 40 KB at most: those with latches first, then by how much waits for
them; the others start from nothing after a restart."""
UNSENT_LIMIT = 8
"""Events that wait in a stored record; at the limit, further changes are folded into the next event."""
MOST_REJECTIONS = 16
"""Refused policies of a subject (of the bucket, and of the metadata of each consumer) that are remembered as announced;
one more drops the oldest, which is announced again after a restart."""


class Recoveries(Struct, frozen=True, gc=False):
    """The last incident and the sum of all that ended; times are Unix seconds, counted per incident."""

    incident: str | None = None
    began: float | None = None
    ended: float | None = None
    total: int = 0
    total_seconds: float = 0.0


class Totals(Struct, frozen=True, gc=False):
    """Changes of status ever announced of a subject."""

    active: int = 0
    warning: int = 0
    recovery: int = 0
    last: float | None = None
    """Unix seconds of the newest of them."""


class Record(Struct, frozen=True, omit_defaults=True, gc=False):
    """What is stored of a subject under its key."""

    subject: str
    epoch: str
    seq: int = 0
    """Seq of the newest event ever listed in `unsent`; 0 if there was none."""
    status: Status = Status.INACTIVE
    """The last known status; never UNKNOWN."""
    announced: Status = Status.INACTIVE
    """The status that the last listed event led to; differs from `status` only while `unsent` is full."""
    unknown: bool = False
    """Whether the subject is unknown now."""
    unknown_announced: bool = False
    """Whether an event about that was listed; differs from `unknown` only while `unsent` is full."""
    stale: bool = False
    """Whether nothing proves the status now, while other subjects are read."""
    since: float = 0.0
    """Unix seconds since which the status is what it is, or unknown."""
    incident: str | None = None
    reasons: tuple[str, ...] = ()
    admission: GatewayAdmission = GatewayAdmission()
    latched: tuple[tuple[ConsumerKey, tuple[str, ...]], ...] = ()
    """The set latches of every consumer that has any."""
    carried: tuple[tuple[ConsumerKey, Carried], ...] = ()
    """By consumer, CARRIED_LIMIT at most; a change of these alone is written after `restart_facts.CARRY_EVERY`."""
    recoveries: Recoveries = Recoveries()
    totals: Totals = Totals()
    diagnosis: Diagnosis | None = None
    override: Override | None = None
    """The override in force when this was stored."""
    alerts: tuple[SubjectAlert, ...] = ()
    announced_rejections: tuple[str, ...] = ()
    """The marks of the newest refused policies that were announced, MOST_REJECTIONS at most."""
    unsent: tuple[SubjectEvent, ...] = ()
    """Events to publish, in order of seq: UNSENT_LIMIT at most."""
    policy_mark: str = ""
    """Of the settings file whose policies judged this; empty where a version without marks stored it."""


class Loss(Struct, frozen=True):
    """How many messages of a consumer are reported as lost in all, and the account of its losses at that time."""

    key: ConsumerKey
    lost: int
    account: Account | None


class Writing(Struct, frozen=True):
    """A write under way. Its `nonce` recognises it where it was applied although its reply was lost."""

    record: Record
    expected: int
    nonce: str
    failing: bool = False
    losses: tuple[Loss, ...] = ()
    """The losses that the events in the record report."""
    departed_lost: int = 0
    """The same for consumers that are gone."""
    started_at: float = math.inf
    """Monotonic time at which it started."""
