"""What an Observer returns: readings of streams and consumers, errors, and hints that trigger an earlier reading."""

from __future__ import annotations

from msgspec import Struct

from nats_backpressure.core.model.samples import Sample, StreamLook
from nats_backpressure.core.reading.sharing import Position
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey

PROMPT = 0.1
"""Seconds after its request at which a reply counts as received, at the latest."""


class Unavailable(Exception):
    """No answer now: not connected, no reply in time, no leader, or a reply that cannot be read."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TooLarge(Unavailable):
    """It does not fit through the connection or into the stream: a retry of the same does not help."""


class EventsUnavailable(Unavailable):
    """There is no events stream, and all else is there."""


class StreamGone(Exception):
    """The server answered that the stream does not exist (404, 10059)."""


class ConsumerGone(Exception):
    """The server answered that the consumer does not exist (404, 10014)."""


class StreamsReading(Struct, frozen=True):
    """Every stream the server showed."""

    looks: tuple[StreamLook, ...]
    complete: bool
    """Whether these are all there are: only then does an absence mean anything."""
    took: float
    """Seconds until it was answered, without the time we held ourselves back."""
    epoch: int
    """The connection it was read on."""
    partial: bool = False
    """Whether another replica looked at these streams only."""
    server_time: float | None = None
    """Unix seconds on the server's clock when it answered; None where the reply does not show it."""
    missing: tuple[str, ...] = ()
    """Streams for which no server answers (a node is down), as far as their names are known. Some servers show them all
    the same, with the configuration alone."""
    named: bool = False
    """Whether, where it is not complete, those shown and `missing` are all there are."""
    trip: float = 0.0
    """Seconds of `took` that the link needed: no time of the server."""

    @property
    def spent(self) -> float:
        """Seconds that the server spent."""
        return self.took - self.trip


class ConsumersReading(Struct, frozen=True):
    """Every consumer of one stream, and the stream as it looked just after them: pending <= last_seq must hold."""

    look: StreamLook
    samples: tuple[Sample, ...]
    missing: tuple[str, ...]
    """Consumers that exist and were not shown (a node is down, or does not support them); unknown, not gone."""
    complete: bool
    """Whether samples, missing, malformed and unnamed together are all there are."""
    malformed: tuple[str, ...]
    """Consumers that exist and whose values are impossible; unknown, not gone."""
    took: float
    epoch: int
    unnamed: int = 0
    """How many were left out of which not even the name could be read."""
    partial: bool = False
    """Whether only some consumers were asked for."""
    trip: float = 0.0
    """Seconds of `took` that the link needed."""

    @property
    def spent(self) -> float:
        """Seconds that the server spent."""
        return self.took - self.trip

    @property
    def unread(self) -> frozenset[str]:
        """Names of consumers that exist and could not be read."""
        return frozenset(self.missing) | frozenset(self.malformed)

    @property
    def whole(self) -> bool:
        """Whether there are no others than those shown and those unread."""
        return self.complete and not self.unnamed and not self.partial


class Received(Struct, frozen=True):
    """What another replica read, as it sent it. Times are of one's own monotonic clock: none is later than the truth by
    more than a message takes."""

    stream: str
    """ALL_STREAMS for a list of streams, and for a look at one."""
    sender: str
    """The process that sent it."""
    position: Position
    """Where the sender stands among those that may read the stream."""
    sent_at: float
    asked_at: float
    """When it was asked for."""
    shown: ConsumersReading | StreamsReading | Sample
    """A Sample where a consumer was read alone."""
    base: StreamLook | None = None
    """The newest look that was answered before it was asked for, if there was one."""


def answer_time(asked_at: float, came_at: float, took: float) -> float:
    """When a reading counts as answered that came `came_at` and took so many seconds: PROMPT after its request at the
    latest, since the process may have been suspended with the reply before it."""
    return max(asked_at, came_at - max(0.0, took - PROMPT))


class AckSeen(Struct, frozen=True):
    """Sampled acknowledgements that are alike; nearly always one."""

    key: ConsumerKey
    seconds: float
    """From this delivery to its ack."""
    deliveries: int
    at: Now
    """When it was received."""
    times: int = 1


class Nak(Struct, frozen=True):
    key: ConsumerKey
    times: int = 1


class MaxDeliveries(Struct, frozen=True):
    """A message will not be delivered again; the server publishes that only when a client pulls."""

    key: ConsumerKey
    times: int = 1


class Terminated(Struct, frozen=True):
    """A worker refused a message permanently (TERM): it leaves in flight, and looks like an ack in everything else."""

    key: ConsumerKey
    times: int = 1


class ConsumerChanged(Struct, frozen=True):
    key: ConsumerKey
    what: str
    """`created` or `deleted`."""


class StreamChanged(Struct, frozen=True):
    name: str
    what: str
    """`created`, `updated` or `deleted`."""


class ApiLimited(Struct, frozen=True):
    """The server threw JetStream API requests away because too many came."""


ConsumerHint = AckSeen | Nak | MaxDeliveries | Terminated
"""What is counted of a consumer."""
Hint = ConsumerHint | ConsumerChanged | StreamChanged | ApiLimited
