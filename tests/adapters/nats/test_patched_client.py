"""nats-py's client with our patches: no message from a peer ends it, and it sends nothing too large."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import nats
import nats.errors
import pytest
from nats.aio.client import Client as PlainClient
from structlog.testing import capture_logs

from nats_backpressure.adapters.nats.patched_client import PatchedClient
from nats_backpressure.config.nats import Nats
from nats_backpressure.runtime.ports import Unavailable
from tests.conftest import StartServer
from tests.support.connected import connected, options, receives, up
from tests.support.proxy import Proxy
from tests.support.servers import NatsServer
from tests.support.sidecar import eventually


async def test_a_late_pong_does_not_end_the_read_loop(server: NatsServer, nc: PlainClient) -> None:
    async with Proxy(server.port) as proxy, connected(Nats((proxy.url,)), probe_every=60) as (connection, listener):
        await up(connection)
        proxy.delay = 0.15
        with pytest.raises(nats.errors.FlushTimeoutError):
            await connection.client.flush(timeout=0.1)  # type: ignore[arg-type]  # it takes any number

        async def arrived() -> bool:
            return not connection.client._pongs

        await eventually(arrived, "the late answer")
        proxy.delay = 0.0
        await receives(listener, lambda: nc.publish("news", b"still here"), b"still here")
        assert connection.epoch == 1


async def test_bytes_that_are_not_text_do_not_end_the_read_loop(server: NatsServer, nc: PlainClient) -> None:
    async with connected(options(server)) as (connection, listener):
        await up(connection)
        await connection.client.subscribe("x.>")
        await connection.client.request("$JS.API.INFO", timeout=10)
        with capture_logs() as lines:
            await server.send_raw(
                b"PUB x.\xff\xfe 2\r\nhi\r\n",
                b"HPUB x.y 20 22\r\nNATS/1.0 \xff\xff\xff\r\n\r\nxxxxhi\r\n",
                b"HPUB x.y 8 10\r\nNATS/1.0hi\r\n",
            )
            await receives(listener, lambda: nc.publish("news", b"still here"), b"still here")
        assert connection.epoch == 1
        assert listener.counted["undecodable_message"] == 3
        warnings = [line for line in lines if line["event"] == "nats.error" and line["log_level"] == "warning"]
        assert len(warnings) == 1, "each kind once a minute, however many come"


async def test_a_counter_that_fails_does_not_end_the_read_loop(server: NatsServer, nc: PlainClient) -> None:
    async with connected(options(server)) as (connection, listener):
        await up(connection)
        connection._count = lambda what: exec("raise RuntimeError(what)")
        await connection.client.subscribe("x.>")
        await connection.client.request("$JS.API.INFO", timeout=10)
        await server.send_raw(b"PUB x.\xff\xfe 2\r\nhi\r\n")
        await connection.client.on_error(nats.errors.Error("anything"))
        await receives(listener, lambda: nc.publish("news", b"still here"), b"still here")
        assert connection.epoch == 1


async def test_a_message_that_is_too_large_is_refused_before_the_server_closes_the_connection(
    start_server: StartServer,
) -> None:
    server = await start_server(config="max_payload: 1024")
    async with connected(options(server)) as (connection, _):
        await up(connection)
        with pytest.raises(Unavailable, match="max_payload"):
            await connection.request("somewhere", b"x" * 1000, 1, {"h": "x" * 100})
        with pytest.raises(Unavailable, match="max_payload"):
            await connection.request("somewhere", b"x" * 500, 1, {"h": "\N{SNOWMAN}" * 200})
        with pytest.raises(Unavailable, match="too long"):
            await connection.request("s" * 5000, b"", 1)
        with pytest.raises(Unavailable, match="UTF-8"):
            await connection.request("no\udc80text", b"", 1)
        with pytest.raises(Unavailable, match="max_payload"):  # whatever publishes, a service's answers too
            await connection.client.publish("somewhere", b"x" * 1000, headers={"h": "x" * 100})
        with pytest.raises(Unavailable, match="too long"):
            await connection.client.publish("somewhere", reply="s" * 4090)
        await connection.client.publish("somewhere", b"x" * 1024)
        assert await connection._answers(connection.client)
        assert not connection.client.requests.waiting, "what was refused left nothing behind"
        with pytest.raises(Unavailable):
            await connection.request("x", b"", 1, {"no name": "x"})
        assert connection.epoch == 1
        assert connection.connected


async def test_the_answering_client_publishes_only_where_it_may(server: NatsServer, nc: PlainClient) -> None:
    async with connected(options(server), may_publish=lambda subject: subject == "inbox") as (connection, listener):
        await up(connection)
        forbidden = await nc.subscribe("forbidden")
        inbox = await nc.subscribe("inbox")
        await nc.request("$JS.API.INFO", timeout=10)  # proof that the server knows them; a flush is none
        await connection.client.publish("forbidden", b"x")
        await connection.client.publish("inbox", b"y")
        assert (await inbox.next_msg()).data == b"y"
        assert forbidden.pending_msgs == 0
        assert listener.counted["reply_subject"] == 1


async def test_a_client_stuck_in_its_writes_is_closed(server: NatsServer) -> None:
    async with Proxy(server.port) as proxy, connected(Nats((proxy.url,)), probe_timeout=0.2) as (connection, _):
        await up(connection)
        client = connection.client
        subscriptions = [subscription._wait_for_msgs_task for subscription in client._subs.values()]
        proxy.black_hole()
        fill = asyncio.create_task(flood(client))

        async def let_go() -> bool:
            socket = client._transport._io_writer.transport.get_extra_info("socket")  # type: ignore[union-attr]
            return (socket is None or socket.fileno() == -1) and all(task and task.done() for task in subscriptions)

        await eventually(let_go, "the socket and the tasks to be let go of")
        proxy.forward()
        await up(connection, 2)
        await asyncio.wait({fill}, timeout=10)


async def flood(client: PatchedClient) -> None:
    """More than the kernel takes, so that something stays unsent."""
    with suppress(Exception):
        while True:
            await client.publish("flood", b"x" * 500_000)
