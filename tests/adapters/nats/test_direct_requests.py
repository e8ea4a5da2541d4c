"""Requests whose replies are taken in the read loop: the right reply to each, errors, and nothing left behind."""

from __future__ import annotations

import asyncio
from collections import Counter

import nats.errors
import pytest
from nats.aio.client import Client as PlainClient
from nats.aio.msg import Msg

from nats_backpressure.adapters.nats.direct_requests import AT_ONCE
from nats_backpressure.adapters.nats.patched_client import PatchedClient
from nats_backpressure.runtime.observations import Unavailable
from tests.support.connected import connected, options, up
from tests.support.servers import NatsServer


async def answering(nc: PlainClient, subject: str = "echo.>") -> None:
    async def answer(message: Msg) -> None:
        await message.respond(message.subject.encode() + b" " + message.data)

    await nc.subscribe(subject, cb=answer)
    await nc.flush()


async def test_each_gets_its_own_reply_whichever_way_it_is_sent(server: NatsServer, nc: PlainClient) -> None:
    await answering(nc)
    async with connected(options(server)) as (connection, _):
        await up(connection)
        client = connection.client
        ways: list[dict[str, str] | None] = [None, {"h": "1"}] * 20  # headers take nats-py's way to the socket
        requests = (client.request(f"echo.{n}", b"%d" % n, 5, headers=way) for n, way in enumerate(ways))
        replies = await asyncio.gather(*requests)
        assert [reply.data for reply in replies] == [b"echo.%d %d" % (n, n) for n in range(40)]
        assert client.requests.replies >= 40 and not client.requests.waiting


async def test_without_a_responder_it_is_unavailable_at_once(server: NatsServer) -> None:
    async with connected(options(server)) as (connection, _):
        await up(connection)
        with pytest.raises(nats.errors.NoRespondersError):
            await connection.client.request("nobody", timeout=60)
        with pytest.raises(Unavailable):
            await connection.request("nobody", b"", 60)


async def test_late_replies_and_foreign_messages_are_dropped(server: NatsServer, nc: PlainClient) -> None:
    asked = asyncio.Queue[Msg]()
    await nc.subscribe("slow", cb=asked.put)
    await answering(nc)
    async with connected(options(server)) as (connection, _):
        await up(connection)
        client = connection.client
        with pytest.raises(TimeoutError):
            await client.request("slow", timeout=0.05)
        late = await asked.get()
        await late.respond(b"too late")
        await nc.publish(f"{client.requests._inbox}.x", b"from anybody")
        assert (await client.request("echo.1", b"now", 5)).data == b"echo.1 now"
        assert not client.requests.waiting
        assert not client._subs[client.requests._subscription].pending_msgs, "nobody would ever take them"


@pytest.mark.parametrize("subject", ["two words", "a\r\nPUB b 0\r\n", ""])
async def test_a_subject_that_is_none_sends_nothing(server: NatsServer, nc: PlainClient, subject: str) -> None:
    received = await nc.subscribe(">")
    await nc.flush()
    async with connected(options(server)) as (connection, _):
        await up(connection)
        with pytest.raises(Unavailable):
            await connection.request(subject, b"", 1)
        await nc.publish("end")
        subjects = []
        while "end" not in subjects:
            subjects.append((await received.next_msg(5)).subject)
        assert not {"b", "two", "a"} & set(subjects)


async def test_what_waits_to_be_written_goes_first(server: NatsServer, nc: PlainClient) -> None:
    order = await nc.subscribe("order.>")
    await nc.flush()
    async with connected(options(server)) as (connection, _):
        await up(connection)
        client: PatchedClient = connection.client
        with pytest.raises(nats.errors.NoRespondersError):
            await client.request("nobody", timeout=5)  # from now on there is a subscription
        await client.publish("order.first")
        with pytest.raises(TimeoutError):
            await client.request("order.second", timeout=0.05)
        assert [(await order.next_msg(5)).subject for _ in range(2)] == ["order.first", "order.second"]


async def test_each_ends_after_its_own_time(server: NatsServer, nc: PlainClient) -> None:
    asked = asyncio.Queue[Msg]()
    await nc.subscribe("slow", cb=asked.put)
    await nc.flush()
    async with connected(options(server)) as (connection, _):
        await up(connection)
        client = connection.client
        long = asyncio.ensure_future(client.request("slow", b"long", 60))
        first = await asked.get()
        seconds = (0.2, 0.1, 0.3)
        waiting = [asyncio.ensure_future(client.request("slow", b"", each)) for each in seconds]
        now, ended = asyncio.get_running_loop().time, dict[float, float]()
        began = now()
        for each, request in zip(seconds, waiting, strict=True):
            request.add_done_callback(lambda done, each=each: ended.update({each: now() - began}))
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(result, TimeoutError) for result in results)
        assert all(after >= each - 0.01 for each, after in ended.items()), "none ends before its time"
        assert ended[0.1] <= ended[0.3] and ended[0.2] <= ended[0.3], "and none waits for a longer one"
        await first.respond(b"at last")
        assert (await long).data == b"at last" and not client.requests.waiting


async def test_once_the_connection_is_lost_nobody_waits_for_a_reply(server: NatsServer, nc: PlainClient) -> None:
    """A replica that had stood still through a restart of the server had old policies for five seconds."""
    asked = asyncio.Queue[Msg]()
    await nc.subscribe("slow", cb=asked.put)
    await nc.flush()
    async with connected(options(server)) as (connection, _):
        await up(connection)
        requests = [asyncio.ensure_future(connection.request("slow", b"", 60)) for _ in range(3)]
        for _ in requests:
            await asked.get()
        await server.restart()
        async with asyncio.timeout(20):
            for request in requests:
                with pytest.raises(Unavailable, match="connection closed"):
                    await request
        await up(connection, 2)


async def test_those_whose_replies_come_together_do_not_run_in_one_turn(server: NatsServer, nc: PlainClient) -> None:
    """Each works for a while with what it got, as those do that store a state: together they held the event loop."""
    asked = await nc.subscribe("together.>")
    await nc.flush()
    async with connected(options(server)) as (connection, _):
        await up(connection)
        turn, of_turn = 0, list[int]()

        async def one(n: int) -> None:
            await connection.client.request(f"together.{n}", timeout=5)
            of_turn.append(turn)

        async def turns() -> None:
            nonlocal turn
            while True:
                await asyncio.sleep(0)
                turn += 1

        async with asyncio.TaskGroup() as tasks:
            counting = tasks.create_task(turns())
            waiting = [tasks.create_task(one(n)) for n in range(40)]
            for message in [await asked.next_msg(5) for _ in range(40)]:
                await message.respond(b"")
            await asyncio.wait(waiting)
            counting.cancel()
        assert max(Counter(of_turn).values()) <= AT_ONCE < 40
