"""A connection is replaced, never repaired: every fault leads to a new client with all subscriptions."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import nats
import nats.errors
import pytest
from nats.aio.client import Client as PlainClient
from nats.aio.msg import Msg
from structlog.testing import capture_logs

from nats_backpressure.adapters.nats import patched_client
from nats_backpressure.adapters.nats.connection import LAST_RETRY, LAST_UNREACHED, Connection
from nats_backpressure.adapters.nats.credentials import credentials
from nats_backpressure.adapters.nats.patched_client import PatchedClient
from nats_backpressure.config.nats import Nats, Secret
from nats_backpressure.runtime.clock import SystemClock
from nats_backpressure.runtime.ports import Unavailable
from nats_backpressure.runtime.tasks import cancel_and_wait
from tests.conftest import StartServer
from tests.support.connected import Listener, connected, options, receives, up
from tests.support.proxy import Proxy
from tests.support.servers import NatsServer
from tests.support.sidecar import eventually


async def test_subscriptions_come_back_after_a_killed_server_restarts(server: NatsServer, nc: PlainClient) -> None:
    async with connected(options(server)) as (connection, listener):
        await up(connection)
        await server.restart(kill=True)
        await up(connection, 2)
        await receives(listener, lambda: nc.publish("news", b"again"), b"again")
        assert listener.rebuilds >= 1


async def test_a_silent_network_is_noticed_by_the_round_trip(server: NatsServer) -> None:
    async with Proxy(server.port) as proxy, connected(Nats((proxy.url,)), probe_timeout=0.2) as (connection, _):
        await up(connection)
        proxy.black_hole()

        async def noticed() -> bool:
            return not connection.connected

        await eventually(noticed, "the silence to be noticed")
        proxy.forward()
        await up(connection, 2)


async def test_replies_prove_the_link_so_that_no_round_trip_is_made(
    server: NatsServer, nc: PlainClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(message: Msg) -> None:
        await message.respond(b"")

    await nc.subscribe("echo", cb=answer)
    await nc.flush()
    async with connected(options(server), probe_every=60) as (connection, _):
        await up(connection)
        client, asked = connection.client, 0

        async def request_instead(event: asyncio.Event, *more: object) -> bool:
            nonlocal asked
            if asked == 3:
                event.set()
                return True
            await client.request("echo", b"", 5)
            asked += 1
            return False

        monkeypatch.setattr("nats_backpressure.adapters.nats.connection.sleep_until", request_instead)
        monkeypatch.setattr(connection, "_answers", lambda client: pytest.fail("a round trip"))
        await connection._watch(client)
        assert asked == 3


async def test_the_link_is_measured_when_it_is_there(server: NatsServer) -> None:
    async with Proxy(server.port) as proxy, connected(Nats((proxy.url,)), probe_every=0.01) as (connection, _):
        proxy.delay = 0.05
        await up(connection)

        async def measured() -> bool:
            return connection.round_trip > 0

        await eventually(measured, "the answers to three PINGs")
        assert connection.round_trip >= 0.1


async def test_an_answered_request_proves_that_messages_come(server: NatsServer) -> None:
    async with connected(options(server), probe_every=600) as (connection, _):
        await up(connection)
        since = time.monotonic()
        await connection.request("$JS.API.INFO", b"", 5.0)
        await connection.request("$JS.API.INFO", b"", 5.0)
        assert 0 < connection.listening_time(since) <= time.monotonic() - since


async def test_nothing_counts_as_received_before_all_is_subscribed_to(server: NatsServer) -> None:
    async with connected(options(server), probe_every=600) as (connection, _):
        await up(connection)
        set_up, listened = connection._set_up, list[float]()

        async def noted(client: PatchedClient) -> None:
            await connection.request("$JS.API.INFO", b"", 5.0)
            listened.append(connection.listening_time(-math.inf))
            await set_up(client)

        connection._set_up = noted
        await server.restart(kill=True)

        async def is_set_up() -> bool:
            return bool(listened)

        await eventually(is_set_up, "the next connection to be set up")
        assert set(listened) == {0.0}


async def test_one_late_pong_does_not_end_the_connection(server: NatsServer, nc: PlainClient) -> None:
    async with (
        Proxy(server.port) as proxy,
        connected(Nats((proxy.url,)), probe_every=60, probe_timeout=0.2) as (connection, listener),
    ):
        await up(connection)
        proxy.delay = 0.15  # each way: a round trip takes longer than the 0.2 s it is given
        assert not await connection._answers(connection.client)
        proxy.delay = 0.0
        await receives(listener, lambda: nc.publish("news", b"still here"), b"still here")
        await eventually(lambda: connection._answers(connection.client), "a pong in time")
        assert connection.epoch == 1


async def test_a_dead_read_loop_is_noticed_though_it_looks_connected(server: NatsServer, nc: PlainClient) -> None:
    async with connected(options(server), probe_timeout=0.2) as (connection, listener):
        await up(connection)
        reader = connection.client._reading_task
        assert reader is not None
        reader.cancel()
        await up(connection, 2)
        await receives(listener, lambda: nc.publish("news", b"again"), b"again")


async def test_a_busy_event_loop_does_not_end_the_connection(server: NatsServer) -> None:
    async with connected(options(server), probe_timeout=0.4) as (connection, _):
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


@pytest.mark.parametrize(
    ("reached", "longest"), [(False, LAST_UNREACHED), (True, LAST_RETRY)], ids=["nobody answers", "it refuses"]
)
async def test_pauses_are_short_only_while_no_server_answers(
    reached: bool, longest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that refuses each client is left alone for longer."""

    async def refuse(self: PatchedClient, *given: object, **more: object) -> None:
        self._server_info = {"version": "2.11.0"} if reached else {}
        raise OSError("refused")

    class Clock(SystemClock):
        async def sleep(self, seconds: float) -> None:
            pauses.append(seconds)
            await asyncio.sleep(0)

    pauses: list[float] = []
    monkeypatch.setattr(PatchedClient, "open", refuse)
    connection = Connection("c", Nats(), Clock(), set_up=_nothing, count=lambda kind: None, on_rebuild=lambda: None)
    running = asyncio.create_task(connection.run())
    while len(pauses) < 200:
        await asyncio.sleep(0)
    await cancel_and_wait([running])
    assert longest / 2 < max(pauses) <= longest
    assert len({round(pause, 6) for pause in pauses[10:]}) > 100, "each at a moment of its own"


async def _nothing(client: PatchedClient) -> None: ...


async def test_a_server_that_closes_at_once_is_retried_with_pauses() -> None:
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


async def test_a_permission_that_was_removed_and_granted_again_is_used_again(start_server: StartServer) -> None:
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
        await receives(listener, lambda: it.publish("news", b"again"), b"again")
        assert connection.epoch == 1, "what works goes on"
    await it.close()


async def test_a_frozen_server_is_unavailable_within_the_time_given(server: NatsServer) -> None:
    async with connected(options(server)) as (connection, _):
        await up(connection)
        server.pause()
        try:
            with pytest.raises(Unavailable):
                await connection.request("$JS.API.INFO", b"", 0.3)
        finally:
            server.resume()


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


async def test_an_empty_credentials_file_is_logged_once_and_retried(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "user.creds"
    path.write_text("")
    tries = Counter[str]()

    def counting(nats: Nats) -> Any:
        tries["connect"] += 1
        return credentials(nats)

    monkeypatch.setattr(patched_client, "credentials", counting)
    with capture_logs() as lines:
        async with connected(options(server, credentials_file=str(path))) as (connection, _):

            async def logged() -> bool:
                return bool(lines)

            await eventually(logged, "a line in the log")
            path.unlink()
            with pytest.raises(Unavailable):
                await connection.request("x", b"", 1)

            async def tried_again() -> bool:
                return tries["connect"] >= 4

            await eventually(tried_again, "some more tries")
    assert [line["event"] for line in lines] == ["nats.unreachable"] * 2, "again for another reason"
    assert [line["error"] for line in lines] == [f"{path}: the file is empty", f"{path}: No such file or directory"]
    assert lines[0]["login"] == f"credentials file {path}"


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


async def test_one_cancellation_ends_it_though_nats_py_answers_that_with_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise a process of which one loop crashed would wait for this one forever."""
    trying = asyncio.Event()

    async def refused(*args: Any, **more: Any) -> None:
        trying.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        raise ConnectionRefusedError

    monkeypatch.setattr(PatchedClient, "open", refused)
    connection = Connection(
        "t", Nats(), SystemClock(), set_up=refused, count=lambda kind: None, on_rebuild=lambda: None
    )
    running = asyncio.create_task(connection.run())
    await trying.wait()
    running.cancel()
    ended, _ = await asyncio.wait({running}, timeout=10)
    await cancel_and_wait([running])
    assert ended


async def test_a_login_that_is_refused_is_one_line_however_the_server_ends_the_connection(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_server("authorization { users: [ {user: u, password: p} ] }")
    texts = iter(["Authorization Violation", "[Errno 104] Connection reset by peer", "nats: unexpected EOF"] * 9)
    tries = 0

    async def refused(*arguments: Any, **more: Any) -> None:
        nonlocal tries
        tries += 1
        raise OSError(next(texts))

    monkeypatch.setattr(patched_client.PatchedClient, "open", refused)
    with capture_logs() as lines:
        async with connected(options(server, user="u", password=Secret("wrong"))):

            async def tried() -> bool:
                return tries >= 4

            await eventually(tried, "some tries")
    assert [line["event"] for line in lines] == ["nats.unreachable"]
