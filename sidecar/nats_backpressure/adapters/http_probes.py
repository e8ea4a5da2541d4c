"""The HTTP page: /healthz, /readyz and /metrics, in a thread of its own so that it answers when the loop does not."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
import uvicorn
from msgspec import Struct, json
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

log = structlog.get_logger()

STUCK_AFTER = 10.0
"""Seconds without a turn of the event loop after which the process is taken to be dead."""
AT_ONCE = 256
"""Connections served; the ones beyond get 503."""
PATIENCE = 10.0
"""Seconds for a connection to bring its request and to take its answer."""
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Answer = Callable[[Request], Awaitable[Response]]


class Readiness(Struct, frozen=True):
    """The whole truth, as /readyz tells it."""

    ready: bool
    nats: str
    observing: bool
    streams: int
    """Followed."""
    reads: int
    """Of them, those that this replica reads itself."""
    last_sweep_age_ms: int | None
    version: str


class PortTaken(Exception):
    """Nothing can listen there; the text names the address and what to do."""


class HttpProbes:
    """Call `pulse` from the event loop at least every second. Listens once it is made, and answers once started."""

    def __init__(
        self,
        host: str,
        port: int,
        truth: Callable[[], Readiness],
        metrics: Callable[[], bytes],
        stuck_after: float = STUCK_AFTER,
        patience: float = PATIENCE,
    ) -> None:
        self._truth, self._page, self._stuck_after = truth, metrics, stuck_after
        self._pulse = time.monotonic()
        self._scraping = asyncio.Lock()
        self._socket = _listen(host, port)
        self.port: int = self._socket.getsockname()[1]
        pages = {"/healthz": self._healthz, "/readyz": self._readyz, "/metrics": self._metrics}
        config = uvicorn.Config(
            Starlette(routes=[Route(path, _guarded(answer)) for path, answer in pages.items()]),
            loop="asyncio",
            http=type("Patient", (_TolerantProtocol,), {"patience": patience}),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=AT_ONCE,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, name="probes", daemon=True)

    def start(self) -> None:
        self._pulse = time.monotonic()
        self._thread.start()

    def pulse(self) -> None:
        """The event loop turns."""
        self._pulse = time.monotonic()

    def stop(self, seconds: float) -> None:
        """Answer what is being asked, for so long at most; blocks meanwhile."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(seconds)
        self._socket.close()

    def _serve(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        except Exception as error:  # without its probes the process will be restarted, and the log says why
            log.error("http.failed", error=f"{type(error).__name__}: {error}", exc_info=error)

    async def _healthz(self, request: Request) -> Response:
        stuck = time.monotonic() - self._pulse
        if stuck >= self._stuck_after:
            return PlainTextResponse(f"the event loop has been stuck for {stuck:.0f} s\n", 503)
        return PlainTextResponse("ok\n")

    async def _readyz(self, request: Request) -> Response:
        truth = self._truth()
        return Response(json.encode(truth), 200 if truth.ready else 503, media_type="application/json")

    async def _metrics(self, request: Request) -> Response:
        # One scrape at a time, off this loop: neither a slow nor an eager scraper holds up /healthz.
        async with self._scraping:
            body = await run_in_threadpool(self._page)
        return Response(body, media_type=METRICS_TYPE)


def _guarded(answer: Answer) -> Answer:
    """A failure of ours is told as such, and its facts to the log only."""

    async def guarded(request: Request) -> Response:
        try:
            return await answer(request)
        except Exception as error:
            log.error("http.failed", path=request.url.path, error=type(error).__name__, exc_info=error)
            return PlainTextResponse("internal error; the log has it\n", 500)

    return guarded


class _TolerantProtocol(H11Protocol):
    """Ends a connection that makes no progress: a few silent ones must not use up what the kubelet needs."""

    patience = PATIENCE

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._seen: Any = None
        self._check = self.loop.call_later(self.patience, self._progressed)

    def connection_lost(self, exc: Exception | None) -> None:
        self._check.cancel()
        super().connection_lost(exc)

    def _progressed(self) -> None:
        # uvicorn makes a new cycle for each request, and ends a connection that idles after one by itself.
        if self.cycle is self._seen:
            self.transport.abort()
            return
        self._seen = self.cycle
        self._check = self.loop.call_later(self.patience, self._progressed)


def _listen(host: str, port: int) -> socket.socket:
    """The listening socket, so that a port in use is told before anything starts."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as undo:
            bound = socket.socket(family, kind, protocol)
            undo.callback(bound.close)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(AT_ONCE)
            undo.pop_all()
    except (OSError, OverflowError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise PortTaken(f"http.host {host}, http.port {port}: {said}; give another port, or 0 for any") from None
    return bound
