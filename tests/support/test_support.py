"""The test equipment works: an injected fault really happens."""

import asyncio
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import nats
import pytest
from nats.aio.client import Client

from tests.support import servers
from tests.support.order import spread
from tests.support.proxy import Proxy
from tests.support.servers import NatsServer
from tests.support.serving import serving


async def ask(client: Client, timeout: float = 5) -> None:
    """One question and its answer. Not `rtt`: in nats-py 2.16 a PONG after its timeout kills the read loop."""
    await client.request("$JS.API.INFO", timeout=timeout)


async def test_a_fresh_server_has_jetstream_and_no_streams(server: NatsServer, nc: Client) -> None:
    assert server.info["jetstream"] is True
    assert await nc.jetstream().streams_info() == []
    assert server.version >= (2, 9, 10)


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
async def test_a_restarted_server_has_the_same_port_and_store(server: NatsServer, nc: Client, kill: bool) -> None:
    await nc.jetstream().add_stream(name="S", subjects=["s"])
    await nc.jetstream().publish("s", b"kept")
    url = server.url
    await server.restart(kill=kill)
    assert server.url == url
    async with await nats.connect(server.url) as again:
        assert (await again.jetstream().stream_info("S")).state.messages == 1


async def test_a_paused_server_answers_nothing_until_it_is_resumed(server: NatsServer, nc: Client) -> None:
    server.pause()
    with pytest.raises(TimeoutError):
        await ask(nc, 0.3)
    server.resume()
    await ask(nc)


async def test_a_server_is_gone_after_its_block_even_when_paused(tmp_path: Path) -> None:
    async with NatsServer(tmp_path) as server:
        pid = server.pid
        server.pause()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_an_application_that_cannot_be_served_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wsproto", None)  # as where it is not installed
    monkeypatch.delitem(sys.modules, "uvicorn.protocols.websockets.wsproto_impl", raising=False)
    with pytest.raises(ModuleNotFoundError, match="wsproto"):
        async with asyncio.timeout(30), serving(lambda: None):
            pytest.fail("nothing serves")


async def test_a_server_that_cannot_start_reports_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no_such_setting"):
        await NatsServer(tmp_path, config="no_such_setting: 1").start()


async def test_users_can_be_changed_while_it_runs(server: NatsServer) -> None:
    server.reload('authorization { user: "u", password: "p" }')
    async with asyncio.timeout(5):
        while "Reloaded: authorization" not in server.log:
            await asyncio.sleep(0.01)
    async with await nats.connect(server.url, user="u", password="p") as client:
        await client.flush()


async def test_a_proxy_forwards_holds_back_delays_and_cuts(server: NatsServer) -> None:
    async with Proxy(server.port or 0) as proxy:
        async with await nats.connect(proxy.url, reconnect_time_wait=0.01, max_reconnect_attempts=-1) as client:
            await ask(client)
            proxy.black_hole()
            with pytest.raises(TimeoutError):
                await ask(client, 0.3)
            proxy.forward()
            await ask(client)

            proxy.delay = 0.05
            started = time.monotonic()
            await ask(client)
            assert time.monotonic() - started >= 0.1  # once each way
            proxy.delay = 0.0

            proxy.cut()
            async with asyncio.timeout(5):
                while proxy.connections < 2 or not client.is_connected:
                    await asyncio.sleep(0.01)
            await ask(client)


async def test_a_refusing_proxy_accepts_no_connection_until_it_forwards(server: NatsServer) -> None:
    async with Proxy(server.port or 0) as proxy:
        proxy.refuse()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        proxy.forward()
        async with await nats.connect(proxy.url) as client:
            await ask(client)


def test_no_two_processes_use_the_same_ports() -> None:
    others = servers.own_ports()  # what another process would get while this one runs
    assert not {servers.free_port() for _ in range(servers.EACH)} & set(others)


class Item(NamedTuple):
    nodeid: str


def test_tests_that_take_seconds_are_spread_evenly_over_the_run() -> None:
    long, short = ([Item(f"{folder}test_{n}") for n in range(count)] for folder, count in (("long/", 2), ("short/", 7)))
    items = [*short[:3], *long, *short[3:]]
    spread(items, "long/")  # type: ignore[arg-type]
    assert [n for n, item in enumerate(items) if item in long] == [1, 5]
    assert [item for item in items if item in short] == short
    spread(short, "long/")  # type: ignore[arg-type]
    assert short == sorted(short), "those of one folder alone stay as they are"
