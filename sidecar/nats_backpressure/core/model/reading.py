"""Reading: what the samples of one consumer mean; and Account, the state of counting its lost messages."""

from __future__ import annotations

from msgspec import Struct

from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Diagnosis, LatencySource


class Account(Struct, frozen=True, gc=False):
    """The state of counting one consumer's losses: a checkpoint that survives a restart."""

    kind: int
    """A mark (`signals.incarnations`) of the incarnations of stream and consumer, the filters, and the rule by which
    newer messages replace older ones: where it does not match, other messages were counted."""
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


class Reading(Struct, frozen=True, gc=False):
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
    """The longest, where `backoff` has several."""
    backoff: tuple[float, ...] = ()
    """The ack wait after each delivery, where they differ; the last one also after all later ones."""
    acks_all: bool = False
    """Whether an ack is one of all messages before it, too."""
    made: int = 0
    """A mark (`signals.incarnations`) of the creation of stream and consumer: within one process it stays the same as
    long as they do, and what another one stored of the same ones matches it."""
    durable: bool = True
    delivered_consumer: int = 0
    waiting: int = 0
    """Pull requests that wait at the server."""
    lost: int = 0
    """Messages that left the stream before they were delivered to this consumer, since the reading before."""
    losing: bool = False
    """Whether this sample shows loss: a fall of pending is then no recovery."""
    purged: bool = False
    reset: bool = False
    """Whether the consumer was moved forward past messages that its stream still holds."""
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
