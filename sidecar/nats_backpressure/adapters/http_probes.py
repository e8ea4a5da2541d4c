"""The HTTP server for /healthz, /readyz and /metrics, in its own thread to answer while the event loop hangs.

Own code because of what a server for everything takes in each pod: 5 MiB, and 90 modules at each start.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from email.utils import formatdate
from http import HTTPStatus

import structlog
from msgspec import Struct, json

from nats_backpressure.runtime.ports import TimeSource
from nats_backpressure.runtime.readiness import Readiness

log = structlog.get_logger()

STUCK_AFTER = 10.0
"""Seconds without a turn of the event loop after which /healthz answers 503."""
CONNECTIONS = 256
"""Connections at once; a further one ends the one that has waited longest for a request, or for its answer to be read:
whoever holds connections open must not fail the probes."""
CONNECTION_TIMEOUT = 10.0
"""Seconds for a connection to send its request, and as many to get and read the answer."""
KEEP_ALIVE = 5.0
"""Seconds for which a connection stays open between two requests."""
END_WITHIN = 1.0
"""Seconds for the answers that are under way at the end."""
LARGEST_REQUEST = 16 * 1024
"""Bytes of a request line and its headers."""
TEXT, JSON = "text/plain; charset=utf-8", "application/json"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REQUEST = re.compile(rb"([A-Z]{1,20}) (?:http://[^/ ]+)?(/[^ ?]*)(?:\?[^ ]*)? HTTP/1\.([01])\r\n")
LAST = re.compile(rb"\r\n(?:connection:[^\r]*close|content-length:|transfer-encoding:)", re.IGNORECASE)
"""After such a request the connection is closed: it says so, or has a body, which is not read."""


class PortTaken(Exception):
    """The address cannot be listened on; the text has the address and what to do."""


class HttpAnswer(Struct, frozen=True):
    """What is answered, its body in pieces."""

    status: int
    body: Sequence[bytes]
    type: str = TEXT

    def head(self, last: bool) -> bytes:
        """`last`: whether the connection is closed after it."""
        lines = (
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}",
            f"date: {formatdate(usegmt=True)}",
            f"content-type: {self.type}",
            f"content-length: {sum(map(len, self.body))}",
            *(["connection: close"] if last else []),
        )
        return "\r\n".join((*lines, "\r\n")).encode()


def _refusal(status: HTTPStatus) -> HttpAnswer:
    return HttpAnswer(status, [f"{status.phrase.lower()}\n".encode()])


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
        self._clock, self._timeout = clock, timeout
        self.pulse()
        self._ending = asyncio.Event()
        self._page: asyncio.Future[Sequence[bytes]] | None = None
        """The newest page of metrics, which may be under way."""
        self._socket = _listen(host, port)
        self.port: int = self._socket.getsockname()[1]
        self._pages: dict[bytes, Callable[[], Awaitable[HttpAnswer]]] = {
            b"/healthz": self._healthz,
            b"/readyz": self._readyz,
            b"/metrics": self._metrics,
        }
        self._connections: dict[asyncio.Task[None], bool] = {}
        """Whether each answers a request now; the one that has waited longest for its turn is first."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="probes", daemon=True)

    def start(self) -> None:
        self.pulse()
        self._thread.start()

    def pulse(self) -> None:
        """Report that the event loop runs."""
        self._pulse = self._clock.now().mono

    def stop(self, seconds: float) -> None:
        """Answer the requests that have arrived, within `seconds`; blocks meanwhile."""
        self._stopping = True
        with contextlib.suppress(RuntimeError):  # it has ended already
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._ending.set)
        if self._thread.is_alive():
            self._thread.join(seconds)
        self._socket.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:  # Kubernetes restarts a process without probes; the log has the reason
            log.error("http.failed", error=f"{type(error).__name__}: {error}", exc_info=error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self._stopping:
            return
        server = await asyncio.start_server(self._connected, sock=self._socket, limit=LARGEST_REQUEST)
        await self._ending.wait()
        server.close()
        for task, answers in self._connections.items():
            if not answers:
                task.cancel()
        if self._connections:
            await asyncio.wait(self._connections, timeout=END_WITHIN)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = False
        self._end_one_too_many()
        wait, last = self._timeout, False
        try:
            while not last:
                async with asyncio.timeout(wait):
                    request = await reader.readuntil(b"\r\n\r\n")
                self._put_last(task, answers=True)
                async with asyncio.timeout(self._timeout):
                    last = await self._reply(request, writer)
                self._put_last(task, answers=False)
                wait = min(KEEP_ALIVE, self._timeout)
            writer.close()
            async with asyncio.timeout(self._timeout):  # whoever does not read the rest of an answer is not waited for
                await writer.wait_closed()
        except asyncio.LimitOverrunError:
            refusal = _refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            writer.writelines((refusal.head(last=True), *refusal.body))
        except (OSError, EOFError, TimeoutError, asyncio.CancelledError):
            # Silent ones must not use up the connections that the kubelet needs.
            writer.transport.abort()
        finally:
            self._connections.pop(task, None)
            writer.close()

    def _put_last(self, task: asyncio.Task[None], answers: bool) -> None:
        if self._connections.pop(task, None) is not None:
            self._connections[task] = answers

    def _end_one_too_many(self) -> None:
        """Of the connections that wait for a request the oldest, or the oldest of all where each one is answered."""
        if len(self._connections) > CONNECTIONS:
            waiting = (task for task, answers in self._connections.items() if not answers)
            oldest = next(waiting)
            if oldest is asyncio.current_task():
                oldest = next(iter(self._connections))
            del self._connections[oldest]
            oldest.cancel()

    async def _reply(self, request: bytes, writer: asyncio.StreamWriter) -> bool:
        """Answer a request; returns whether it is the last one of its connection."""
        line = REQUEST.match(request)
        answer = await self._answer(line)
        last = line is None or line[3] == b"0" or LAST.search(request) is not None or self._ending.is_set()
        writer.write(answer.head(last))
        for piece in answer.body if line is None or line[1] != b"HEAD" else ():
            writer.write(piece)
            await writer.drain()
        return last

    async def _answer(self, line: re.Match[bytes] | None) -> HttpAnswer:
        if line is None:
            return _refusal(HTTPStatus.BAD_REQUEST)
        if (page := self._pages.get(line[2])) is None:
            return _refusal(HTTPStatus.NOT_FOUND)
        if line[1] not in (b"GET", b"HEAD"):
            return _refusal(HTTPStatus.METHOD_NOT_ALLOWED)
        try:
            return await page()
        except Exception as error:  # only the log gets the details
            log.error("http.failed", path=line[2].decode(), error=type(error).__name__, exc_info=error)
            return HttpAnswer(HTTPStatus.INTERNAL_SERVER_ERROR, [b"internal error; see the log\n"])

    async def _healthz(self) -> HttpAnswer:
        stuck = self._clock.now().mono - self._pulse
        if stuck >= self._stuck_after:
            return HttpAnswer(503, [f"the event loop has been stuck for {stuck:.0f} s\n".encode()])
        return HttpAnswer(200, [b"ok\n"])

    async def _readyz(self) -> HttpAnswer:
        readiness = self._readiness()
        return HttpAnswer(200 if readiness.ready else 503, [json.encode(readiness)], JSON)

    async def _metrics(self) -> HttpAnswer:
        # One page at a time, in another thread, for all that ask meanwhile: no scraper delays /healthz, and a page that
        # takes longer than anybody waits leaves no second thread.
        if self._page is None or self._page.done():
            self._page = _in_a_thread(self._metrics_page)
        return HttpAnswer(200, await asyncio.shield(self._page), METRICS_TYPE)


def _in_a_thread(work: Callable[[], Sequence[bytes]]) -> asyncio.Future[Sequence[bytes]]:
    """Its result, from a thread of its own that the process does not wait for at its end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Sequence[bytes]] = loop.create_future()

    def run() -> None:
        try:
            result, error = work(), None
        except Exception as failure:
            result, error = (), failure
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(_set, done, result, error)

    threading.Thread(target=run, name="metrics page", daemon=True).start()
    return done


def _set(done: asyncio.Future[Sequence[bytes]], result: Sequence[bytes], error: Exception | None) -> None:
    if done.done():
        return  # whoever waited was cancelled
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(result)


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
