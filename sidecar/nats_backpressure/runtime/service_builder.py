"""Wires the parts of a service to its ports."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from msgspec import Struct

from nats_backpressure.config.settings import Settings
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.reading.budget import QUIET_INTERVAL, Budget, RequestBudget
from nats_backpressure.core.reading.server_time import ServerTime
from nats_backpressure.core.subject.record import Writing
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.core.watch_filter import WatchEntry, is_name_watched
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.precedence import Sources
from nats_backpressure.protocol.between_replicas import MOST_WATCHED, Watched
from nats_backpressure.protocol.refusal_expiry import MISSED
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.runtime.effect_attempt import EffectAttempt
from nats_backpressure.runtime.effect_runner import EffectRunner
from nats_backpressure.runtime.failures import Failures
from nats_backpressure.runtime.heartbeat import HeartbeatWriter
from nats_backpressure.runtime.intake import Intake, log_and_count
from nats_backpressure.runtime.observations import Received, StreamsReading
from nats_backpressure.runtime.own_resources import OwnResources
from nats_backpressure.runtime.policy_updates import PolicyUpdates
from nats_backpressure.runtime.poller import Poller
from nats_backpressure.runtime.ports import Clock, EventPublisher, Observer, PolicyStore, ServiceCounts, StateStore
from nats_backpressure.runtime.replicas import NoReplicas, Replicas
from nats_backpressure.runtime.service import Service
from nats_backpressure.runtime.shared_reading import SharedReading
from nats_backpressure.runtime.stream_looks import DISCOVER_EVERY
from nats_backpressure.runtime.subject_registry import TICK, SubjectRegistry
from nats_backpressure.runtime.subject_writers import SubjectWriters
from nats_backpressure.runtime.view import ServiceView


class ServicePorts(Struct, frozen=True, eq=False):
    """What stands behind each port of a service."""

    clock: Clock
    observer: Observer
    store: StateStore
    publisher: EventPublisher
    policy_store: PolicyStore
    counts: ServiceCounts
    ensure: Callable[[], Awaitable[None]]
    """Creates what is missing of our streams and buckets."""
    render_state: Callable[[SubjectState, Writing, ServiceView, Now], bytes]
    """The value of a subject's key in the state bucket."""
    render_heartbeat: Callable[[ServiceView, Now, bool], bytes]
    """The value of the heartbeat key; the last argument: whether the replica stops."""


class ServiceListeners(Struct, frozen=True, eq=False):
    """Who else gets what a service reads."""

    on_looks: Callable[[Sequence[StreamLook]], None] = lambda looks: None
    """Gets a list of streams every `discover_every` seconds, and when there are others."""
    on_list: Callable[[Sequence[StreamLook], float], None] = lambda looks, asked_at: None
    """Gets every list of streams, with the monotonic time at which it was asked for."""
    on_policies: Callable[[Sources], None] = lambda sources: None
    """Gets the policies in force at the start and after every change."""


def build_service(
    settings: Settings,
    ports: ServicePorts,
    writer: str,
    listeners: ServiceListeners | None = None,
    *,
    tick: float = TICK,
    discover_every: float = DISCOVER_EVERY,
    requests: RequestBudget | None = None,
    replicas: Replicas | None = None,
    shared: SharedReading | None = None,
    failures: Failures | None = None,
    server_time: ServerTime | None = None,
) -> Service:
    """`writer` is unique for this process. `requests` limits what the observer requests. Without `replicas` it has no
    others; without `shared` it reads all streams itself. `server_time`: that of the clock, if it shows the server's
    time of day."""
    clock, counts, names = ports.clock, ports.counts, Names(settings.name)
    listeners, failures = listeners or ServiceListeners(), failures or Failures(clock)
    replicas = replicas or Replicas(NoReplicas(), clock, "", writer, counts)
    shared = shared or SharedReading(clock, "", 0.0)
    attempt = EffectAttempt(ports.store, ports.publisher, clock, ports.render_state, counts)
    effects = EffectRunner(attempt, clock, counts, failures)
    registry = _registry(settings, clock, effects, writer)
    resources = OwnResources(names, registry, clock, ports.ensure, failures)
    poller = Poller(
        ports.observer,
        clock,
        Intake(registry, clock, _watch(settings), names.ours, log_and_count(counts.dropped)),
        _budget(settings),
        stale_after=settings.observe.stale_after_seconds,
        count=counts.dropped,
        on_streams=_on_streams(listeners, resources),
        on_read=counts.observed,
        on_list=_on_list(listeners, ports),
        discover_every=discover_every,
        requests=requests,
        shared=shared,
        on_received=_on_received(counts, failures),
        server_time=server_time,
    )
    _connect_replicas(settings, clock, registry, effects, replicas, shared)
    on_change = _on_policies(listeners, registry.policies, replicas)
    updates = PolicyUpdates(registry, ports.publisher, clock, counts, on_change)
    heartbeat = HeartbeatWriter(
        ports.store, clock, registry, ports.render_heartbeat, counts, replicas, shared, failures
    )
    on_change(registry.policies.sources)
    loops = registry, poller, effects, updates, resources, heartbeat, replicas, failures
    return Service(clock, ports.store, ports.policy_store, *loops, tick)


def _on_received(counts: ServiceCounts, failures: Failures) -> Callable[[Received], None]:
    def on_received(received: Received) -> None:
        counts.received(received.stream)
        failures.read_elsewhere(received)

    return on_received


def _registry(settings: Settings, clock: Clock, effects: EffectRunner, writer: str) -> SubjectRegistry:
    policies = ActivePolicies(
        settings.policies, settings.policy_guard, settings.trust_consumer_metadata, repr(settings.watch)
    )
    registry = SubjectRegistry(settings, clock, policies, writer, effects.perform)
    watch, ours = _watch(settings), Names(settings.name).ours
    registry.contexts.heartbeat = settings.publish.heartbeat_seconds
    registry.contexts.watches = lambda key: is_name_watched(key, watch, ours)
    return registry


def _watch(settings: Settings) -> list[WatchEntry]:
    return [WatchEntry(entry.stream, entry.consumers) for entry in settings.watch]


def _budget(settings: Settings) -> Budget:
    observe = settings.observe
    return Budget(
        observe.min_interval_ms / 1000,
        observe.max_interval_ms / 1000,
        observe.api_requests_per_second,
        observe.server_share,
        # So that a status whose limits are short is not stale between two readings.
        min(QUIET_INTERVAL, observe.stale_after_seconds / MISSED),
    )


def _connect_replicas(
    settings: Settings,
    clock: Clock,
    registry: SubjectRegistry,
    effects: EffectRunner,
    replicas: Replicas,
    shared: SharedReading,
) -> None:
    """Let the registry know the other replicas, and the other replicas what this one watches, reads and writes."""
    registry.streams.reads = shared.reads
    registry.contexts.others = SubjectWriters(clock, replicas, shared, sharing=settings.sharing.enabled)
    replicas.writes, replicas.unread = lambda: effects.writes, registry.streams.unread
    watch = _watch(settings)
    if max(len(watch), *(len(entry.consumers) for entry in watch)) <= MOST_WATCHED:
        replicas.watch = tuple(Watched(entry.stream, entry.consumers) for entry in watch)


def _on_streams(listeners: ServiceListeners, resources: OwnResources) -> Callable[[StreamsReading], None]:
    def on_streams(reading: StreamsReading) -> None:
        listeners.on_looks(reading.looks)
        resources.check(reading)

    return on_streams


def _on_list(listeners: ServiceListeners, ports: ServicePorts) -> Callable[[Sequence[StreamLook], float], None]:
    def on_list(looks: Sequence[StreamLook], asked_at: float) -> None:
        listeners.on_list(looks, asked_at)
        ports.store.take_looks(looks, asked_at)
        ports.policy_store.take_looks(looks)

    return on_list


def _on_policies(
    listeners: ServiceListeners, policies: ActivePolicies, replicas: Replicas
) -> Callable[[Sources], None]:
    def on_policies(sources: Sources) -> None:
        replicas.set_policies(policies.mark)
        listeners.on_policies(sources)

    return on_policies
