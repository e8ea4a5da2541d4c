"""The words the core is written in: what is read, what is concluded, what is to be done."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated, Literal, NamedTuple

from msgspec import Meta, Struct


class Now(NamedTuple):
    """One moment on two clocks: `mono` (seconds) measures durations, `wall` (Unix seconds) is shown to people."""

    mono: float
    wall: float


class Status(IntEnum):
    """How close to overload; ordered by severity so that the worst is the maximum."""

    UNKNOWN = -1
    INACTIVE = 0
    WARNING = 1
    ACTIVE = 2

    @property
    def word(self) -> str:
        return self.name.lower()


class Action(StrEnum):
    CONTINUE = "continue"
    THROTTLE = "throttle"
    REJECT = "reject"


class Freshness(StrEnum):
    KNOWN = "known"
    STALE = "stale"
    UNKNOWN = "unknown"


class Signal(StrEnum):
    """What counts towards the status, in the order reasons are listed."""

    PENDING = "pending"
    INFLIGHT = "inflight"
    LATENCY = "latency_p95"
    DRAIN = "drain"


class Level(StrEnum):
    """For display only: which mark a value stands above."""

    NORMAL = "normal"
    WARN = "warn"
    CRITICAL = "critical"
    OVERLOAD = "overload"


class EventType(StrEnum):
    ACTIVE = "backpressure_active"
    WARNING = "backpressure_warning"
    RECOVERY = "recovery"
    DATA_LOSS = "data_loss"
    MONITORING_LOST = "monitoring_lost"
    MONITORING_RESTORED = "monitoring_restored"
    ALERT_FIRING = "alert_firing"
    ALERT_RESOLVED = "alert_resolved"
    POLICY_REJECTED = "policy_rejected"


class Diagnosis(StrEnum):
    """What is going on with a consumer, the most severe first."""

    SERVER_STUCK = "server_stuck"
    CAP_REACHED = "cap_reached"
    NOBODY_PULLING = "nobody_pulling"
    POISON = "poison"
    STREAM_FULL = "stream_full"
    FALLING_BEHIND = "falling_behind"
    PAUSED = "paused"
    BACKFILLING = "backfilling"
    DRAINING = "draining"
    IDLE = "idle"
    HEALTHY = "healthy"


class ConsumerKey(NamedTuple):
    stream: str
    consumer: str


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
    latency_source: str | None = None
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


class Override(Struct, frozen=True, forbid_unknown_fields=True):
    """An operator's word over the judgement, until it expires by itself."""

    action: Literal["open", "reject"]
    until: Annotated[float, Meta(ge=0, le=32_503_680_000)]
    """Unix seconds."""


class Alert(Struct, frozen=True):
    """One alert of a subject as it stands."""

    name: str
    severity: str
    when: str
    """The condition in words, as `pending_above: 5000`."""
    state: Literal["pending", "firing", "resolved"]
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
