"""The ports: what the service needs of NATS, clock and metrics. Each has an adapter, and a fake in the tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Literal, Protocol

from msgspec import Struct

from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.core.model.samples import Sample, StreamLook
from nats_backpressure.core.subject.record import Record
from nats_backpressure.policy.schema import Rejection
from nats_backpressure.policy.snapshot import PolicySnapshot
from nats_backpressure.protocol import messages
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.observations import (
    ConsumersReading,
    EventsUnavailable,
    StreamsReading,
    TooLarge,
    Unavailable,
)
from nats_backpressure.runtime.stored_events import CachedEvent, EventPage, EventQuery, LastEvent

__all__ = [
    "Clock",
    "Conflict",
    "EventPublisher",
    "EventReader",
    "EventsUnavailable",
    "Observer",
    "PolicyStore",
    "PublishConflict",
    "ReplicaChannel",
    "ServiceCounts",
    "StateStore",
    "Stored",
    "TimeSource",
    "TooLarge",
    "Unavailable",
    "Unpublishable",
]


class Conflict(Exception):
    """A write did not find the revision it expected: another program wrote."""


class PublishConflict(Exception):
    """Another program published an event of that `seq`; the attribute `seq` is the newest in the stream."""

    def __init__(self, seq: int) -> None:
        super().__init__(f"the events stream already holds seq {seq}")
        self.seq = seq


class Unpublishable(Exception):
    """An event that can never be published, however often it is tried, not even cut to what is needed."""


class Stored(Struct, frozen=True):
    """A record as the store holds it, with the revision a later write must expect."""

    record: Record | None
    """None where the key holds something that is not ours; it will be written over."""
    revision: int
    nonce: str = ""
    newer: bool = False
    """Whether a newer version wrote it, in a schema that this one cannot write: it must not be written over."""


class Observer(Protocol):
    """Reads streams and consumers."""

    async def streams(self) -> StreamsReading:
        """The list of streams. Raises Unavailable."""

    async def stream(self, name: str) -> StreamsReading:
        """One stream. Raises StreamGone or Unavailable."""

    async def consumers(self, stream: str, names: Sequence[str] = ()) -> ConsumersReading:
        """All consumers of a stream, or only these; and the stream just after them. Of those that are named, one that
        does not exist or does not answer soon is missing. Raises StreamGone or Unavailable."""

    async def consumer(self, key: ConsumerKey) -> Sample:
        """One consumer, which may take long to answer. Raises ConsumerGone, StreamGone or Unavailable."""


class StateStore(Protocol):
    """One key per subject, changed by compare-and-set only."""

    on_heartbeat: Callable[[messages.Heartbeat], None]
    """Called with each heartbeat that another replica stored, while `follow` runs; for its reader to set."""
    on_current: Callable[[], object]
    """Called when `is_current` begins to hold; for whoever waits for that to set."""

    def connected(self) -> None:
        """A connection was made: what is stored may be older than what was known."""

    @property
    def is_current(self) -> bool:
        """Whether `follow` has read on this connection what is stored, or cannot. Until then nothing is to be concluded
        from what was stored before: a revision may stand for something else."""

    async def load_all(self) -> dict[str, Stored]:
        """Every subject's record, for the caller to keep. Raises Unavailable; the next call continues where this one
        failed, so that it ends however slow the store is."""

    async def load(self, subject: str) -> Stored | None:
        """None where there is no key; read where writes are decided. Raises Unavailable."""

    def take_looks(self, looks: Sequence[StreamLook], asked_at: float) -> None:
        """A list of streams was read, which was asked for at this monotonic time: it shows whether `follow` misses
        anything. None comes that was asked for before the last one."""

    async def follow(self, take: Callable[[str, Stored], None]) -> None:
        """Call `take` with what another process stored after `load_all`, soon after each write, until cancelled. After
        an outage, and where the store is another or an older one, with what is stored of every subject. Without a
        record, the key is gone (revision 0), deleted, or not ours."""

    async def write(self, subject: str, value: bytes, expected: int, nonce: str) -> int:
        """Store and return the new revision; `expected` 0 means that the key must not exist. A conflict with a value
        of the same nonce is our own write, and done. Raises Conflict or Unavailable (it may have been applied)."""

    async def remove(self, subject: str, expected: int) -> None:
        """Remove the key. Raises Conflict or Unavailable."""

    async def write_heartbeat(self, value: bytes) -> bool:
        """Write the heartbeat key, unless another replica wrote it since it was last read or written here; returns
        whether it was written. Raises Unavailable."""

    async def write_last_heartbeat(self, value: bytes, instances: Collection[str]) -> bool:
        """Write the heartbeat key if one of these instances wrote it last; returns whether it was written. Raises
        Unavailable."""


class PolicyStore(Protocol):
    """The policy bucket."""

    def take_looks(self, looks: Sequence[StreamLook]) -> None:
        """A list of streams was read just now: while such lists come and show that nothing moved in the bucket, it need
        not be asked itself."""

    async def follow(self, on_change: Callable[[PolicySnapshot], None]) -> None:
        """Call `on_change` with the whole bucket, and again after every change, until cancelled. Waits for a bucket
        that cannot be read; one that was deleted or created again is a change too."""


class EventPublisher(Protocol):
    """The events stream: each event published once, in order."""

    async def last(self, subject: str) -> LastEvent | None:
        """What the newest events of a subject show; None if there are none, or no stream. Raises Unavailable where the
        stream does not answer."""

    async def publish(self, event: SubjectEvent) -> bytes:
        """Return the encoded event once it is in the stream exactly once. Raises PublishConflict, Unpublishable (drop
        it), or Unavailable (publish it again)."""

    async def publish_rejection(self, subject: str, rejection: Rejection, at: float) -> None:
        """Publish once that a policy was refused, under a key that is no watched subject; `at` is Unix seconds. Raises
        Unpublishable or Unavailable."""


class EventReader(Protocol):
    """Reads the events stream."""

    async def older(self, wanted: EventQuery) -> EventPage:
        """The newest wanted events; at most `limit`, and fewer where that would take too many reads. Raises
        Unavailable."""

    async def recall(self, since: int, most: int, take: Callable[[CachedEvent], object]) -> int:
        """Call `take` with every event stored since then (Unix milliseconds), the newest `most` at most, in the order
        of the stream. Returns the moment since which these are all. Raises Unavailable, after some may have been
        taken."""

    def take_looks(self, looks: Sequence[StreamLook], asked_at: float) -> None:
        """A list of streams was read, which was asked for at this monotonic time: it shows whether `follow` misses
        anything. None comes that was asked for before the last one."""

    async def follow(self, take: Callable[[CachedEvent], object]) -> None:
        """Call `take` with every event that is stored after those that `recall` has read, of any replica, in the
        order of the stream, until cancelled. Some may come again."""


class ReplicaChannel(Protocol):
    """Messages between the replicas of one installation. None is stored; any may be lost, late or forged."""

    def publish(self, topic: str, payload: bytes) -> bool:
        """Send to the other replicas and return at once; while it cannot be sent, it is dropped and counted, and False
        returned. `topic` is a part of a subject, with dots but without wildcards; a payload is no longer than
        `longest`."""

    def longest(self) -> int:
        """Bytes of the longest message that the server takes, 64 KiB at most."""

    def room(self) -> int:
        """The same for who has many messages to send: 0 while much waits to be sent. Who has few does not ask, and so
        never waits behind them for long."""

    def listen(self, topic: str, receive: Callable[[str, bytes], None]) -> None:
        """Call `receive` with the topic and payload of each message of the others; it must be quick and must not raise.
        `topic` may end in `>`. To be called before the connection is made. What was sent just before a connection was
        lost may come back as if it were another replica's: each message must show who sent it."""

    def listening_time(self, since: float) -> float:
        """For how many seconds after a monotonic moment all that others sent has surely come here, if it comes at all:
        from when the connection was made to the start of the newest completed round trip; 0 without a connection."""


class HintSource(Protocol):
    """The ack metrics and advisories of consumers, as the server publishes them."""

    def follow(self, streams: frozenset[str] | None) -> None:
        """Pass on those of these streams only, soon; None: of all."""

    def allowed(self) -> bool:
        """Whether all that was asked for may be received, as far as it is known."""


class ServiceCounts(Protocol):
    """Counts what the service does, for the metrics. Called on the event loop only."""

    def dropped(self, what: str, n: int = 1) -> None:
        """Something could not be done or used, `n` times; `what` is a label of bounded variety."""

    def event(self, subject: str, type: str) -> None:
        """An event was published."""

    def transition(self, subject: str, was: str, now: str) -> None:
        """A stored status changed; both are names of a status, or `unknown`."""

    def received(self, stream: str) -> None:
        """A reading of a stream was received from another replica, and taken in."""

    def reloaded(self, outcome: Literal["ok", "rejected"]) -> None:
        """The settings file was read again."""

    def observed(self, seconds: float) -> None:
        """A stream was read, which took the server so long."""


class TimeSource(Protocol):
    """What time it is."""

    def now(self) -> Now:
        """The present moment: monotonic seconds to measure with, and Unix seconds to show (by the server's clock, once
        it is known)."""


class Clock(TimeSource, Protocol):
    """Time and chance, so that a test can run a day in an instant and twice the same."""

    def mono(self) -> float:
        """The monotonic part of `now`, at a tenth of its cost: for what is asked thousands of times a second."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`; 0 or less gives other tasks a turn."""

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        """Return after `seconds`, or as soon as the event is set."""

    def end_sleeps(self) -> None:
        """The process is awake for something that comes often: end what should be over by now. Without this call, long
        sleeps and waits may last a little longer."""

    def lateness(self) -> float | None:
        """Seconds by which the newest timer ended later than asked for; None where none ended since the last call."""

    def random(self) -> float:
        """A random number from 0 up to 1, for jitter."""
