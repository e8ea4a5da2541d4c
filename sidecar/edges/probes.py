"""The HTTP page: /healthz, /readyz and /metrics, in a thread of its own so that it answers when the loop does not."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable

import uvicorn
from msgspec import Struct, json
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

STUCK_AFTER = 10.0
"""Seconds without a turn of the event loop after which the process is taken to be dead."""
AT_ONCE = 64
"""Connections served; more get 503 from the server."""


class Readiness(Struct, frozen=True):
    """The whole truth, as /readyz tells it."""

    ready: bool
    nats: str
    observing: bool
    leader: bool
    last_sweep_age_ms: int | None
    version: str


class PortTaken(Exception):
    """Nothing can listen there; the text names the address and what to do."""


class Probes:
    """Call `pulse` from the event loop at least every second."""

    def __init__(self, host: str, port: int, truth: Callable[[], Readiness], registry: CollectorRegistry) -> None:
        self._truth, self._registry = truth, registry
        self._pulse = time.monotonic()
        self._socket = _listen(host, port)
        self.port: int = self._socket.getsockname()[1]
        routes = [Route("/healthz", self._healthz), Route("/readyz", self._readyz), Route("/metrics", self._metrics)]
        config = uvicorn.Config(
            Starlette(routes=routes),
            log_config=None,
            access_log=False,
            lifespan="off",
            limit_concurrency=AT_ONCE,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, name="probes", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def pulse(self) -> None:
        """The event loop turns."""
        self._pulse = time.monotonic()

    def stop(self, seconds: float) -> None:
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(seconds)
        self._socket.close()

    def _serve(self) -> None:
        self._server.run(sockets=[self._socket])

    async def _healthz(self, request: Request) -> Response:
        stuck = time.monotonic() - self._pulse
        if stuck >= STUCK_AFTER:
            return PlainTextResponse(f"the event loop has been stuck for {stuck:.0f} s\n", 503)
        return PlainTextResponse("ok\n")

    async def _readyz(self, request: Request) -> Response:
        truth = self._truth()
        return Response(json.encode(truth), 200 if truth.ready else 503, media_type="application/json")

    def _metrics(self, request: Request) -> Response:
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)


def _listen(host: str, port: int) -> socket.socket:
    """The bound socket, so that a port in use is told before anything starts."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        with contextlib.ExitStack() as undo:
            undo.callback(bound.close)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            undo.pop_all()
    except OSError as error:
        raise PortTaken(
            f"http.host {host}, http.port {port}: {error.strerror}; give another port, or 0 for any"
        ) from None
    return bound
