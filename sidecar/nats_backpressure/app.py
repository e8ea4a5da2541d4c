"""Runs the process from the start to the exit code.

What answers starts before what asks; everything is stopped in reverse order, with one time limit for all of it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import structlog
from msgspec import Struct

from nats_backpressure import __version__
from nats_backpressure.adapters import logs
from nats_backpressure.adapters.followed_file import FollowedFile
from nats_backpressure.adapters.http_probes import HttpProbes, PortTaken
from nats_backpressure.adapters.nats.credentials import file_problems
from nats_backpressure.config.nats import variables_in
from nats_backpressure.config.settings import BadSettings, Settings
from nats_backpressure.policy.validation import FieldProblem
from nats_backpressure.recording.recorder import RecordingFile
from nats_backpressure.runtime.garbage import keep_collections_short
from nats_backpressure.runtime.loop_lag import measure_loop_lag
from nats_backpressure.runtime.tasks import cancel_and_wait
from nats_backpressure.wiring import (
    Answering,
    Common,
    Observing,
    build_answering,
    build_observing,
    build_probes,
    build_start_check,
    common,
)

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


class CannotStart(Exception):
    """The embedded server does not start; the text has the reason and what to do."""


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
    except (CannotStart, PortTaken) as error:
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
    # Imported late: with what it imports it takes 1 MiB, which a pod does not need.
    from nats_backpressure.adapters.embedded_server import CannotEmbed, EmbeddedServer

    server = EmbeddedServer(embedded.port, embedded.store)
    try:
        await server.start()
    except CannotEmbed as error:
        raise CannotStart(str(error)) from None
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
    """The whole process, from its start to its end."""

    def __init__(self, shared: Common, observing: Observing, answering: Answering, probes: HttpProbes) -> None:
        self._shared, self._observing, self._answering, self._probes = shared, observing, answering, probes
        self._clock, self._service = shared.clock, observing.service
        self._start_check = build_start_check(shared, observing)
        self._reloading, self._reloads = asyncio.Lock(), set[asyncio.Future[None]]()

    async def run(self, stop: asyncio.Event, file: FollowedFile) -> None:
        """Serve the probes at once, observe, and answer once something is known; until `stop`."""
        self._probes.start()
        loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
        log.info(
            "started",
            version=__version__,
            http=self._probes.port,
            servers=self._shared.settings.nats.shown_servers,
            environment=variables_in(os.environ),
            loop=loop,
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                loops = [
                    tasks.create_task(self._pulse(), name="pulse"),
                    tasks.create_task(keep_collections_short(self._clock), name="garbage"),
                    tasks.create_task(measure_loop_lag(self._clock, self._shared.counters.lagged), name="loop lag"),
                    tasks.create_task(self._observing.connection.run(), name="observing connection"),
                    tasks.create_task(self._answer(), name="answering connection"),
                    tasks.create_task(self._answering.history.follow_events(), name="follow events"),
                    tasks.create_task(self._observing.exchange.run(), name="exchange readings"),
                    tasks.create_task(file.follow(self._clock, partial(self._reload, file)), name="follow settings"),
                    tasks.create_task(self._start_check.run(self._service.known), name="check at the start"),
                ]
                service = tasks.create_task(self._service.run(stop, FINISH_WITHIN), name="service")
                await stop.wait()
                await self._answering.endpoints.stop(1.0)
                await asyncio.wait({service})
                await cancel_and_wait(loops)
        finally:
            self._probes.stop(1.0)
            if self._observing.recorder:
                self._observing.recorder.close()
            log.info("stopped")

    def reload(self, file: FollowedFile) -> None:
        """Put the policies of a settings file that was changed in force, soon. It is read in another thread: a large
        file takes seconds."""
        task = asyncio.ensure_future(self._reload(file))
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def _reload(self, file: FollowedFile) -> None:
        async with self._reloading:
            reading = asyncio.ensure_future(asyncio.to_thread(self._read, file))
            await asyncio.wait({reading})
            self._service.updates.reload(reading.result)

    def _read(self, file: FollowedFile) -> Settings:
        """Read the settings file. Raises BadSettings, also where `nats` was changed and the files that it names cannot
        be used: the connection would fail after the restart that it needs."""
        settings = file.read()
        changed = settings.nats != self._shared.settings.nats
        problems = [FieldProblem("nats", text) for text in file_problems(settings.nats)] if changed else []
        if problems:
            raise BadSettings(problems, (problem.line for problem in problems))
        return settings

    async def _pulse(self) -> None:
        while True:
            self._probes.pulse()
            await self._clock.sleep(PULSE)

    async def _answer(self) -> None:
        """Join the queue group only once there is something to answer."""
        await self._service.known.wait()
        await self._answering.connection.run()


def build(settings: Settings, servers: Sequence[str], recording: RecordingFile | None = None) -> App:
    """The process, of which nothing runs yet; but the HTTP port is taken. Raises PortTaken."""
    shared = common(settings, servers)
    observing = build_observing(shared, recording)
    answering = build_answering(shared, observing)
    return App(shared, observing, answering, build_probes(shared, observing, answering))


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The exceptions in a group and its groups."""
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves
