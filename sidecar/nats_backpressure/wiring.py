"""Builds the parts of the process: which adapter stands behind each port, on which of the two connections.

What observes and what answers have a connection each, so that what any client may send cannot blind the observer.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.adapters.http_probes import HttpProbes
from nats_backpressure.adapters.nats.advisories import AdvisoryListener
from nats_backpressure.adapters.nats.api import JetStreamApi
from nats_backpressure.adapters.nats.connection import Connection
from nats_backpressure.adapters.nats.endpoints import ServiceEndpoints
from nats_backpressure.adapters.nats.event_publisher import JetStreamEventPublisher
from nats_backpressure.adapters.nats.event_reader import JetStreamEventReader
from nats_backpressure.adapters.nats.fact_reader import FactReader
from nats_backpressure.adapters.nats.gateway_reports import GatewayReportListener
from nats_backpressure.adapters.nats.login import jwt_expiry
from nats_backpressure.adapters.nats.observer import JetStreamObserver
from nats_backpressure.adapters.nats.observer_requests import ObserverRequests
from nats_backpressure.adapters.nats.patched_client import PatchedClient
from nats_backpressure.adapters.nats.policy_store import JetStreamPolicyStore
from nats_backpressure.adapters.nats.remedies import remedy
from nats_backpressure.adapters.nats.replica_channel import NatsReplicaChannel
from nats_backpressure.adapters.nats.resources import Resources
from nats_backpressure.adapters.nats.state_store import JetStreamStateStore
from nats_backpressure.adapters.prometheus.collector import StateCollector
from nats_backpressure.adapters.prometheus.counters import Counters
from nats_backpressure.config.settings import Settings
from nats_backpressure.core.reading.budget import RequestBudget
from nats_backpressure.core.reading.server_time import ServerTime
from nats_backpressure.core.subject.inputs import GatewayReported
from nats_backpressure.doctor.at_start import StartCheck
from nats_backpressure.protocol.reports import GatewayReport
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.queries import serialize
from nats_backpressure.queries.decision_tally import DecisionTally
from nats_backpressure.queries.decisions import DecisionService
from nats_backpressure.queries.dispatch import answers
from nats_backpressure.queries.encoded_replies import ConsumerDecisions, GatewayDecisions
from nats_backpressure.queries.event_cache import EventCache, parse_event
from nats_backpressure.queries.history import HistoryQueries
from nats_backpressure.queries.lookup import SubjectLookup
from nats_backpressure.queries.shared_grants import SharedGrants
from nats_backpressure.recording.reading_exchange import ReadingExchange
from nats_backpressure.recording.recorder import RecordingFile, RecordingObserver
from nats_backpressure.runtime.captured_subjects import CapturedSubjects
from nats_backpressure.runtime.clock import SystemClock
from nats_backpressure.runtime.failures import Failures
from nats_backpressure.runtime.health import HealthCheck
from nats_backpressure.runtime.noting_observer import NotingObserver
from nats_backpressure.runtime.observations import StreamsReading
from nats_backpressure.runtime.ports import Observer
from nats_backpressure.runtime.readiness import ReadinessCheck
from nats_backpressure.runtime.record_follower import RecordFollower
from nats_backpressure.runtime.replicas import Replicas
from nats_backpressure.runtime.service import Service
from nats_backpressure.runtime.service_builder import ServiceListeners, ServicePorts, build_service
from nats_backpressure.runtime.subject_registry import SubjectRegistry


class Observing(Struct, frozen=True, eq=False):
    """What reads, evaluates, stores and publishes."""

    connection: Connection
    service: Service
    exchange: ReadingExchange
    events: JetStreamEventReader
    channel: NatsReplicaChannel
    replicas: Replicas
    captured: CapturedSubjects
    list_streams: Callable[[], Awaitable[StreamsReading]]
    recorder: RecordingObserver | None


class Answering(Struct, frozen=True, eq=False):
    """What answers requests."""

    connection: Connection
    endpoints: ServiceEndpoints
    history: HistoryQueries
    tally: DecisionTally
    readiness: ReadinessCheck


class Common(Struct, frozen=True, eq=False):
    """What both sides share."""

    settings: Settings
    """With the servers that are used."""
    instance: str
    names: Names
    server_time: ServerTime
    clock: SystemClock
    counters: Counters
    failures: Failures


def common(settings: Settings, servers: Sequence[str]) -> Common:
    """What both sides share; `servers` replace those of the settings."""
    settings = replace(settings, nats=replace(settings.nats, servers=tuple(servers)))
    server_time = ServerTime()
    clock = SystemClock(server_time)
    return Common(
        settings,
        settings.instance or "unknown",
        Names(settings.name),
        server_time,
        clock,
        Counters(settings.metrics.max_subjects),
        Failures(clock, partial(remedy, settings.nats)),
    )


def build_observing(shared: Common, recording: RecordingFile | None) -> Observing:
    """Everything on the observing connection. What is observed is written to the recording, if there is one."""
    settings, names, clock, counters = shared.settings, shared.names, shared.clock, shared.counters
    instance, failures = shared.instance, shared.failures

    async def set_up(client: PatchedClient) -> None:
        await advisories.listen(client)
        await channel.subscribe(client)
        service.announce()

    connection = _connection(shared, "observe", set_up, echo=False)
    channel = NatsReplicaChannel(names, lambda: connection.client, connection.listening_time, counters.dropped)
    events_api = JetStreamApi(connection, settings.nats.api_prefix)
    requests = RequestBudget(settings.observe.api_requests_per_second)
    reader = _observer(shared, connection, requests)
    observer = NotingObserver(reader, failures)
    recorder = RecordingObserver(observer, clock, recording, settings, counters.dropped) if recording else None
    events = JetStreamEventReader(events_api, lambda: connection.client, names, parse_event, counters.dropped, clock)
    captured = CapturedSubjects(names.prefix, settings.service.status_alias)
    replicas = Replicas(channel, clock, instance, secrets.token_hex(8), counters)
    exchange = ReadingExchange(
        settings, clock, recorder or observer, channel, replicas, counters.dropped, SystemClock()
    )
    ports = _ports(shared, connection, exchange.observer, events_api)
    on_policies = recorder.record_policies if recorder else lambda sources: None
    service = build_service(
        settings,
        ports,
        f"{instance}.{secrets.token_hex(4)}",
        ServiceListeners(captured.update, events.take_looks, on_policies),
        requests=requests,
        replicas=replicas,
        shared=exchange.shared,
        failures=failures,
        server_time=shared.server_time,
    )
    hint = recorder.recording_hints(service.poller.hint) if recorder else service.poller.hint
    events.when_other(service.take_other_events)
    exchange.connect(service.poller, recorder.record_received if recorder else lambda received: None, hint)
    advisories = AdvisoryListener(clock, exchange.hints.take, counters.dropped, exchange.hints.counts)
    exchange.share_hints(advisories.subscriptions)
    return Observing(connection, service, exchange, events, channel, replicas, captured, reader.streams, recorder)


def _observer(shared: Common, connection: Connection, requests: RequestBudget) -> JetStreamObserver:
    counters, prefix = shared.counters, shared.settings.nats.api_prefix
    return JetStreamObserver(
        ObserverRequests(
            connection,
            shared.clock,
            count=counters.dropped,
            count_request=counters.api_request,
            prefix=prefix,
            budget=requests,
        )
    )


def _ports(shared: Common, connection: Connection, observer: Observer, events_api: JetStreamApi) -> ServicePorts:
    """The stores and streams. Each has a JetStreamApi of its own: what hangs at one of them uses up no turn of
    another."""
    settings, names, clock, counters = shared.settings, shared.names, shared.clock, shared.counters
    instance, publish = shared.instance, settings.publish
    states, policies = (JetStreamApi(connection, settings.nats.api_prefix) for _ in range(2))
    resources = Resources(
        states,
        names,
        publish.replicas,
        publish.events_max_age_seconds,
        publish.manage_resources,
        partial(remedy, settings.nats),
    )
    return ServicePorts(
        clock,
        observer,
        JetStreamStateStore(states, names, counters.dropped, lambda: connection.client, clock),
        JetStreamEventPublisher(events_api, names, partial(serialize.event_message, instance=instance)),
        JetStreamPolicyStore(policies, names, counters.dropped, lambda: connection.client, clock, shared.failures),
        counters,
        resources.ensure,
        render_state=serialize.state_value,
        render_heartbeat=lambda view, now, leaving: serialize.heartbeat(view, instance, now, leaving),
    )


def build_answering(shared: Common, observing: Observing) -> Answering:
    """Everything on the answering connection."""
    names, clock, counters = shared.names, shared.clock, shared.counters
    registry, service, prefix = observing.service.registry, shared.settings.service, shared.names.prefix
    decisions, lookup = DecisionService(registry, clock), SubjectLookup(registry)
    take_event = RecordFollower(registry).take_event
    history = HistoryQueries(decisions, registry, EventCache(), observing.events, clock, shared.failures, take_event)
    registry.on_published, registry.worker_reports = history.take_published, decisions.grants.worker_reports
    SharedGrants(decisions.grants, observing.replicas, observing.channel, clock, counters, registry.reading_of)
    tally = DecisionTally(counters)
    inputs = (decisions, registry, clock.now, clock.mono, tally)
    endpoints = ServiceEndpoints(
        answers(decisions, history, tally, registry),
        decisions.alias,
        clock,
        names,
        counters.dropped,
        service.reply_prefixes,
        service.status_alias,
        observing.captured.streams_of,
        direct={
            "decide-gateway": GatewayDecisions(f"{prefix}.decide.gateway.", *inputs),
            "decide-consumer": ConsumerDecisions(f"{prefix}.decide.consumer.", *inputs),
        },
    )
    observing.captured.on_update = lambda: _in_background(endpoints.check_alias())
    readiness = ReadinessCheck(registry, clock, lambda: observing.connection.connected)
    reports = GatewayReportListener(prefix, clock, _report_sink(lookup, registry), counters.dropped)

    async def set_up(client: PatchedClient) -> None:
        await endpoints.serve(client)
        await reports.listen(client)
        readiness.serving = True

    connection = _connection(shared, "answer", set_up, may_publish=endpoints.may_reply)
    return Answering(connection, endpoints, history, tally, readiness)


def build_probes(shared: Common, observing: Observing, answering: Answering) -> HttpProbes:
    """The HTTP server with probes and metrics; its port is taken from now on. Raises PortTaken."""
    registry, counters, http = observing.service.registry, shared.counters, shared.settings.http
    sides = {"observe": observing.connection, "answer": answering.connection}
    connected = {name: partial(getattr, side, "connected") for name, side in sides.items()}
    health = HealthCheck(observing.service, answering.readiness, connected)
    states = StateCollector(registry, SubjectLookup(registry, keep=False).answer, counters, shared.clock, health)
    counters.expose(states.text, answering.tally.pass_on)
    return HttpProbes(http.host, http.port, answering.readiness, counters.page, shared.clock)


def build_start_check(shared: Common, observing: Observing) -> StartCheck:
    """The checks that are made once after the start."""
    settings, connection = shared.settings, observing.connection
    api = JetStreamApi(connection, settings.nats.api_prefix)
    facts = FactReader(settings, api, lambda: connection.client, partial(remedy, settings.nats))
    expiry = partial(jwt_expiry, settings.nats)
    return StartCheck(settings, observing.service.registry, shared.clock, facts, observing.list_streams, expiry)


def _connection(
    shared: Common,
    side: str,
    set_up: Callable[[PatchedClient], Awaitable[None]],
    *,
    echo: bool = True,
    may_publish: Callable[[str], bool] | None = None,
) -> Connection:
    return Connection(
        f"{shared.names.name}/{shared.instance}/{side}",
        shared.settings.nats,
        shared.clock,
        set_up=set_up,
        count=shared.counters.dropped,
        on_rebuild=lambda: shared.counters.rebuilt(side),
        echo=echo,
        may_publish=may_publish,
    )


def _report_sink(lookup: SubjectLookup, registry: SubjectRegistry) -> Callable[[str, GatewayReport], None]:
    """Feeds a gateway's report to the watched subjects that it is about; there may be none."""

    def sink(subject: str, report: GatewayReport) -> None:
        for name in lookup.names_reported(subject):
            registry.feed(name, GatewayReported(report.offered, report.admitted, report.seconds))

    return sink


def _in_background(work: Coroutine[Any, Any, None]) -> None:
    """Run it as a task of its own; its errors are dropped."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
