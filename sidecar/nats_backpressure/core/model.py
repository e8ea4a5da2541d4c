"""The words the core is written in: what is read, what is concluded, what is to be done."""

from __future__ import annotations

import math

from msgspec import Struct

from nats_backpressure.policy.schema import Override, Policy
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import (
    Action,
    AlertState,
    ConsumerKey,
    Diagnosis,
    EventType,
    LatencySource,
    Signal,
    Status,
)


class Retention(Struct, frozen=True):
    """What a stream drops by itself; 0 is no limit."""

    policy: str = "limits"
    """`limits`, `interest` or `workqueue`."""
    max_age: float = 0.0
    """Seconds."""
    max_msgs: int = 0
    max_bytes: int = 0
    discards_old: bool = True
    """Whether a full stream drops its oldest messages, rather than refusing new ones."""
    per_subject: int = 0
    """Messages of one subject; a newer one takes the place of the oldest."""
    rollup: bool = False
    """Whether a message may take the place of all before it."""
    life_times: bool = False
    """Whether a message may carry a life time of its own."""

    @property
    def drops(self) -> bool:
        """Whether it ever drops messages that nothing took the place of."""
        return self.max_age > 0 or self.life_times or (self.discards_old and (self.max_msgs > 0 or self.max_bytes > 0))

    @property
    def replaces(self) -> bool:
        """Whether newer messages may take the place of older ones. No subject holds more than the whole stream may."""
        return self.rollup or (self.per_subject > 0 and not 0 < self.max_msgs <= self.per_subject)


class StreamLook(Struct, frozen=True):
    """A stream as one reply of the server showed it."""

    name: str
    created: str
    first_seq: int
    last_seq: int
    messages: int
    subjects: tuple[str, ...] = ()
    at_limit: bool = False
    """Whether it stood at its own max_msgs or max_bytes, so that new messages push out old ones."""
    origin: str | None = None
    """The stream this one mirrors: a mirror shows no subjects of its own."""
    fill: float | None = None
    """The largest share of its own limits (messages, bytes) that it holds, 0..1; None without limits."""
    oldest_age: float | None = None
    """Seconds since its first message was stored, by the server's own clock; None where it is empty or not told."""
    retention: Retention | None = None
    """None where it is not known (an old recording): then it may drop anything."""


class ConsumerConfig(Struct, frozen=True):
    """What of a consumer's configuration bears on the judgement."""

    durable: bool = True
    ack_policy: str = "explicit"
    filters: tuple[str, ...] = ()
    max_ack_pending: int | None = None
    """None without a cap."""
    ack_wait: float = 30.0
    """Seconds until an unacknowledged message may be delivered again."""
    sampled: bool = False
    push: bool = False
    max_deliver: int | None = None
    """None without a limit."""
    priority_groups: bool = False
    rate_limited: bool = False
    original_replay: bool = False
    last_per_subject: bool = False
    """Whether it began with the last message of each subject: not all that the stream held is its own."""
    metadata: tuple[tuple[str, str], ...] = ()
    """What in its metadata is meant for us, by key: `backpressure.*` and `io.nats.monitor.*`."""


class Sample(Struct, frozen=True):
    """One consumer as one reply of the server showed it; counts are messages or sequences."""

    key: ConsumerKey
    created: str
    config: ConsumerConfig
    at: Now
    """When the reply that carried it arrived."""
    pending: int
    inflight: int
    redelivered: int
    waiting: int
    """Pull requests that wait on the server for a message."""
    delivered_stream: int
    delivered_consumer: int
    floor_stream: int
    floor_consumer: int
    since_delivery: float | None = None
    """Seconds since the last delivery, by the server's own clock; None where the reply does not tell."""
    since_ack: float | None = None
    """Seconds since the last acknowledgement, by the server's own clock."""
    paused: bool = False
    bound: bool = True
    """Whether somebody is subscribed to the deliver subject of a push consumer; True for pull consumers."""


class Account(Struct, frozen=True, gc=False):
    """Where the accounting of one consumer's losses stands: a checkpoint that survives a restart."""

    kind: int
    """A checksum of the incarnations of stream and consumer, the filters, and what newer messages take the place of:
    where it differs other messages were counted."""
    place: int
    """Stream sequence of the newest delivery."""
    given: int
    """Deliveries so far."""
    pending: int
    last: int
    """Last sequence of the stream at a look taken after the sample."""
    settled: int
    """Stream sequence up to which loss is accounted for, where sequences tell it."""
    holes: bool = False
    """Whether sequences do not tell it: messages were missing between the first and the last one."""


class Reading(Struct, frozen=True):
    """What the samples of one consumer come to: its signals, each None where there is not the evidence for it."""

    key: ConsumerKey
    at: Now
    pending: int
    inflight: int | None
    latency: float | None
    """Judged latency in ms: the larger of the stall and the p95 of what was delivered since nothing was to be done, by
    acks of the last 10 s; 0 while nothing waits and nothing is worked on."""
    drain: float | None
    """Seconds until what waits is through, at the rate measured while messages waited."""
    latency_source: LatencySource | None = None
    """`sampled`, `estimated`, `stall` or None."""
    stalled: bool = False
    """Whether the judged latency is the stall."""
    latency_evidence: bool = False
    """Whether a latency latch may be released on this reading (product page, section 11)."""
    p50: float | None = None
    p95: float | None = None
    """As shown: the larger of the p95 (sampled, or three times the estimated mean) and the stall, in ms."""
    p99: float | None = None
    stall: float = 0.0
    """Milliseconds without any acknowledgement while something is in flight; at least, unless `stall_known`."""
    stall_known: bool = True
    """False while nobody saw since when something is in flight, and no ack since then: a calm stall proves nothing."""
    spare: bool = False
    """As many pulls wait as messages are in flight, and nothing else does: these may be handed back for later."""
    settled: bool = True
    """Whether the windows are full; until then what they hold is too little to release a latch on (a restart)."""
    arrival_rate: float | None = None
    ack_rate: float | None = None
    redelivery_ratio: float | None = None
    cap: int | None = None
    ack_wait: float = 30.0
    delivered_consumer: int = 0
    waiting: int = 0
    """Pull requests that wait at the server."""
    lost: int = 0
    """Messages that left the stream before this consumer was given them, not reported in an earlier reading."""
    losing: bool = False
    """Whether this sample shows loss: a fall of pending is then no recovery."""
    purged: bool = False
    paused: bool = False
    diagnosis: Diagnosis | None = None
    """None until enough samples tell, and while the newest one does not bear out what the others told."""
    said: Diagnosis | None = None
    """The same, whether or not the newest sample bears it out: what goes on after a restart, once it is found again."""
    diagnosed_for: float = 0.0
    """Seconds for which that has been said without a break."""
    history: int = 0
    """The stream sequence up to which it reads history; 0 where it does not."""
    backfilling: bool = False
    """Surely reading history: seen to appear on a stream that already held messages for it, and not through yet."""
    capacity: float | None = None
    """Messages a second it was seen to get through, smoothed; learnt only while it was busy and nothing came again."""
    handed_back: int = 0
    """Messages in flight that a worker handed back for later."""
    account: Account | None = None
    """Where the accounting of losses stands, for a restart."""
    stream_fill: float | None = None
    oldest_age: float | None = None
    """Seconds the oldest waiting message has waited; None where that cannot be had cheaply."""


class MarkSet(Struct, frozen=True):
    """Three marks of one signal; a value is over a mark when it is above it, not at it."""

    warn: float
    critical: float
    overload: float


class Marks(Struct, frozen=True):
    """The marks in force for one consumer, after its cap; `inflight` is None where the signal is absent."""

    pending: MarkSet
    inflight: MarkSet | None
    latency: MarkSet
    drain: MarkSet


class Alert(Struct, frozen=True):
    """One alert of a subject as it stands."""

    name: str
    severity: str
    when: str
    """The condition in words, as `pending_above: 5000`."""
    state: AlertState
    since: float
    """Unix seconds at which it came to stand so."""
    value: float | str | None = None
    """What was compared."""


class Event(Struct, frozen=True):
    """Something that happened to a subject, as it will be told. `seq` rises by one per subject, across epochs too."""

    id: str
    type: EventType
    subject: str
    at: float
    """Unix seconds at which it was concluded."""
    epoch: str
    seq: int
    incident: str | None
    was: Status
    now: Status
    reasons: tuple[str, ...]
    pressure: float | None
    reading: Reading | None
    marks: Marks | None
    retry_after: int
    admit_ratio: float
    lost: int | None = None
    """With `data_loss`: how many messages at most."""
    diagnosis: Diagnosis | None = None
    override: Override | None = None
    """In force when it was concluded."""
    alert: Alert | None = None
    """With `alert_firing` and `alert_resolved`."""
    errors: tuple[tuple[str, str], ...] = ()
    """With `policy_rejected`: (path, message)."""
    policy_revision: str = ""
    """With `policy_rejected`: tells the refused policy from every other."""


class Latch(Struct, frozen=True):
    """A flag between two marks; `calm_since` is when its value was first seen at or below the release mark."""

    on: bool = False
    calm_since: float | None = None


class Latches(Struct, frozen=True):
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
        """The latched signals, in the order reasons are listed."""
        return tuple(s for s in Signal if getattr(self, s.value).on)

    @property
    def names(self) -> tuple[str, ...]:
        """Every set latch by its field name: what is stored."""
        return tuple(name for name in self.__struct_fields__ if getattr(self, name).on)


NO_LATCHES = Latches()


class Member(Struct, frozen=True):
    """One consumer under one subject, as it is judged there."""

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
    """How many of them a stored `data_loss` event reports."""
    lost_reported_at: float | None = None
    """Monotonic time at which that was stored last."""
    account: Account | None = None
    """Where the accounting stood when nothing was left to report: what is stored, so that no loss is skipped."""
    causes: frozenset[str] = frozenset()
    """What made pending fall besides work since the pending latch was last set: DATA_LOSS, PURGED."""

    joined_at: float = -math.inf
    """Monotonic time at which it came here; without any proof it is unproved from then on."""

    @property
    def unreported(self) -> int:
        """0 where another replica reported what is not counted here yet."""
        return max(0, self.lost - self.lost_reported)


class Carried(Struct, frozen=True, omit_defaults=True):
    """What is stored of one consumer so that a restart continues where this process was. It is stored with whatever is
    written next and is never by itself the reason for a write."""

    diagnosis: Diagnosis | None = None
    diagnosed_for: float = 0.0
    """Seconds for which `diagnosis` had held when it was stored."""
    capacity: float | None = None
    """Messages a second, learnt; None where it was not."""
    account: Account | None = None
    """Where the accounting of losses stands: all before it is reported."""
    lost: int = 0
    """Messages reported as lost so far."""
    causes: tuple[str, ...] = ()
    """What made pending fall besides work, since the pending latch was last set."""
    counted: Diagnosis | None = None
    """The diagnosis that set the latch `diagnosed`, while that is on."""
    stalled: bool = False
    """Whether a stall holds the latch `latency_p95`."""
    handed_back: int = 0
    """Messages in flight that a worker handed back for later."""
    history: int = 0
    """The stream sequence up to which it reads what was there before it; 0 if there is no such, or once through."""


NOTHING_CARRIED = Carried()


DATA_LOSS = "data_loss"


PURGED = "purged"


class Admission(Struct, frozen=True):
    """What a gateway is told, before any overrule for one request."""

    action: Action = Action.CONTINUE
    would: Action | None = None
    admit_ratio: float = 1.0
    retry_after: int = 0


SMALL_CAP = 10
"""A cap this small is full whenever the worker works."""


SMALL_CAP_STALL = 5_000.0
"""Milliseconds without an ack after which in flight counts at a small cap too."""
