"""Facts: what is known of an installation before it is checked: settings, server, rights, streams, consumers."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from nats_backpressure.config.settings import Settings
from nats_backpressure.policy.precedence import LayerEntry
from nats_backpressure.policy.refusals import RefusedPolicy
from nats_backpressure.protocol.values import ConsumerKey


class Failure(Struct, frozen=True):
    """Why something could not be read or done: the error as the server spells it, and what to do about it."""

    error: str
    remedy: str


class Server(Struct, frozen=True):
    """The server that was connected to."""

    urls: tuple[str, ...]
    """Of the settings, without secrets."""
    login: str
    """Which login is used, without its secret."""
    failure: Failure | None = None
    """Why there is no connection."""
    version: str = ""
    round_trip: float = 0.0
    """Seconds."""
    cluster: str = ""
    """The name of its cluster; empty where it runs alone."""
    domain: str = ""
    """The domain of its own JetStream; empty where it has none, or does not say it."""
    addresses: int = 0
    """How many addresses of its cluster it tells clients; 0 where it tells none. Several servers may share one (a load
    balancer), and one may have several."""
    has_jetstream: bool = True
    """Whether JetStream is its own; otherwise (a leaf node, another domain) that of servers about which it says
    nothing."""


class OwnStream(Struct, frozen=True):
    """The events stream or a bucket of ours."""

    name: str
    make_it: str
    """The command that creates it."""
    subjects: tuple[str, ...] = ()
    """What it stores."""
    optional: bool = False
    exists: bool = False
    failure: Failure | None = None
    """Why it could not be read."""
    differs: dict[str, tuple[object, object]] = {}
    """Settings in which it differs: what it should be, and what it is."""
    edit: str = ""
    """The command that changes those of them that can be changed."""
    fixed: tuple[str, ...] = ()
    """Those that only a new stream can have."""
    full: str = ""
    """Which limit leaves no room for another value; empty where there is room."""
    replicas: int = 1
    cluster: str = ""
    """The name of the cluster that has it; empty where its server runs alone."""
    leader: bool = True
    """Whether it has a leader."""
    absent: tuple[str, ...] = ()
    """Servers that should have a copy and do not follow."""
    consumers: int = 0
    max_consumers: int = -1
    """What it allows; -1: without a limit of its own."""
    quiet: float | None = 0.0
    """Seconds since the last message was stored there; None where there was none."""


class Account(Struct, frozen=True):
    """What the JetStream account holds, and its limits; -1: without one. Of several tiers, the one of our streams."""

    storage: int = 0
    max_storage: int = -1
    memory: int = 0
    max_memory: int = -1
    streams: int = 0
    max_streams: int = -1
    max_consumers: int = -1
    """Of each stream."""


class Right(Struct, frozen=True):
    """A subject that the sidecar publishes or subscribes to, and whether the server lets it."""

    kind: str
    """`publish` or `subscribe`."""
    subject: str
    allowed: bool


class Consumer(Struct, frozen=True):
    """A consumer, and the subjects that it counts under."""

    key: ConsumerKey
    subjects: tuple[str, ...] = ()
    left_out: str = ""
    """Why it counts under none."""
    sampled: bool | None = None
    """Whether it publishes ack metrics; None where that was not read."""


class OtherInstallation(Struct, frozen=True):
    """Another installation that writes states now."""

    name: str
    subjects: tuple[str, ...]
    """Those that it watches."""
    failure: Failure | None = None
    """Why they could not be read."""


class Facts(Struct, frozen=True):
    """All that is known. Where something could not be read, its default says the least."""

    settings: Settings
    server: Server
    wall: float = 0.0
    """Unix seconds by the server's clock, where it is known: overrides and JWTs end by that."""
    replaced_by: tuple[str, ...] = ()
    """Variables of the environment that replace what the settings file has."""
    jwt_expires_at: float | None = None
    """Unix seconds; None without a JWT, or where it does not expire."""
    clock_ahead: float | None = None
    """Seconds by which the server's clock is ahead of ours; None where it could not be read."""
    unlisted: Failure | None = None
    """Why the streams could not be listed."""
    streams: tuple[str, ...] = ()
    stored: dict[str, tuple[str, ...]] = {}
    """The subjects that each stream stores."""
    all_streams: bool = True
    """Whether these and `missing` are all there are: only then does an absence mean anything."""
    missing: tuple[str, ...] = ()
    """Streams for which no server answers; some are listed all the same."""
    unread: dict[str, Failure] = {}
    """Watched streams whose consumers could not be read, or not all of them."""
    consumers: tuple[Consumer, ...] = ()
    """Of the streams that are watched."""
    all_consumers: bool = True
    """Whether these are all, also those that count under no subject."""
    watched: tuple[str, ...] = ()
    """The subjects of these consumers, sorted."""
    own: tuple[OwnStream, ...] = ()
    account: Account | None = None
    account_unread: Failure | None = None
    state_write: Failure | None = None
    """Why a write to the state bucket has no answer."""
    rights: tuple[Right, ...] = ()
    entries: dict[str, LayerEntry] = {}
    """What the policy bucket has and is accepted, by key."""
    entries_unread: Failure | None = None
    """Why the entries of the bucket were not read, though it exists."""
    refused: tuple[RefusedPolicy, ...] = ()
    """What of the policy bucket is refused."""
    others: tuple[OtherInstallation, ...] = ()
    replicas: dict[str, tuple[str, ...]] = {}
    """Those of this name that run, by the mark of the policies by which they judge."""


def subjects_of(consumers: Iterable[Consumer]) -> tuple[str, ...]:
    """The subjects that these consumers count under, sorted."""
    return tuple(sorted({subject for consumer in consumers for subject in consumer.subjects}))
