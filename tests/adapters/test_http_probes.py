"""What Kubernetes and Prometheus get over HTTP, also while the event loop is stuck."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from email.utils import parsedate_to_datetime

import httpx
import pytest
from structlog.testing import capture_logs

from nats_backpressure.adapters import http_probes
from nats_backpressure.adapters.http_probes import STUCK_AFTER, HttpProbes, PortTaken
from nats_backpressure.runtime.readiness import Readiness
from tests.fakes.clock import FakeClock

READY = Readiness(
    ready=True, nats="connected", observing=True, streams=4, reads=4, last_sweep_age_ms=80, version="1.2.3"
)


class World:
    """A probe server with its readiness and metrics page."""

    def __init__(self, timeout: float) -> None:
        """`timeout`: seconds after which a connection without progress is ended."""
        self.truth, self.clock = READY, FakeClock()
        self.pieces = [b"asked_total 2.0\n", b"", b"gr\xc3\xb6\xc3\x9fe 1.0\n"]
        self.before_scrape: Callable[[], object] = lambda: None
        self.page = HttpProbes("127.0.0.1", 0, lambda: self.truth, self.scraped, self.clock, timeout=timeout)

    def scraped(self) -> list[bytes]:
        self.before_scrape()
        return self.pieces

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.page.port}"


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    world = World(getattr(request, "param", 2.0))
    world.page.start()
    yield world
    world.page.stop(3.0)


@pytest.fixture
async def http(world: World) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=world.url, timeout=5) as client:
        yield client


async def test_it_is_healthy_while_the_event_loop_runs(world: World, http: httpx.AsyncClient) -> None:
    for _ in range(5):
        world.clock.advance(0.9 * STUCK_AFTER)
        world.page.pulse()
        reply = await http.get("/healthz")
        assert (reply.status_code, reply.text) == (200, "ok\n")


def test_a_stuck_event_loop_is_unhealthy_until_it_runs_again(world: World) -> None:
    """There is no event loop here: nothing calls `pulse`."""
    world.clock.advance(STUCK_AFTER)
    reply = httpx.get(f"{world.url}/healthz")
    assert reply.status_code == 503 and "stuck" in reply.text
    assert httpx.get(f"{world.url}/readyz").status_code == 200
    world.page._stuck_after = 60.0
    world.page.pulse()
    assert httpx.get(f"{world.url}/healthz").status_code == 200


async def test_readiness_has_every_field(world: World, http: httpx.AsyncClient) -> None:
    reply = await http.get("/readyz")
    assert reply.status_code == 200 and reply.headers["content-type"] == "application/json"
    assert reply.json() == {
        "ready": True, "nats": "connected", "observing": True, "streams": 4, "reads": 4, "last_sweep_age_ms": 80,
        "version": "1.2.3",
    }  # fmt: skip
    world.truth = Readiness(False, "connecting", False, 0, 0, None, "1.2.3")
    reply = await http.get("/readyz")
    assert reply.status_code == 503 and reply.json()["last_sweep_age_ms"] is None


async def test_metrics_are_text_for_prometheus(world: World, http: httpx.AsyncClient) -> None:
    reply = await http.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert reply.text == "asked_total 2.0\ngröße 1.0\n" and int(reply.headers["content-length"]) == len(reply.content)


@pytest.mark.parametrize("path", ["/healthz", "/nowhere"])
async def test_each_answer_has_the_present_date(http: httpx.AsyncClient, path: str) -> None:
    before = int(time.time())
    reply = await http.get(path)
    assert before <= parsedate_to_datetime(reply.headers["date"]).timestamp() <= time.time()


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_head_works_and_other_methods_do_not(http: httpx.AsyncClient, path: str) -> None:
    reply = await http.head(path)
    assert reply.status_code == 200 and reply.content == b""
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert (await http.request(method, path, content=b"x")).status_code == 405


@pytest.mark.parametrize("path", ["/", "/health", "/healthz/", "/metrics/x", "/../etc/passwd", "/%00"])
async def test_anything_else_is_not_found(http: httpx.AsyncClient, path: str) -> None:
    assert (await http.get(path)).status_code in (404, 307)
    assert (await http.get(path, follow_redirects=True)).status_code in (404, 200)


async def test_an_exception_is_a_500_without_details(world: World, http: httpx.AsyncClient) -> None:
    def broken() -> Readiness:
        raise RuntimeError("s3cret")

    world.page._readiness = broken
    world.before_scrape = broken
    with capture_logs() as logs:
        for path in ("/readyz", "/metrics"):
            reply = await http.get(path)
            assert (reply.status_code, reply.text) == (500, "internal error; see the log\n")
    assert [(line["event"], line["path"]) for line in logs] == [("http.failed", "/readyz"), ("http.failed", "/metrics")]
    assert (await http.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [b"", b"\x00\xff\xfe\n\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /healthz HTTP/1.1\r\n" + b"a: b\r\n" * 20_000],
    ids=["nothing", "no HTTP", "a strange version", "headers without end"],
)
async def test_bytes_that_are_not_a_request_do_no_harm(world: World, http: httpx.AsyncClient, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", world.page.port)) as connection:
        connection.sendall(sent)
        assert (await http.get("/healthz")).status_code == 200


@pytest.mark.parametrize("world", [0.5], indirect=True)
async def test_silent_and_slow_connections_are_ended(world: World, http: httpx.AsyncClient) -> None:
    streams = [await asyncio.open_connection("127.0.0.1", world.page.port) for _ in range(20)]
    for n, (_, writer) in enumerate(streams):
        if n % 2:
            writer.write(b"GET /healthz HTTP/1.1\r\n")
    async with asyncio.timeout(5):
        for reader, writer in streams:
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
    assert (await http.get("/healthz")).status_code == 200


@pytest.mark.parametrize("world", [0.5], indirect=True)
@pytest.mark.parametrize("last", [b"connection: close\r\n", b""], ids=["its last request", "one of several"])
async def test_whoever_does_not_read_its_answer_is_not_waited_for(world: World, last: bytes) -> None:
    world.pieces = [b"x" * 50_000] * 400
    reader, writer = await asyncio.open_connection("127.0.0.1", world.page.port, limit=1000)
    writer.write(b"GET /metrics HTTP/1.1\r\n" + last + b"\r\n")
    async with asyncio.timeout(5):
        while not world.page._connections:
            await asyncio.sleep(0.01)
        while world.page._connections:
            await asyncio.sleep(0.01)
        with contextlib.suppress(ConnectionResetError):
            assert len(await reader.read()) < 400 * 50_000
    writer.close()


@pytest.mark.parametrize("world", [1.0], indirect=True)
async def test_a_connection_that_sends_requests_stays_open(world: World) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.page.port)
    deadline = time.monotonic() + 2 * 1.0  # twice the time that a connection without progress has
    while time.monotonic() < deadline:
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head or b" 503 " in head
        length = next(int(line[15:]) for line in head.lower().splitlines() if line.startswith(b"content-length:"))
        await reader.readexactly(length)
    writer.close()


HALF = b"GET /healthz HTTP/1.1\r\n"


@pytest.mark.parametrize("sent", [b"", HALF, HALF + b"\r\n"], ids=["silent", "half a request", "kept alive"])
async def test_a_probe_is_answered_whoever_holds_connections_open(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(http_probes, "CONNECTIONS", 4)
    page = HttpProbes("127.0.0.1", 0, lambda: READY, list, FakeClock())
    page.start()
    held = []
    for _ in range(12):
        held.append(await asyncio.open_connection("127.0.0.1", page.port))
        held[-1][1].write(sent)
        if sent.endswith(b"\r\n\r\n"):
            await held[-1][0].readuntil(b"ok\n")
    async with httpx.AsyncClient() as client:
        for path in ("healthz", "readyz", "metrics"):
            assert (await client.get(f"http://127.0.0.1:{page.port}/{path}")).status_code == 200
    async with asyncio.timeout(5):
        for reader, _ in held[:9]:  # the oldest; four may be open, of which one was the probe's
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
    assert not any(reader.at_eof() for reader, _ in held[9:])
    for _, writer in held:
        writer.close()
    await asyncio.to_thread(page.stop, 3.0)


async def test_a_probe_is_answered_while_scrapes_that_hang_hold_every_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_probes, "CONNECTIONS", 4)
    release = threading.Event()

    def hang() -> list[bytes]:
        release.wait(10)
        return []

    page = HttpProbes("127.0.0.1", 0, lambda: READY, hang, FakeClock())
    page.start()
    held = [await asyncio.open_connection("127.0.0.1", page.port) for _ in range(8)]
    for _, writer in held[4:]:  # the others are ended
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{page.port}/healthz")).status_code == 200
    release.set()
    for _, writer in held:
        writer.close()
    await asyncio.to_thread(page.stop, 3.0)


async def test_a_scrape_that_hangs_holds_up_neither_health_nor_the_end(world: World, http: httpx.AsyncClient) -> None:
    entered, release = threading.Event(), threading.Event()

    def hang() -> None:
        entered.set()
        release.wait(10)

    world.before_scrape = hang
    scrape = asyncio.ensure_future(http.get("/metrics"))
    await asyncio.to_thread(entered.wait, 5)
    world.page.pulse()
    assert (await http.get("/healthz")).status_code == 200
    await asyncio.to_thread(world.page.stop, 0.3)
    assert not scrape.done(), "it did not wait for the scrape"
    release.set()
    await asyncio.gather(scrape, return_exceptions=True)


async def test_scrapes_for_which_nobody_waits_leave_one_thread(world: World, http: httpx.AsyncClient) -> None:
    release = threading.Event()
    world.before_scrape = lambda: release.wait(10)
    for _ in range(3):
        with pytest.raises(httpx.TimeoutException):
            await http.get("/metrics", timeout=0.2)
    assert [thread.name for thread in threading.enumerate()].count("metrics page") == 1
    release.set()
    assert (await http.get("/metrics")).status_code == 200


def test_a_port_in_use_is_reported_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"http\.port {port}: Address already in use; give another"):
            HttpProbes("127.0.0.1", port, lambda: READY, list, FakeClock())


def test_two_that_are_made_at_once_do_not_share_a_port() -> None:
    first = HttpProbes("127.0.0.1", 0, lambda: READY, list, FakeClock())
    with pytest.raises(PortTaken):
        HttpProbes("127.0.0.1", first.port, lambda: READY, list, FakeClock())
    first.stop(1.0)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7", "a..b"])
def test_an_address_of_another_machine_is_reported(host: str) -> None:
    with pytest.raises(PortTaken, match=r"http\.host"):
        HttpProbes(host, 0, lambda: READY, list, FakeClock())


def test_after_stop_the_port_is_free_at_once() -> None:
    page = HttpProbes("127.0.0.1", 0, lambda: READY, list, FakeClock())
    page.start()
    assert httpx.get(f"http://127.0.0.1:{page.port}/healthz").status_code == 200
    page.stop(10.0)
    assert not page._thread.is_alive()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{page.port}/healthz")
    again = HttpProbes("127.0.0.1", page.port, lambda: READY, list, FakeClock())
    again.stop(1.0)
