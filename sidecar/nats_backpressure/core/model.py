"""The types that all of core shares: samples and stream looks, readings, marks, latches, members, events."""

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
    """How a stream drops messages by itself; 0 is no limit."""

    policy: str = "limits"
    """`limits`, `interest` or `workqueue`."""
    max_age: float = 0.0
    """Seconds."""
    max_msgs: int = 0
    max_bytes: int = 0
    discards_old: bool = True
    """Whether a full stream drops its oldest messages, rather than refusing new ones."""
    per_subject: int = 0
    """Messages of one subject; a newer one replaces the oldest."""
    rollup: bool = False
    """Whether a message may replace all messages before it."""
    life_times: bool = False
    """Whether a message may carry a life time of its own."""

    @property
    def drops(self) -> bool:
        """Whether it ever drops messages without replacing them."""
        return self.max_age > 0 or self.life_times or (self.discards_old and (self.max_msgs > 0 or self.max_bytes > 0))

    @property
    def replaces(self) -> bool:
        """Whether newer messages may replace older ones. No subject holds more than the whole stream may."""
        return self.rollup or (self.per_subject > 0 and not 0 < self.max_msgs <= self.per_subject)


class StreamLook(Struct, frozen=True):
    """What the server returned about one stream in one reply."""

    name: str
    created: str
    first_seq: int
    last_seq: int
    messages: int
    subjects: tuple[str, ...] = ()
    at_limit: bool = False
    """Whether it was at its own max_msgs or max_bytes, so that new messages push out old ones."""
    origin: str | None = None
    """The stream this one mirrors: a mirror shows no subjects of its own."""
    fill: float | None = None
    """The largest share of its own limits (messages, bytes) that it holds, 0..1; None without limits."""
    oldest_age: float | None = None
    """Seconds since its first message was stored, by the server's clock; None if empty or if the reply has no time."""
    retention: Retention | None = None
    """None where it is not known (an old recording): then it may drop anything."""


class ConsumerConfig(Struct, frozen=True):
    """The part of a consumer's configuration that the evaluation needs."""

    durable: bool = True
    ack_policy: str = "explicit"
    filters: tuple[str, ...] = ()
    max_ack_pending: int | None = None
    """None without a cap."""
    ack_wait: float = 30.0
    """Seconds until an unacknowledged message may be delivered again."""
    push: bool = False
    priority_groups: bool = False
    rate_limited: bool = False
    original_replay: bool = False
    last_per_subject: bool = False
    """Whether it started with the last message of each subject: older messages are not its own."""
    metadata: tuple[tuple[str, str], ...] = ()
    """The part of its metadata that is for us, by key: `backpressure.*` and `io.nats.monitor.*`."""


class Sample(Struct, frozen=True):
    """What the server returned about one consumer in one reply; counts are messages or sequences."""

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
    """Seconds since the last delivery, by the server's own clock; None where the reply has no time."""
    since_ack: float | None = None
    """Seconds since the last acknowledgement, by the server's own clock."""
    paused: bool = False
    bound: bool = True
    """Whether somebody is subscribed to the deliver subject of a push consumer; True for pull consumers."""


class Account(Struct, frozen=True, gc=False):
    """The state of counting one consumer's losses: a checkpoint that survives a restart."""

    kind: int
    """A checksum of the incarnations of stream and consumer, the filters, and the rule by which newer messages replace
    older ones: where it differs, other messages were counted."""
    place: int
    """Stream sequence of the newest delivery."""
    given: int
    """Deliveries so far."""
    pending: int
    last: int
    """Last sequence of the stream, read after the sample."""
    settled: int
    """Stream sequence up to which losses are counted, where sequences can count them."""
    holes: bool = False
    """Whether sequences cannot count them: messages were missing between the first and the last one."""


class Reading(Struct, frozen=True):
    """What the samples of one consumer mean: its signals and rates, each None where the evidence is missing."""

    key: ConsumerKey
    at: Now
    pending: int
    inflight: int | None
    latency: float | None
    """The latency that is compared with its mark, in ms: the larger of the stall and the p95 of the messages delivered
    since there was last nothing to do, by acks of the last 10 s; 0 while nothing waits and nothing is in work."""
    drain: float | None
    """Seconds until the waiting messages are processed, at the rate measured while messages waited."""
    latency_source: LatencySource | None = None
    """`sampled`, `estimated`, `stall` or None."""
    stalled: bool = False
    """Whether `latency` is the stall."""
    latency_evidence: bool = False
    """Whether a latency latch may be released on this reading: there is a fresh measurement."""
    p50: float | None = None
    p95: float | None = None
    """The larger of the p95 (sampled, or three times the estimated mean) and the stall, in ms; for people."""
    p99: float | None = None
    stall: float = 0.0
    """Milliseconds without any acknowledgement while something is in flight; at least, unless `stall_known`."""
    stall_known: bool = True
    """False while it is not known since when something is in flight: a short stall proves nothing then."""
    spare: bool = False
    """As many pulls wait as messages are in flight, and no message waits: those in flight may be returned with a
    delayed NAK."""
    settled: bool = True
    """Whether the windows are full; until then (after a restart) they hold too little to release a latch."""
    arrival_rate: float | None = None
    ack_rate: float | None = None
    redelivery_ratio: float | None = None
    cap: int | None = None
    ack_wait: float = 30.0
    delivered_consumer: int = 0
    waiting: int = 0
    """Pull requests that wait at the server."""
    lost: int = 0
    """Messages that left the stream before they were delivered to this consumer, since the reading before."""
    losing: bool = False
    """Whether this sample shows loss: a fall of pending is then no recovery."""
    purged: bool = False
    paused: bool = False
    diagnosis: Diagnosis | None = None
    """None until there are enough samples, and while the newest one contradicts the others."""
    lasting_diagnosis: Diagnosis | None = None
    """The same, whether or not the newest sample agrees: what continues after a restart, once it is found again."""
    diagnosed_for: float = 0.0
    """Seconds for which `lasting_diagnosis` has not changed."""
    history: int = 0
    """The stream sequence up to which it reads history; 0 where it reads none."""
    backfilling: bool = False
    """Certainly reading history: it was seen to appear on a stream that already held messages for it, and is not at its
    end yet."""
    capacity: float | None = None
    """Messages per second it can process, smoothed; learnt only while it was busy and nothing was redelivered."""
    handed_back: int = 0
    """Messages in flight that a worker returned with a delayed NAK."""
    account: Account | None = None
    """The state of counting losses, for a restart."""
    stream_fill: float | None = None
    oldest_age: float | None = None
    """Seconds the oldest waiting message has waited; None where that would cost a request."""


class MarkSet(Struct, frozen=True):
    """Three marks of one signal; a value must be above a mark, not at it, to exceed it."""

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
    """One alert of a subject, and its state."""

    name: str
    severity: str
    when: str
    """The condition in words, as `pending_above: 5000`."""
    state: AlertState
    since: float
    """Unix seconds since which it has this state."""
    value: float | str | None = None
    """The value that met the condition."""


class Event(Struct, frozen=True):
    """One change of a subject, to be published once. `seq` rises by one per subject, across epochs too."""

    id: str
    type: EventType
    subject: str
    at: float
    """Unix seconds at which the change was seen."""
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
    """With `data_loss`: how many messages were certainly lost."""
    diagnosis: Diagnosis | None = None
    override: Override | None = None
    """The override in force at that time."""
    alert: Alert | None = None
    """With `alert_firing` and `alert_resolved`."""
    errors: tuple[tuple[str, str], ...] = ()
    """With `policy_rejected`: (path, message)."""
    policy_revision: str = ""
    """With `policy_rejected`: identifies the refused policy."""


class Latch(Struct, frozen=True):
    """A flag between two marks; `calm_since` is when its value was first seen at or below the release mark."""

    on: bool = False
    calm_since: float | None = None


class Latches(Struct, frozen=True):
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


class Member(Struct, frozen=True):
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
    """What else than work lowered pending since the pending latch was last set: DATA_LOSS, PURGED."""

    joined_at: float = -math.inf
    """Monotonic time at which it joined; without any proof it counts as unproved from then on."""

    @property
    def unreported(self) -> int:
        """Lost messages that no stored event reports; 0 where another replica reported more than is counted here."""
        return max(0, self.lost - self.lost_reported)


class Carried(Struct, frozen=True, omit_defaults=True):
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
    handed_back: int = 0
    """Messages in flight that a worker returned with a delayed NAK."""
    history: int = 0
    """The stream sequence up to which it reads messages older than itself; 0 if there are none, or none left."""


NOTHING_CARRIED = Carried()

DATA_LOSS = "data_loss"
PURGED = "purged"


class Admission(Struct, frozen=True):
    """What gateways may admit, before the override and the priority of one request are applied."""

    action: Action = Action.CONTINUE
    would: Action | None = None
    admit_ratio: float = 1.0
    retry_after: int = 0


SMALL_CAP = 10
"""A cap this small is reached whenever the worker works."""
SMALL_CAP_STALL = 5_000.0
"""Milliseconds without an ack after which in flight counts at such a cap too."""
