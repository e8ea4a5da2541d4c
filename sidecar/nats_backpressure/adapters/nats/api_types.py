"""Types of the server's replies about streams and consumers.

Only the fields in use are named. Fields that a newer server adds are ignored; a missing field is zero, as Go's encoder
leaves it out.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Generic, Protocol, TypeVar

from msgspec import Meta, Raw, Struct

from nats_backpressure.runtime.observations import Unavailable

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Limit = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""Zero, negative or absent: no limit."""
Moment = Annotated[datetime, Meta(tz=True)]
Text = Annotated[str, Meta(max_length=1024)]
T = TypeVar("T")
C = TypeVar("C")


class ErrorInfo(Struct, frozen=True):
    """The error in a reply; `err_code` is the one of JetStream."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class Reply(Struct):
    """Any reply: it has an error or it has none."""

    error: ErrorInfo | None = None


class PubAck(Struct, frozen=True):
    """The reply to a message that a stream stored."""

    seq: int
    duplicate: bool = False


class StoredMessage(Struct, frozen=True):
    """A message of a stream; `data` and `hdrs` are base64."""

    subject: str
    seq: int
    data: str = ""
    hdrs: str = ""
    time: str = ""


class MessageReply(Struct, frozen=True):
    message: StoredMessage


class Cluster(Struct, gc=False):
    """Who answers for a stream or consumer; only a cluster says so."""

    leader: str = ""


class NoLeader(Unavailable):
    """The reply has the settings of a stream or consumer, and zeros in place of what only its leader knows: none is
    elected now (2.9 to 2.11), or its servers are down."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} has no leader now, so the reply says nothing of it")
        self.name = name


class ConsumerPosition(Struct, gc=False):
    """How far a consumer is, in its own sequence and in that of its stream."""

    consumer_seq: Count
    stream_seq: Count
    last_active: Moment | None = None


class ConsumerCreated(Struct, frozen=True):
    """A new consumer: how many messages it has to deliver, and has delivered already."""

    num_pending: int
    delivered: ConsumerPosition


class ConsumerInfoConfig(Struct, gc=False):
    """The settings of a consumer; `ack_wait` and `backoff` in nanoseconds."""

    ack_policy: Text
    durable_name: str = ""
    filter_subject: str = ""
    filter_subjects: tuple[str, ...] | None = None
    max_ack_pending: Limit = 0
    ack_wait: Count = 0
    backoff: tuple[Count, ...] | None = None
    deliver_subject: str = ""
    priority_groups: tuple[str, ...] | None = None
    rate_limit_bps: int = 0
    replay_policy: str = ""
    deliver_policy: str = ""
    sample_freq: str = ""
    metadata: dict[str, str] | None = None


class ConsumerInfo(Struct, gc=False):
    """One consumer; `ts` is the server's time of the reply (from 2.10 on)."""

    name: str
    created: Text
    config: ConsumerInfoConfig
    delivered: ConsumerPosition
    ack_floor: ConsumerPosition
    num_pending: Count
    num_ack_pending: Count
    num_redelivered: Count = 0
    num_waiting: Count = 0
    paused: bool = False
    push_bound: bool = False
    cluster: Cluster | None = None
    ts: Moment | None = None


class Mirror(Struct, gc=False):
    """What a mirror has of another stream; `external` where that is in another domain or account."""

    name: str = ""
    filter_subject: str = ""
    subject_transforms: tuple[Transform, ...] | None = None
    external: External | None = None


class Transform(Struct, gc=False):
    """What a mirror makes of the subjects of its origin; `dest` empty: it only filters."""

    src: str = ""
    dest: str = ""


class External(Struct, gc=False):
    api: str = ""


class StreamInfoConfig(Struct, gc=False):
    """The settings of a stream; `max_age` in nanoseconds."""

    name: str
    subjects: tuple[str, ...] | None = None
    max_msgs: Limit = 0
    max_bytes: Limit = 0
    max_msgs_per_subject: Limit = 0
    discard: str = "old"
    retention: str = "limits"
    max_age: Count = 0
    allow_rollup_hdrs: bool = False
    allow_msg_ttl: bool = False
    mirror: Mirror | None = None
    sources: tuple[Raw, ...] | None = None
    subject_transform: Transform | None = None


class StreamState(Struct, gc=False):
    """What a stream holds."""

    messages: Count
    bytes: Count
    first_seq: Count
    last_seq: Count
    first_ts: Moment | None = None
    num_subjects: Count = 0
    consumer_count: Count = 0


class StreamInfo(Struct, Generic[C]):
    """One stream; its config as StreamInfoConfig, or as the dict that the server sent."""

    config: C
    created: Text
    state: StreamState
    cluster: Cluster | None = None
    ts: Moment | None = None


class _Led(Protocol):
    cluster: Cluster | None


L = TypeVar("L", bound=_Led)


def from_leader(info: L, name: str) -> L:
    """What a leader says of a stream or consumer of this name. Raises NoLeader."""
    if info.cluster is not None and not info.cluster.leader:
        raise NoLeader(name)
    return info


class ListPage(Reply, Generic[T]):
    """One page of a list; `missing` and `offline` name members that the server could not read."""

    total: Count = 0
    limit: Count = 0
    streams: list[T] | None = None
    consumers: list[T] | None = None
    missing: list[str] | None = None
    offline: dict[str, str] | None = None
