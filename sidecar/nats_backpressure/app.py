"""The roof: settings become connections, edges and a service; and the life of the process, from start to exit code.

What answers starts before what asks; everything is stopped in reverse, with one time limit for all of it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import structlog
from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure import __version__
from nats_backpressure.adapters import logs
from nats_backpressure.adapters.embedded_server import CannotEmbed, EmbeddedServer
from nats_backpressure.adapters.http_probes import HttpProbes, PortTaken, Readiness
from nats_backpressure.adapters.nats.advisories import AdvisoryListener
from nats_backpressure.adapters.nats.api import JetStreamApi
from nats_backpressure.adapters.nats.connection import Connection
from nats_backpressure.adapters.nats.endpoints import ServiceEndpoints
from nats_backpressure.adapters.nats.event_publisher import JetStreamEventPublisher
from nats_backpressure.adapters.nats.event_reader import JetStreamEventReader
from nats_backpressure.adapters.nats.gateway_reports import GatewayReportListener
from nats_backpressure.adapters.nats.observer import JetStreamObserver
from nats_backpressure.adapters.nats.patched_client import PatchedClient
from nats_backpressure.adapters.nats.policy_store import JetStreamPolicyStore
from nats_backpressure.adapters.nats.resources import Resources, streams_that_store
from nats_backpressure.adapters.nats.state_store import JetStreamStateStore
from nats_backpressure.adapters.prometheus.collector import StateCollector
from nats_backpressure.adapters.prometheus.counters import Counters
from nats_backpressure.config.settings import BadSettings, Settings
from nats_backpressure.core.model import StreamLook
from nats_backpressure.core.subject.inputs import GatewayReported
from nats_backpressure.protocol.reports import GatewayReport
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.queries import serialize
from nats_backpressure.queries.answers import answers
from nats_backpressure.queries.decisions import DecisionService
from nats_backpressure.queries.event_cache import EventCache, parse_event
from nats_backpressure.queries.history import CachingEventPublisher, HistoryQueries
from nats_backpressure.queries.lookup import SubjectLookup
from nats_backpressure.recording.recorder import RecordingFile, RecordingObserver
from nats_backpressure.runtime.clock import SystemClock
from nats_backpressure.runtime.service import Service
from nats_backpressure.runtime.tasks import Once, cancel_and_wait

log = structlog.get_logger()

STOP_WITHIN = 4.5
"""Seconds from the signal to the exit, whatever hangs."""
FINISH_WITHIN = 2.0
"""Seconds of them for what is being written or published."""
PULSE = 0.25
LONG_LOSS = 30.0
"""Seconds without a reading after which `ready_requires_nats` turns readiness off again."""
EX_UNAVAILABLE = 1
EX_CONFIG = 78


class EmbeddedOptions(Struct, frozen=True):
    """A server of our own: its port (0 picks a free one) and its directory (None is a temporary one)."""

    port: int = 0
    store: Path | None = None


def start(
    settings: Settings,
    embedded: EmbeddedOptions | None,
    read_again: Callable[[], Settings],
    tape: RecordingFile | None = None,
) -> int:
    """Run until a signal; the exit code. On SIGHUP the settings are read again, and their policies put in force. What
    is observed is written on the tape, if there is one."""
    logs.set_up(settings.log.level, settings.log.format)
    try:
        asyncio.run(_run(settings, embedded, read_again, tape))
    except (CannotEmbed, PortTaken) as error:
        log.error("start.failed", error=str(error))
        return EX_CONFIG if isinstance(error, PortTaken) else EX_UNAVAILABLE
    except BaseExceptionGroup as crash:
        for cause in _leaves(crash):
            log.error("loop.crashed", error=f"{type(cause).__name__}: {cause}", exc_info=cause)
        return EX_UNAVAILABLE
    return 0


async def with_embedded(use: Callable[[EmbeddedServer], Awaitable[bool]]) -> bool:
    """Start a server, use it, take it down."""
    server = EmbeddedServer()
    await server.start()
    try:
        return await use(server)
    finally:
        await server.stop()


async def _run(
    settings: Settings, embedded: EmbeddedOptions | None, read_again: Callable[[], Settings], tape: RecordingFile | None
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, _stop, stop)
    if embedded is None:
        await _live(Sidecar(settings, settings.nats.servers, tape), stop, read_again)
        return
    server = EmbeddedServer(embedded.port, embedded.store)
    await server.start()
    log.info("embedded.started", url=server.url)
    try:
        await _live(Sidecar(settings, (server.url,), tape), stop, read_again)
    finally:
        await server.stop()


async def _live(sidecar: Sidecar, stop: asyncio.Event, read_again: Callable[[], Settings]) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, lambda: sidecar.reload(read_again))
    await sidecar.run(stop)


def _stop(stop: asyncio.Event) -> None:
    """Begin to stop, and see to it that it ends: neither cancel() nor drain() can be trusted to."""
    if not stop.is_set():
        log.info("stopping")
        stop.set()
        timer = threading.Timer(STOP_WITHIN, os._exit, (0,))
        timer.daemon = True
        timer.start()


class Sidecar:
    """The whole, wired up: two connections, so that what any client may send cannot blind the observer."""

    def __init__(self, settings: Settings, servers: Sequence[str], tape: RecordingFile | None = None) -> None:
        self._settings = settings
        self._clock = clock = SystemClock()
        names = Names(settings.name)
        instance = settings.instance or "unknown"
        self._metrics = metrics = Counters(settings.metrics.max_subjects)
        nats = replace(settings.nats, servers=tuple(servers))
        self._observing = Connection(
            f"{names.name}/{instance}/observe",
            nats,
            clock,
            set_up=self._listen,
            count=metrics.dropped,
            on_rebuild=lambda: metrics.rebuilt("observe"),
        )
        js = JetStreamApi(self._observing, nats.api_prefix)
        publish = settings.publish
        resources = Resources(js, names, publish.replicas, publish.events_max_age_seconds, publish.manage_resources)
        observer = JetStreamObserver(
            self._observing,
            clock,
            count=metrics.dropped,
            count_request=metrics.api_request,
            prefix=nats.api_prefix,
            requests_per_second=settings.observe.api_requests_per_second,
        )

        publisher = JetStreamEventPublisher(js, names, partial(serialize.event_message, instance=instance))
        history = EventCache(round(1000 * clock.now().wall))
        self._recorder = recorder = tape and RecordingObserver(observer, clock, tape, settings, metrics.dropped)
        self._service = service = Service(
            settings,
            clock,
            recorder or observer,
            JetStreamStateStore(js, names, metrics.dropped, lambda: self._observing.client),
            CachingEventPublisher(publisher, history),
            JetStreamPolicyStore(js, names, metrics.dropped, lambda: self._observing.client, clock),
            resources.ensure,
            metrics,
            writer=f"{instance}.{secrets.token_hex(4)}",
            render_state=serialize.state_value,
            render_beat=lambda book, now, leaving: serialize.heartbeat(book, instance, now, leaving),
            on_looks=self._looked,
            on_policies=recorder.record_policies if recorder else lambda sources: None,
        )
        sink = recorder.recording_hints(service.poller.hint) if recorder else service.poller.hint
        self._advisories = AdvisoryListener(clock, sink, metrics.dropped)
        self._names, self._logged_captured = names, Once()
        self._serving = False
        self._looks: tuple[StreamLook, ...] = ()
        desk = DecisionService(service.registry)
        stream = JetStreamEventReader(js, lambda: self._observing.client, names, parse_event, metrics.dropped)
        self._finder, self._reports = (
            SubjectLookup(service.registry),
            GatewayReportListener(names.prefix, clock, self._reported, metrics.dropped),
        )
        self._past = HistoryQueries(desk, service.registry, history, stream, clock)
        self._responder = ServiceEndpoints(
            answers(desk, self._past, metrics),
            desk.alias,
            clock,
            names,
            metrics.dropped,
            settings.service.reply_prefixes,
            settings.service.status_alias,
            self._captors,
        )
        self._answering = Connection(
            f"{names.name}/{instance}/answer",
            nats,
            clock,
            set_up=self._serve,
            count=metrics.dropped,
            on_rebuild=lambda: metrics.rebuilt("answer"),
            may_publish=self._responder.may_reply,
        )
        metrics.expose(StateCollector(service.registry, SubjectLookup(service.registry).answer, metrics, clock))
        self._probes = HttpProbes(settings.http.host, settings.http.port, self._truth, metrics.page, clock)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve the probes at once, observe, and answer once something is known; until `stop`."""
        self._probes.start()
        log.info("started", version=__version__, http=self._probes.port, servers=self._settings.nats.shown_servers)
        try:
            async with asyncio.TaskGroup() as tasks:
                loops = [
                    tasks.create_task(self._pulse(), name="pulse"),
                    tasks.create_task(self._observing.run(), name="observing connection"),
                    tasks.create_task(self._answer(), name="answering connection"),
                    tasks.create_task(self._past.load_recent_events(), name="load events"),
                ]
                service = tasks.create_task(self._service.run(stop, FINISH_WITHIN), name="service")
                await stop.wait()
                await self._responder.stop(1.0)
                await asyncio.wait({service})
                await cancel_and_wait(loops)
        finally:
            self._probes.stop(1.0)
            if self._recorder:
                self._recorder.close()
            log.info("stopped")

    def reload(self, read_again: Callable[[], Settings]) -> None:
        """Take the policies of a file that was changed; a bad file changes nothing, and is told of."""
        try:
            settings = read_again()
        except BadSettings as bad:
            log.error("config.rejected", errors=bad.lines, hint="the last good policies stay in force")
            self._service.updates.refuse_file(bad.problems)
            return
        self._service.updates.take_settings(settings)
        same = replace(settings, policies=(), policy_guard=self._settings.policy_guard)
        restart = same != replace(self._settings, policies=())
        log.info("config.reloaded", policies=len(settings.policies), other_changes_need_a_restart=restart)

    async def _pulse(self) -> None:
        while True:
            self._probes.pulse()
            await self._clock.sleep(PULSE)

    async def _answer(self) -> None:
        """Join the queue group only once there is something to answer."""
        await self._service.known.wait()
        await self._answering.run()

    async def _serve(self, client: PatchedClient) -> None:
        await self._responder.serve(client)
        await self._reports.listen(client)
        self._serving = True

    def _reported(self, subject: str, report: GatewayReport) -> None:
        """It may name a literal that watched wildcards cover; what nobody watches is not remembered."""
        for found in self._finder.find(subject, self._clock.now()):
            self._service.registry.feed(
                found.state.subject, GatewayReported(report.offered, report.admitted, report.seconds)
            )

    async def _listen(self, client: PatchedClient) -> None:
        await self._advisories.listen(client)

    def _looked(self, looks: Sequence[StreamLook]) -> None:
        """Streams came or went: what they capture is said, and the alias given up or taken again."""
        self._looks = tuple(looks)
        alias = self._settings.service.status_alias
        p = self._names.prefix
        asked = [f"{p}.{tail}" for tail in ("decide.gateway.x", "decide.consumer.x", "get.status.x", "validate.policy")]
        for subject in (*asked, *([alias] if alias else [])):
            for stream in self._captors(subject):
                if self._logged_captured.first((stream, subject)):
                    log.error(
                        "subject.captured",
                        subject=subject,
                        stream=stream,
                        hint="JetStream answers there first; take the subject out of the stream",
                    )
        if alias:
            task = asyncio.ensure_future(self._responder.check_alias())
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _captors(self, subject: str) -> Sequence[str]:
        return streams_that_store(self._looks, subject)

    def _truth(self) -> Readiness:
        swept = self._service.registry.swept_at
        age = None if swept is None else self._clock.now().mono - swept
        # Only once somebody answers too: who waits for it asks next.
        observing = self._service.registry.observing and self._serving
        streams = len(self._service.registry.looks)
        lately = age is not None and age < LONG_LOSS
        return Readiness(
            ready=lately or not self._settings.http.ready_requires_nats,
            nats="connected" if self._observing.connected else "connecting",
            observing=observing,
            streams=streams,
            reads=streams,  # every replica reads all of them
            last_sweep_age_ms=None if age is None else round(1000 * age),
            version=__version__,
        )


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
