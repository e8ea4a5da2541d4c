"""The HTTP server for /healthz, /readyz and /metrics, in its own thread to answer while the event loop hangs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from email.utils import formatdate
from typing import Any

import structlog
import uvicorn
from msgspec import json
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from nats_backpressure.runtime.ports import TimeSource
from nats_backpressure.runtime.readiness import Readiness

log = structlog.get_logger()

STUCK_AFTER = 10.0
"""Seconds without a turn of the event loop after which /healthz answers 503."""
CONNECTIONS = 256
"""Connections served at once; further ones get 503."""
CONNECTION_TIMEOUT = 10.0
"""Seconds for a connection to send its request, and to read the answer."""
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Answer = Callable[[Request], Awaitable[Response]]


class PortTaken(Exception):
    """The address cannot be listened on; the text has the address and what to do."""


class HttpProbes:
    """Listens once it is constructed, and answers once started. The event loop must call `pulse` every second."""

    def __init__(
        self,
        host: str,
        port: int,
        readiness: Callable[[], Readiness],
        metrics: Callable[[], Sequence[bytes]],
        clock: TimeSource,
        stuck_after: float = STUCK_AFTER,
        timeout: float = CONNECTION_TIMEOUT,
    ) -> None:
        """Raises PortTaken. `readiness` is called in the thread of the HTTP server, `metrics`, which returns the
        pieces of a page, in another one."""
        self._readiness, self._metrics_page, self._stuck_after = readiness, metrics, stuck_after
        self._clock = clock
        self.pulse()
        self._scraping = asyncio.Lock()
        self._socket = _listen(host, port)
        self.port: int = self._socket.getsockname()[1]
        pages = {"/healthz": self._healthz, "/readyz": self._readyz, "/metrics": self._metrics}
        config = uvicorn.Config(
            Starlette(routes=[Route(path, _guarded(answer)) for path, answer in pages.items()]),
            loop="asyncio",
            http=type("TimedProtocol", (_TimedProtocol,), {"timeout": timeout}),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=1,
        )
        self._server = _Server(config)
        self._thread = threading.Thread(target=self._serve, name="probes", daemon=True)

    def start(self) -> None:
        self.pulse()
        self._thread.start()

    def pulse(self) -> None:
        """Report that the event loop runs."""
        self._pulse = self._clock.now().mono

    def stop(self, seconds: float) -> None:
        """Answer the requests that have arrived, within `seconds`; blocks meanwhile."""
        self._server.end()
        if self._thread.is_alive():
            self._thread.join(seconds)
        self._socket.close()

    def _serve(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        except Exception as error:  # Kubernetes restarts a process without probes; the log has the reason
            log.error("http.failed", error=f"{type(error).__name__}: {error}", exc_info=error)

    async def _healthz(self, request: Request) -> Response:
        stuck = self._clock.now().mono - self._pulse
        if stuck >= self._stuck_after:
            return PlainTextResponse(f"the event loop has been stuck for {stuck:.0f} s\n", 503)
        return PlainTextResponse("ok\n")

    async def _readyz(self, request: Request) -> Response:
        readiness = self._readiness()
        return Response(json.encode(readiness), 200 if readiness.ready else 503, media_type="application/json")

    async def _metrics(self, request: Request) -> Response:
        # One scrape at a time, in another thread: neither a slow nor a frequent scraper delays /healthz.
        async with self._scraping:
            page = await run_in_threadpool(self._metrics_page)
        return StreamingResponse(
            _each(page), media_type=METRICS_TYPE, headers={"content-length": str(sum(map(len, page)))}
        )


async def _each(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def _guarded(answer: Answer) -> Answer:
    """Answers an exception with a plain 500; only the log gets its details."""

    async def guarded(request: Request) -> Response:
        try:
            return await answer(request)
        except Exception as error:
            log.error("http.failed", path=request.url.path, error=type(error).__name__, exc_info=error)
            return PlainTextResponse("internal error; see the log\n", 500)

    return guarded


class _Headers(ServerState):
    """Computes the date when it is sent, where uvicorn does ten times a second."""

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"date", formatdate(usegmt=True).encode())]

    @default_headers.setter
    def default_headers(self, headers: object) -> None: ...


class _Server(uvicorn.Server):
    """Sleeps until it ends: a process at rest should not wake up for its probes."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.server_state = _Headers()
        self._ending = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def end(self) -> None:
        """Stop serving; any thread may call it."""
        self.should_exit = True
        with contextlib.suppress(RuntimeError):  # it has ended already
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._ending.set)

    async def main_loop(self) -> None:
        self._loop = asyncio.get_running_loop()
        if not self.should_exit:
            await self._ending.wait()


class _TimedProtocol(H11Protocol):
    """Closes a connection without progress: silent ones must not use up the connections that the kubelet needs."""

    timeout = CONNECTION_TIMEOUT

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._seen: Any = None
        self._check = self.loop.call_later(self.timeout, self._check_progress)

    def connection_lost(self, exc: Exception | None) -> None:
        self._check.cancel()
        super().connection_lost(exc)

    def _check_progress(self) -> None:
        # uvicorn makes a new cycle for each request, and closes a connection that idles after one by itself.
        if self.cycle is self._seen:
            self.transport.abort()
            return
        self._seen = self.cycle
        self._check = self.loop.call_later(self.timeout, self._check_progress)


def _listen(host: str, port: int) -> socket.socket:
    """The listening socket, made first so that a port in use is reported before anything starts."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as undo:
            bound = socket.socket(family, kind, protocol)
            undo.callback(bound.close)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(CONNECTIONS)
            undo.pop_all()
    except (OSError, OverflowError, UnicodeError) as error:
        because = getattr(error, "strerror", None) or str(error)
        raise PortTaken(f"http.host {host}, http.port {port}: {because}; give another port, or 0 for any") from None
    return bound
