"""Member: one consumer under one subject, with its latches; and Carried: the facts of it that a record stores."""

from __future__ import annotations

import math

from msgspec import Struct

from nats_backpressure.core.model.marks import Marks
from nats_backpressure.core.model.reading import Account, Reading
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.values import ConsumerKey, Diagnosis, Signal, Status

DATA_LOSS = "data_loss"
PURGED = "purged"
CONSUMER_DELETED = "consumer_deleted"
"""The consumer, or its stream, was deleted: another one has its name."""
CONSUMER_RESET = "consumer_reset"
CAUSES = (DATA_LOSS, PURGED, CONSUMER_DELETED, CONSUMER_RESET)
"""What else than work may lower pending, in the order of reasons."""
STORED_CAUSES = 2
"""Of these a record has the first ones; what earlier versions read has no more."""


class Latch(Struct, frozen=True, gc=False):
    """A flag between two marks; `calm_since` is when its value was first seen at or below the release mark. A released
    one remembers it until the release is stored: a write of another replica may come first, which has the latch set."""

    on: bool = False
    calm_since: float | None = None


class Latches(Struct, frozen=True, gc=False):
    """All latches of one member; `_alone` ones have a higher mark, above which one signal is enough."""

    pending: Latch = Latch()
    inflight: Latch = Latch()
    latency_p95: Latch = Latch()
    drain: Latch = Latch()
    pending_alone: Latch = Latch()
    drain_alone: Latch = Latch()
    diagnosed: Latch = Latch()
    """A diagnosis that counts as a signal beside an overloaded backlog."""

    @property
    def signals(self) -> tuple[Signal, ...]:
        """The latched signals, in the order of reasons."""
        return tuple(s for s in Signal if getattr(self, s.value).on)

    @property
    def names(self) -> tuple[str, ...]:
        """Every set latch by its field name: what is stored."""
        return tuple(name for name in self.__struct_fields__ if getattr(self, name).on)


NO_LATCHES = Latches()


class Member(Struct, frozen=True, gc=False):
    """One consumer under one subject: its policy, newest reading, latches and status there."""

    key: ConsumerKey
    policy: Policy
    latches: Latches = Latches()
    status: Status = Status.UNKNOWN
    """The last known one; UNKNOWN only while never sampled."""
    reading: Reading | None = None
    proof: float | None = None
    """Monotonic time of the newest proof that `reading` holds; None while never sampled."""
    marks: Marks | None = None
    pressure: float = 0.0
    counted_diagnosis: Diagnosis | None = None
    """The diagnosis that set the latch `diagnosed`."""
    stalled: bool = False
    """Whether a stall set or holds the latch `latency_p95`."""
    lost: int = 0
    """Messages known to be lost so far, those of before a restart among them."""
    lost_reported: int = 0
    """How many of them stored `data_loss` events report."""
    lost_reported_at: float | None = None
    """Monotonic time at which such an event was last stored."""
    account: Account | None = None
    """The account at a time when nothing was left to report; this one is stored, so that no loss is skipped."""
    causes: frozenset[str] = frozenset()
    """What else than work lowered pending since the first latch, or that of pending, was set: some of CAUSES."""

    joined_at: float = -math.inf
    """Monotonic time at which it joined; without any proof it counts as unproved from then on."""

    @property
    def unreported(self) -> int:
        """Lost messages that no stored event reports; 0 where another replica reported more than is counted here."""
        return max(0, self.lost - self.lost_reported)


class Carried(Struct, frozen=True, omit_defaults=True, gc=False):
    """What is stored of one consumer so that a new process continues where this one was. It is stored with the next
    write; see `subject.restart_facts` for when it is worth a write of its own."""

    diagnosis: Diagnosis | None = None
    diagnosed_for: float = 0.0
    """Seconds for which `diagnosis` had held when it was stored."""
    capacity: float | None = None
    """Messages per second, learnt; None where nothing was learnt."""
    account: Account | None = None
    """The state of counting losses: all losses before it are reported."""
    lost: int = 0
    """Messages reported as lost so far."""
    causes: tuple[str, ...] = ()
    """What else than work lowered pending since the pending latch was last set."""
    counted: Diagnosis | None = None
    """The diagnosis that set the latch `diagnosed`, while that is on."""
    stalled: bool = False
    """Whether a stall holds the latch `latency_p95`."""
    made: int = 0
    """See `Reading.made`; 0 where an older version stored this. What another one did says nothing of this one."""
    delivered: int | None = None
    """Its deliveries by then, of which those that came later may be of what was handed back; None as above."""
    handed_back: int = 0
    """Messages in flight that a worker returned with a delayed NAK."""
    history: int = 0
    """The stream sequence up to which it reads messages older than itself; 0 if there are none, or none left."""


NOTHING_CARRIED = Carried()
