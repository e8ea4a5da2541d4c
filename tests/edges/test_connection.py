"""A connection that is replaced, never mended: every fault ends in a new client with everything set up anew."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client as PlainClient
from nats.aio.msg import Msg

from sidecar.edges.connection import BadCredentials, Client, Connection, Options, credentials
from sidecar.ports import Unavailable
from tests.conftest import StartServer
from tests.support.proxy import Proxy
from tests.support.servers import NatsServer
from tests.support.sidecar import eventually


class Listener:
    """What an edge does on a connection: subscribe again on each client, and keep what it hears."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.counted: Counter[str] = Counter()
        self.rebuilds = 0

    async def set_up(self, client: Client) -> None:
        async def hear(message: Msg) -> None:
            self.heard.append(message.data)

        await client.subscribe("news", cb=hear)
        await client.flush()

    def count(self, what: str) -> None:
        self.counted[what] += 1

    def rebuilt(self) -> None:
        self.rebuilds += 1


@asynccontextmanager
async def connected(
    options: Options, may_publish: Callable[[str], bool] | None = None, probe_every: float = 0.1
) -> AsyncIterator[tuple[Connection, Listener]]:
    listener = Listener()
    connection = Connection(
        "test",
        options,
        set_up=listener.set_up,
        count=listener.count,
        on_rebuild=listener.rebuilt,
        may_publish=may_publish,
        probe_every=probe_every,
        probe_timeout=0.2,
    )
    task = asyncio.create_task(connection.run())
    try:
        yield connection, listener
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def up(connection: Connection, epoch: int = 1) -> None:
    async def is_up() -> bool:
        return connection.connected and connection.epoch >= epoch

    await eventually(is_up, f"epoch {epoch} to be connected")


async def hears(listener: Listener, say: Callable[[], Any], what: bytes) -> None:
    async def heard() -> bool:
        with suppress(Exception):
            await say()
        return what in listener.heard

    await eventually(heard, f"{what!r} to be heard")


def options(server: NatsServer, **more: Any) -> Options:
    return Options(servers=(server.url,), **more)


async def test_a_killed_server_that_comes_back_is_listened_to_again(server: NatsServer, nc: PlainClient) -> None:
    async with connected(options(server)) as (connection, listener):
        await up(connection)
        await server.restart(kill=True)
        await up(connection, 2)
        await hears(listener, lambda: nc.publish("news", b"again"), b"again")
        assert listener.rebuilds >= 1


async def test_a_black_hole_is_noticed_by_the_round_trip(server: NatsServer) -> None:
    async with Proxy(server.port) as proxy, connected(Options((proxy.url,))) as (connection, _):
        await up(connection)
        proxy.black_hole()

        async def noticed() -> bool:
            return not connection.connected

        await eventually(noticed, "the silence to be noticed")
        proxy.forward()
        await up(connection, 2)


async def test_one_late_answer_costs_no_connection(server: NatsServer, nc: PlainClient) -> None:
    async with Proxy(server.port) as proxy, connected(Options((proxy.url,)), probe_every=60) as (connection, listener):
        await up(connection)
        proxy.delay = 0.15  # each way: a round trip takes longer than the 0.2 s it is given
        assert not await connection._answers(connection.client)
        proxy.delay = 0.0
        await hears(listener, lambda: nc.publish("news", b"still here"), b"still here")
        assert await connection._answers(connection.client)
        assert connection.epoch == 1


async def test_a_frozen_server_is_unavailable_within_the_time_given(server: NatsServer) -> None:
    async with connected(options(server)) as (connection, _):
        await up(connection)
        server.pause()
        try:
            began = time.monotonic()
            with pytest.raises(Unavailable):
                await connection.request("$JS.API.INFO", b"", 0.3)
            assert time.monotonic() - began < 5
        finally:
            server.resume()


async def test_bytes_that_are_no_text_do_not_end_the_reader(server: NatsServer, nc: PlainClient) -> None:
    async with connected(options(server)) as (connection, listener):
        await up(connection)
        await connection.client.subscribe("x.>")
        await connection.client.request("$JS.API.INFO")
        await raw(server, b"PUB x.\xff\xfe 2\r\nhi\r\n", b"HPUB x.y 20 22\r\nNATS/1.0 \xff\xff\xff\r\n\r\nxxxxhi\r\n")
        await hears(listener, lambda: nc.publish("news", b"still here"), b"still here")
        assert connection.epoch == 1
        assert listener.counted["undecodable_message"] >= 1


async def raw(server: NatsServer, *lines: bytes) -> None:
    """Say something to the server that no client library would."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    await reader.readline()
    writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n' + b"".join(lines) + b"PING\r\n")
    await writer.drain()
    while (line := await reader.readline()) and b"PONG" not in line:
        pass
    writer.close()


async def test_what_is_too_large_is_refused_before_it_costs_the_connection(start_server: StartServer) -> None:
    server = await start_server(config="max_payload: 1024")
    async with connected(options(server)) as (connection, _):
        await up(connection)
        with pytest.raises(Unavailable, match="max_payload"):
            await connection.request("somewhere", b"x" * 1000, 1, {"h": "x" * 100})
        with pytest.raises(Unavailable, match="too long"):
            await connection.request("s" * 5000, b"", 1)
        assert connection.epoch == 1
        assert connection.connected


async def test_the_answering_client_publishes_only_where_it_may(server: NatsServer, nc: PlainClient) -> None:
    async with connected(options(server), may_publish=lambda subject: subject == "inbox") as (connection, listener):
        await up(connection)
        forbidden = await nc.subscribe("forbidden")
        inbox = await nc.subscribe("inbox")
        await nc.request("$JS.API.INFO")  # proof that the server knows them; a flush is none
        await connection.client.publish("forbidden", b"x")
        await connection.client.publish("inbox", b"y")
        assert (await inbox.next_msg()).data == b"y"
        assert forbidden.pending_msgs == 0
        assert listener.counted["reply_subject"] == 1


async def test_a_rotated_password_is_read_from_its_file(start_server: StartServer, tmp_path: Path) -> None:
    def config(password: str) -> str:
        return f'authorization {{ user: "u", password: "{password}" }}'

    server = await start_server(config=config("old-password"))
    secret = tmp_path / "password"
    secret.write_text("old-password\n")
    async with connected(options(server, user="u", password_file=str(secret))) as (connection, _):
        await up(connection)
        secret.write_text("new-password\n")
        server.reload(config("new-password"))
        await up(connection, 2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(None, "No such file", id="missing"),
        pytest.param("", "it is empty", id="empty"),
        pytest.param("-----BEGIN NATS USER JWT-----\nabc", "no user JWT with its seed", id="truncated"),
    ],
)
def test_a_credentials_file_that_cannot_be_used_is_named(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "user.creds"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadCredentials, match=says) as error:
        credentials(Options(("nats://x",), credentials_file=str(path)))
    assert str(path) in str(error.value)


async def test_without_a_server_a_request_fails_at_once() -> None:
    async with connected(Options(("nats://127.0.0.1:1",))) as (connection, _):
        with pytest.raises(Unavailable, match="not connected"):
            await connection.request("x", b"", 5)


def test_secrets_do_not_show() -> None:
    shown = repr(Options(("nats://user:hidden@host:4222",), password="hidden", token="hidden", nkey_seed="hidden"))
    assert "hidden" not in shown
    assert "host:4222" in shown


async def test_no_task_is_left_behind(server: NatsServer) -> None:
    before = asyncio.all_tasks()
    async with connected(options(server)) as (connection, _):
        await up(connection)

    async def gone() -> bool:
        return asyncio.all_tasks() <= before

    await eventually(gone, "every task to end")
