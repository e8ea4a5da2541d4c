"""What the server returned: samples of consumers and looks at streams."""

from __future__ import annotations

from msgspec import Struct

from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey


class Retention(Struct, frozen=True, gc=False):
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
    mixed: bool = False
    """Whether it takes messages of other subjects than its own: from sources, or because a transform changes them."""

    @property
    def drops(self) -> bool:
        """Whether it ever drops messages without replacing them."""
        return self.max_age > 0 or self.life_times or (self.discards_old and (self.max_msgs > 0 or self.max_bytes > 0))

    @property
    def replaces(self) -> bool:
        """Whether newer messages may replace older ones. No subject holds more than the whole stream may."""
        return self.rollup or (self.per_subject > 0 and not 0 < self.max_msgs <= self.per_subject)


class StreamLook(Struct, frozen=True, gc=False):
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
    """The stream this one mirrors: a mirror of all of it shows no subjects of its own."""
    fill: float | None = None
    """The largest share of its own limits (messages, bytes) that it holds, 0..1; None without limits."""
    oldest_age: float | None = None
    """Seconds since its first message was stored, by the server's clock; None if empty or if the reply has no time."""
    retention: Retention | None = None
    """None where it is not known (an old recording): then it may drop anything."""
    consumers: int = 0
    """How many consumers it has; 0 in a recording."""


class ConsumerConfig(Struct, frozen=True, gc=False):
    """The part of a consumer's configuration that the evaluation needs."""

    durable: bool = True
    ack_policy: str = "explicit"
    filters: tuple[str, ...] = ()
    max_ack_pending: int | None = None
    """None without a cap."""
    ack_wait: float = 30.0
    """Seconds until an unacknowledged message is delivered again, at most."""
    backoff: tuple[float, ...] = ()
    """Those after each delivery, where they differ; the last one also after all later ones."""
    push: bool = False
    priority_groups: bool = False
    rate_limited: bool = False
    original_replay: bool = False
    last_per_subject: bool = False
    """Whether it started with the last message of each subject: older messages are not its own."""
    sampled: bool = False
    """Whether the server publishes ack metrics of it (`sample_freq`)."""
    metadata: tuple[tuple[str, str], ...] = ()
    """The part of its metadata that is for us, by key: `backpressure.*` and `io.nats.monitor.*`."""


class Sample(Struct, frozen=True, gc=False):
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
    """Whether a client is subscribed to the deliver subject of a push consumer; True for pull consumers."""
