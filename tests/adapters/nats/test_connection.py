"""A connection that is replaced, never mended: every fault ends in a new client with everything set up anew."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import nats
import nats.errors
import nkeys
import pytest
from nats.aio.client import Client as PlainClient
from nats.aio.msg import Msg
from structlog.testing import capture_logs

from nats_backpressure.adapters.nats.connection import Connection
from nats_backpressure.adapters.nats.credentials import BadCredentials, credentials
from nats_backpressure.adapters.nats.patched_client import PatchedClient
from nats_backpressure.config.nats import Nats, Secret
from nats_backpressure.runtime.clock import SystemClock
from nats_backpressure.runtime.ports import Unavailable
from nats_backpressure.runtime.tasks import cancel_and_wait
from tests.conftest import StartServer
from tests.support.background import meanwhile
from tests.support.proxy import Proxy
from tests.support.servers import NatsServer
from tests.support.sidecar import eventually

SECRETS = ("password", "token", "nkey_seed")


class Listener:
    """What an edge does on a connection: subscribe again on each client, and keep what it hears."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.counted: Counter[str] = Counter()
        self.rebuilds = 0

    async def set_up(self, client: PatchedClient) -> None:
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
    options: Nats, may_publish: Callable[[str], bool] | None = None, probe_every: float = 0.1, **more: Any
) -> AsyncIterator[tuple[Connection, Listener]]:
    listener = Listener()
    connection = Connection(
        "test",
        options,
        SystemClock(),
        set_up=listener.set_up,
        count=listener.count,
        on_rebuild=listener.rebuilt,
        may_publish=may_publish,
        probe_every=probe_every,
        probe_timeout=0.2,
        **more,
    )
    async with meanwhile(connection.run()):
        yield connection, listener


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


def options(server: NatsServer, **login: str) -> Nats:
    return Nats((server.url,), **{name: Secret(value) if name in SECRETS else value for name, value in login.items()})


async def test_a_killed_server_that_comes_back_is_listened_to_again(server: NatsServer, nc: PlainClient) -> None:
    async with connected(options(server)) as (connection, listener):
        await up(connection)
        await server.restart(kill=True)
        await up(connection, 2)
        await hears(listener, lambda: nc.publish("news", b"again"), b"again")
        assert listener.rebuilds >= 1


async def test_a_black_hole_is_noticed_by_the_round_trip(server: NatsServer) -> None:
    async with Proxy(server.port) as proxy, connected(Nats((proxy.url,))) as (connection, _):
        await up(connection)
        proxy.black_hole()

        async def noticed() -> bool:
            return not connection.connected

        await eventually(noticed, "the silence to be noticed")
        proxy.forward()
        await up(connection, 2)


async def test_one_late_answer_costs_no_connection(server: NatsServer, nc: PlainClient) -> None:
    async with Proxy(server.port) as proxy, connected(Nats((proxy.url,)), probe_every=60) as (connection, listener):
        await up(connection)
        proxy.delay = 0.15  # each way: a round trip takes longer than the 0.2 s it is given
        assert not await connection._answers(connection.client)
        proxy.delay = 0.0
        await hears(listener, lambda: nc.publish("news", b"still here"), b"still here")
        assert await connection._answers(connection.client)
        assert connection.epoch == 1


async def test_a_late_answer_that_nobody_waits_for_does_not_end_the_reader(server: NatsServer, nc: PlainClient) -> None:
    async with Proxy(server.port) as proxy, connected(Nats((proxy.url,)), probe_every=60) as (connection, listener):
        await up(connection)
        proxy.delay = 0.15
        with pytest.raises(nats.errors.FlushTimeoutError):
            await connection.client.flush(timeout=0.1)  # type: ignore[arg-type]  # it takes any number

        async def arrived() -> bool:
            return not connection.client._pongs

        await eventually(arrived, "the late answer")
        proxy.delay = 0.0
        await hears(listener, lambda: nc.publish("news", b"still here"), b"still here")
        assert connection.epoch == 1


async def test_a_dead_read_loop_is_noticed_though_it_looks_connected(server: NatsServer, nc: PlainClient) -> None:
    async with connected(options(server)) as (connection, listener):
        await up(connection)
        reader = connection.client._reading_task
        assert reader is not None
        reader.cancel()
        await up(connection, 2)
        await hears(listener, lambda: nc.publish("news", b"again"), b"again")


async def test_a_busy_moment_of_our_own_costs_no_connection(server: NatsServer) -> None:
    async with connected(options(server)) as (connection, _):
        await up(connection)
        for _ in range(3):
            time.sleep(0.5)  # noqa: ASYNC251  # the loop is blocked for longer than a round trip may take
            assert await connection._answers(connection.client)
        assert connection.epoch == 1


async def test_a_lame_duck_is_left_at_once(server: NatsServer) -> None:
    async with connected(options(server), probe_every=60) as (connection, _):
        await up(connection)
        server.lame_duck()

        async def left() -> bool:
            return not connection.connected

        await eventually(left, "the server that is going to be left", 5)  # it would keep us for 10 s


async def test_who_hangs_up_at_once_is_not_called_without_a_pause() -> None:
    calls: list[float] = []

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls.append(time.monotonic())
        writer.write(b'INFO {"server_id":"x","version":"2.10.0","max_payload":1048576,"headers":true}\r\n')
        while (line := await reader.readline()) and not line.startswith(b"SUB"):
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
        writer.write(b"PONG\r\n")  # to the flush after the subscription: everything is set up
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as door:
        port = door.sockets[0].getsockname()[1]
        async with connected(Nats((f"nats://127.0.0.1:{port}",)), probe_every=60):

            async def called() -> bool:
                return len(calls) >= 5

            await eventually(called, "five calls")
    assert calls[4] - calls[0] >= 0.2 * (0.1 + 0.2 + 0.4 + 0.8)


async def test_a_right_that_was_taken_and_given_back_is_used_again(start_server: StartServer) -> None:
    def config(deny: str) -> str:
        rights = f'permissions: {{publish: ">", subscribe: {{allow: ">"{deny}}}}}'
        return f'authorization {{users: [{{user: "us", password: "p", {rights}}}, {{user: "it", password: "p"}}]}}'

    server = await start_server(config=config(""))
    it = await nats.connect(server.url, user="it", password="p")
    async with connected(options(server, user="us", password="p"), denied_again=0.3) as (connection, listener):
        await up(connection)
        server.reload(config(', deny: "news"'))

        async def denied() -> bool:
            return listener.counted["permission_denied"] >= 1

        await eventually(denied, "the subscription to be taken")
        server.reload(config(""))
        await hears(listener, lambda: it.publish("news", b"again"), b"again")
        assert connection.epoch >= 2
    await it.close()


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
        with capture_logs() as lines:
            await raw(
                server,
                b"PUB x.\xff\xfe 2\r\nhi\r\n",
                b"HPUB x.y 20 22\r\nNATS/1.0 \xff\xff\xff\r\n\r\nxxxxhi\r\n",
                b"HPUB x.y 8 10\r\nNATS/1.0hi\r\n",
            )
            await hears(listener, lambda: nc.publish("news", b"still here"), b"still here")
        assert connection.epoch == 1
        assert listener.counted["undecodable_message"] == 3
        said = [line for line in lines if line["event"] == "nats.error" and line["log_level"] == "warning"]
        assert len(said) == 1, "each kind once a minute, however many come"


async def test_a_counter_that_fails_does_not_end_the_reader(server: NatsServer, nc: PlainClient) -> None:
    async with connected(options(server)) as (connection, listener):
        await up(connection)
        connection._count = lambda what: exec("raise RuntimeError(what)")
        await connection.client.subscribe("x.>")
        await connection.client.request("$JS.API.INFO")
        await raw(server, b"PUB x.\xff\xfe 2\r\nhi\r\n")
        await connection.client.on_error(nats.errors.Error("anything"))
        await hears(listener, lambda: nc.publish("news", b"still here"), b"still here")
        assert connection.epoch == 1


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
        assert not connection.client._resp_map, "what was refused left nothing behind"
        with pytest.raises(Unavailable):
            await connection.request("x", b"", 1, {"no name": "x"})
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


WITH_SEED = "-----BEGIN NATS USER JWT-----\nHIDDEN.b.c\n------END------\n-----BEGIN USER NKEY SEED-----"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(None, "No such file", id="missing"),
        pytest.param("", "the file is empty", id="empty"),
        pytest.param("-----BEGIN NATS USER JWT-----\nabc", "no user JWT with its seed", id="truncated"),
        pytest.param("-----BEGIN NATS USER JWT-----", "no user JWT with its seed", id="truncated at once"),
        pytest.param(f"{WITH_SEED}\n", "no user JWT with its seed", id="truncated before the seed"),
        pytest.param(f"{WITH_SEED}\nSUAHIDDEN", "its nkey seed is damaged", id="truncated in the seed"),
    ],
)
def test_a_credentials_file_that_cannot_be_used_is_named(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "user.creds"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadCredentials, match=says) as error:
        credentials(Nats(("nats://x",), credentials_file=str(path)))
    assert str(path) in str(error.value)
    assert "HIDDEN" not in str(error.value)


def test_a_credentials_file_without_a_last_line_end_is_taken_whole(tmp_path: Path) -> None:
    path = tmp_path / "user.creds"
    seed = nkeys.encode_seed(bytes(32), nkeys.PREFIX_BYTE_USER).decode()
    path.write_text(f"{WITH_SEED}\n{seed}")
    given = credentials(Nats(("nats://x",), credentials_file=str(path)))["user_credentials"]
    assert PlainClient()._read_creds_user_nkey(given) == bytearray(seed.encode())


def test_a_seed_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = tmp_path / "user.nk"
    path.write_text("SUAHIDDEN\n")
    with pytest.raises(BadCredentials, match=r"user\.nk: its nkey seed is damaged"):
        credentials(Nats(("nats://x",), nkey_seed_file=str(path)))
    with pytest.raises(BadCredentials, match=r"^nkey_seed: its nkey seed is damaged"):
        credentials(Nats(("nats://x",), nkey_seed=Secret("SUAHIDDEN")))


async def test_an_empty_credentials_file_is_said_once_and_freezes_nothing(server: NatsServer, tmp_path: Path) -> None:
    path = tmp_path / "user.creds"
    path.write_text("")
    with capture_logs() as lines:
        async with connected(options(server, credentials_file=str(path))) as (connection, _):

            async def said() -> bool:
                return bool(lines)

            await eventually(said, "a word about it")
            path.unlink()
            with pytest.raises(Unavailable):
                await connection.request("x", b"", 1)
            await asyncio.sleep(0.5)  # some more tries
    assert [line["event"] for line in lines] == ["nats.unreachable"]
    assert lines[0]["error"] == f"{path}: the file is empty"


async def test_a_cancellation_that_comes_with_the_answer_is_not_lost(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answered(*_: object, **__: object) -> Msg:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return Msg(_client=PlainClient())

    async with connected(Nats((server.url,))) as (connection, _):
        await up(connection)
        monkeypatch.setattr(connection.client, "request", answered)
        asking = asyncio.create_task(connection.request("news", b"", 60))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking


async def test_without_a_server_a_request_fails_at_once() -> None:
    async with connected(Nats(("nats://127.0.0.1:1",))) as (connection, _):
        with pytest.raises(Unavailable, match="not connected"):
            await connection.request("x", b"", 5)


def test_secrets_do_not_show() -> None:
    shown = repr(
        Nats(
            ("nats://user:hidden@host:4222",),
            password=Secret("hidden"),
            token=Secret("hidden"),
            nkey_seed=Secret("hidden"),
        )
    )
    assert "hidden" not in shown
    assert "host:4222" in shown


@pytest.mark.parametrize(
    ("server", "shown"),
    [
        pytest.param("nats://host:4222", "nats://host:4222", id="nothing to hide"),
        pytest.param("nats://user:secret@host:4222", "nats://host:4222", id="user and password"),
        pytest.param("tls://token@host", "tls://host", id="token"),
        pytest.param("user:secret@host:4222", "host:4222", id="no scheme"),
        pytest.param("nats://user:se@cr/et@host", "nats://host", id="signs in the password"),
        pytest.param("user:s://ecret@host", "host", id="no scheme, one in the password"),
        pytest.param("nats://user:s://ecret@host", "nats://host", id="a scheme in the password"),
    ],
)
def test_a_server_is_shown_without_what_opens_it(server: str, shown: str) -> None:
    assert Nats((server,)).shown_servers == (shown,)


async def test_no_task_is_left_behind(server: NatsServer) -> None:
    before = asyncio.all_tasks()
    async with connected(options(server)) as (connection, _):
        await up(connection)

    async def gone() -> bool:
        return asyncio.all_tasks() <= before

    await eventually(gone, "every task to end")


async def test_a_cancel_while_setting_up_leaves_nothing_behind(server: NatsServer) -> None:
    before = asyncio.all_tasks()
    reached = asyncio.Event()

    async def set_up(client: PatchedClient) -> None:
        await Listener().set_up(client)
        reached.set()
        await asyncio.Event().wait()

    connection = Connection(
        "test", options(server), SystemClock(), set_up=set_up, count=lambda what: None, on_rebuild=lambda: None
    )
    task = asyncio.create_task(connection.run())
    await asyncio.wait_for(reached.wait(), 10)
    client = connection.client
    await cancel_and_wait([task])

    async def gone() -> bool:
        return asyncio.all_tasks() <= before

    await eventually(gone, "every task to end")
    assert client.is_closed


async def test_a_client_stuck_in_its_writes_is_let_go_of(server: NatsServer) -> None:
    async with Proxy(server.port) as proxy, connected(Nats((proxy.url,))) as (connection, _):
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
