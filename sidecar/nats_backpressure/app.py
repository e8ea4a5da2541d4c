"""Builds the process from its settings, and runs it from the start to the exit code.

What answers starts before what asks; everything is stopped in reverse order, with one time limit for all of it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import threading
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure import __version__
from nats_backpressure.adapters import logs
from nats_backpressure.adapters.embedded_server import CannotEmbed, EmbeddedServer
from nats_backpressure.adapters.followed_file import FollowedFile
from nats_backpressure.adapters.http_probes import HttpProbes, PortTaken
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
from nats_backpressure.adapters.nats.patched_client import PatchedClient
from nats_backpressure.adapters.nats.policy_store import JetStreamPolicyStore
from nats_backpressure.adapters.nats.remedies import remedy
from nats_backpressure.adapters.nats.replica_channel import NatsReplicaChannel
from nats_backpressure.adapters.nats.resources import Resources
from nats_backpressure.adapters.nats.state_store import JetStreamStateStore
from nats_backpressure.adapters.prometheus.collector import StateCollector
from nats_backpressure.adapters.prometheus.counters import Counters
from nats_backpressure.config.nats import variables_in
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
from nats_backpressure.runtime.garbage import keep_collections_short
from nats_backpressure.runtime.health import HealthCheck
from nats_backpressure.runtime.loop_lag import measure_loop_lag
from nats_backpressure.runtime.noting_observer import NotingObserver
from nats_backpressure.runtime.ports import Clock
from nats_backpressure.runtime.readiness import ReadinessCheck
from nats_backpressure.runtime.replicas import Replicas
from nats_backpressure.runtime.service import Service, build_service
from nats_backpressure.runtime.subject_registry import SubjectRegistry
from nats_backpressure.runtime.tasks import cancel_and_wait

log = structlog.get_logger()

STOP_WITHIN = 4.5
"""Seconds from the signal to the exit, whatever hangs."""
FINISH_WITHIN = 2.0
"""Seconds of them for writes and publishes that are under way."""
PULSE = 1.0
"""Seconds between two signs to the HTTP server that the event loop is not stuck."""
EX_UNAVAILABLE = 1
EX_CONFIG = 78


class EmbeddedOptions(Struct, frozen=True):
    """A server of our own: its port (0 picks a free one) and its directory (None is a temporary one)."""

    port: int = 0
    store: Path | None = None


def start(
    settings: Settings,
    embedded: EmbeddedOptions | None,
    file: FollowedFile,
    recording: RecordingFile | None = None,
) -> int:
    """Run until a signal; returns the exit code. When the file changes, and on SIGHUP, it is read again, and its
    policies are put in force. What is observed is written to the recording, if there is one."""
    logs.set_up(settings.log.level, settings.log.format)
    try:
        with asyncio.Runner(loop_factory=_fastest_loop()) as runner:
            runner.run(_run(settings, embedded, file, recording))
    except (CannotEmbed, PortTaken) as error:
        log.error("start.failed", error=str(error))
        return EX_CONFIG if isinstance(error, PortTaken) else EX_UNAVAILABLE
    except BaseExceptionGroup as crash:
        for cause in _leaves(crash):
            log.error("loop.crashed", error=f"{type(cause).__name__}: {cause}", exc_info=cause)
        return EX_UNAVAILABLE
    return 0


def _fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the event loop: uvloop where the extra `speed` is installed, else asyncio (None)."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _run(
    settings: Settings,
    embedded: EmbeddedOptions | None,
    file: FollowedFile,
    recording: RecordingFile | None,
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, _stop, stop)
    # The command may have held back those that came before.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    if embedded is None:
        await _serve(build(settings, settings.nats.servers, recording), stop, file)
        return
    server = EmbeddedServer(embedded.port, embedded.store)
    await server.start()
    log.info("embedded.started", url=server.url)
    try:
        await _serve(build(settings, (server.url,), recording), stop, file)
    finally:
        await server.stop()


async def _serve(app: App, stop: asyncio.Event, file: FollowedFile) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, lambda: app.reload(file))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGHUP,))
    await app.run(stop, file)


def _stop(stop: asyncio.Event) -> None:
    """Begin to stop, and end the process after STOP_WITHIN whatever happens: cancel() and drain() may hang."""
    if not stop.is_set():
        log.info("stopping")
        stop.set()
        timer = threading.Timer(STOP_WITHIN, os._exit, (0,))
        timer.daemon = True
        timer.start()


class App:
    """The whole process: two connections, so that what any client may send cannot blind the observer."""

    def __init__(
        self,
        servers: Sequence[str],
        clock: Clock,
        service: Service,
        history: HistoryQueries,
        endpoints: ServiceEndpoints,
        exchange: ReadingExchange,
        observing: Connection,
        answering: Connection,
        probes: HttpProbes,
        recorder: RecordingObserver | None,
        start_check: StartCheck,
        report_lag: Callable[[float], None],
    ) -> None:
        self._report_lag = report_lag
        self._servers, self._clock, self._service, self._history = servers, clock, service, history
        self._endpoints, self._observing, self._answering = endpoints, observing, answering
        self._exchange = exchange
        self._probes, self._recorder, self._start_check = probes, recorder, start_check
        self._reloading, self._reloads = asyncio.Lock(), set[asyncio.Future[None]]()

    async def run(self, stop: asyncio.Event, file: FollowedFile) -> None:
        """Serve the probes at once, observe, and answer once something is known; until `stop`."""
        self._probes.start()
        loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
        log.info(
            "started",
            version=__version__,
            http=self._probes.port,
            servers=self._servers,
            environment=variables_in(os.environ),
            loop=loop,
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                loops = [
                    tasks.create_task(self._pulse(), name="pulse"),
                    tasks.create_task(keep_collections_short(self._clock), name="garbage"),
                    tasks.create_task(measure_loop_lag(self._clock, self._report_lag), name="loop lag"),
                    tasks.create_task(self._observing.run(), name="observing connection"),
                    tasks.create_task(self._answer(), name="answering connection"),
                    tasks.create_task(self._history.follow_events(), name="follow events"),
                    tasks.create_task(self._exchange.run(), name="exchange readings"),
                    tasks.create_task(file.follow(self._clock, partial(self._reload, file)), name="follow settings"),
                    tasks.create_task(self._start_check.run(self._service.known), name="check at the start"),
                ]
                service = tasks.create_task(self._service.run(stop, FINISH_WITHIN), name="service")
                await stop.wait()
                await self._endpoints.stop(1.0)
                await asyncio.wait({service})
                await cancel_and_wait(loops)
        finally:
            self._probes.stop(1.0)
            if self._recorder:
                self._recorder.close()
            log.info("stopped")

    def reload(self, file: FollowedFile) -> None:
        """Put the policies of a settings file that was changed in force, soon. It is read in another thread: a large
        file takes seconds."""
        task = asyncio.ensure_future(self._reload(file))
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def _reload(self, file: FollowedFile) -> None:
        async with self._reloading:
            reading = asyncio.ensure_future(asyncio.to_thread(file.read))
            await asyncio.wait({reading})
            self._service.updates.reload(reading.result)

    async def _pulse(self) -> None:
        while True:
            self._probes.pulse()
            await self._clock.sleep(PULSE)

    async def _answer(self) -> None:
        """Join the queue group only once there is something to answer."""
        await self._service.known.wait()
        await self._answering.run()


def build(settings: Settings, servers: Sequence[str], recording: RecordingFile | None = None) -> App:
    """Wire settings, adapters and service. Nothing runs yet, but the HTTP port is taken. Raises PortTaken."""
    server_time = ServerTime()
    clock, names, publish = SystemClock(server_time), Names(settings.name), settings.publish
    instance, counters = settings.instance or "unknown", Counters(settings.metrics.max_subjects)
    nats = replace(settings.nats, servers=tuple(servers))

    async def set_up(client: PatchedClient) -> None:
        await advisories.listen(client)
        await channel.subscribe(client)
        service.announce()

    observing = Connection(
        f"{names.name}/{instance}/observe",
        nats,
        clock,
        set_up=set_up,
        count=counters.dropped,
        on_rebuild=lambda: counters.rebuilt("observe"),
        echo=False,
    )
    failures = Failures(clock, partial(remedy, nats))
    channel = NatsReplicaChannel(names, lambda: observing.client, observing.listening_time, counters.dropped)
    # One for each store and stream: what hangs at one of them uses up no turn of another.
    states, policies, events_api = (JetStreamApi(observing, nats.api_prefix) for _ in range(3))
    resources = Resources(states, names, publish.replicas, publish.events_max_age_seconds, publish.manage_resources)
    requests = RequestBudget(settings.observe.api_requests_per_second)
    reader = JetStreamObserver(
        observing,
        clock,
        count=counters.dropped,
        count_request=counters.api_request,
        prefix=nats.api_prefix,
        budget=requests,
    )
    observer = NotingObserver(reader, failures)
    publisher = JetStreamEventPublisher(events_api, names, partial(serialize.event_message, instance=instance))
    events = JetStreamEventReader(events_api, lambda: observing.client, names, parse_event, counters.dropped, clock)
    recorder = RecordingObserver(observer, clock, recording, settings, counters.dropped) if recording else None
    alias = settings.service.status_alias
    captured = CapturedSubjects(names.prefix, alias, lambda: _in_background(endpoints.check_alias()))
    replicas = Replicas(channel, clock, instance, secrets.token_hex(8), counters)
    exchange = ReadingExchange(
        settings, clock, recorder or observer, channel, replicas, counters.dropped, SystemClock()
    )
    service = build_service(
        settings,
        clock,
        exchange.observer,
        JetStreamStateStore(states, names, counters.dropped, lambda: observing.client, clock),
        publisher,
        JetStreamPolicyStore(policies, names, counters.dropped, lambda: observing.client, clock, failures),
        resources.ensure,
        counters,
        writer=f"{instance}.{secrets.token_hex(4)}",
        render_state=serialize.state_value,
        render_heartbeat=lambda view, now, leaving: serialize.heartbeat(view, instance, now, leaving),
        on_looks=captured.update,
        on_policies=recorder.record_policies if recorder else lambda sources: None,
        on_list=events.take_looks,
        requests=requests,
        replicas=replicas,
        shared=exchange.shared,
        failures=failures,
        server_time=server_time,
    )
    hint = recorder.recording_hints(service.poller.hint) if recorder else service.poller.hint
    exchange.connect(service.poller, recorder.record_received if recorder else lambda received: None, hint)
    advisories = AdvisoryListener(clock, exchange.hints.take, counters.dropped, exchange.hints.counts)
    exchange.share_hints(advisories.subscriptions)
    registry = service.registry
    decisions, lookup = DecisionService(registry, clock), SubjectLookup(registry)
    history = HistoryQueries(decisions, registry, EventCache(), events, clock, failures)
    SharedGrants(decisions.grants, replicas, channel, clock, counters, registry.reading_of)
    tally, p = DecisionTally(counters), names.prefix
    kept = (decisions, registry, clock.now, clock.mono, tally)
    endpoints = ServiceEndpoints(
        answers(decisions, history, tally, registry),
        decisions.alias,
        clock,
        names,
        counters.dropped,
        settings.service.reply_prefixes,
        alias,
        captured.streams_of,
        direct={
            "decide-gateway": GatewayDecisions(f"{p}.decide.gateway.", *kept),
            "decide-consumer": ConsumerDecisions(f"{p}.decide.consumer.", *kept),
        },
    )
    readiness = ReadinessCheck(registry, clock, lambda: observing.connected)
    reports = GatewayReportListener(names.prefix, clock, _report_sink(lookup, registry), counters.dropped)

    async def serve(client: PatchedClient) -> None:
        await endpoints.serve(client)
        await reports.listen(client)
        readiness.serving = True

    answering = Connection(
        f"{names.name}/{instance}/answer",
        nats,
        clock,
        set_up=serve,
        count=counters.dropped,
        on_rebuild=lambda: counters.rebuilt("answer"),
        may_publish=endpoints.may_reply,
    )
    connected = {"observe": lambda: observing.connected, "answer": lambda: answering.connected}
    health = HealthCheck(service, readiness, connected)
    states_page = StateCollector(registry, SubjectLookup(registry).answer, counters, clock, health).text
    counters.expose(states_page, tally.pass_on)
    probes = HttpProbes(settings.http.host, settings.http.port, readiness, counters.page, clock)
    facts = FactReader(
        replace(settings, nats=nats),
        JetStreamApi(observing, nats.api_prefix),
        lambda: observing.client,
        partial(remedy, nats),
    )
    check = StartCheck(settings, registry, clock, facts, reader.streams, partial(jwt_expiry, nats))
    return App(
        nats.shown_servers,
        clock,
        service,
        history,
        endpoints,
        exchange,
        observing,
        answering,
        probes,
        recorder,
        check,
        counters.lagged,
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


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The exceptions in a group and its groups."""
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves
