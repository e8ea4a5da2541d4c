"""A connection that is closed while it is being made ends, with the program that closed it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from nats.aio.client import Client

from nats_backpressure.client import BackpressureClient
from tests.support.servers import NatsServer

Tries = asyncio.Queue["asyncio.Future[Any]"]


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> Tries:
    """The tries to connect, each of which ends as the test says."""
    each = Tries()

    async def open_connection(**_: Any) -> Any:
        each.put_nowait(answer := asyncio.get_running_loop().create_future())
        return await answer

    monkeypatch.setattr(asyncio, "open_connection", open_connection)
    return each


async def refuse(tries: Tries, end: Callable[[], Any], connecting: Callable[[], Any]) -> None:
    """In one turn of the loop with what cancels it: by the failure `asyncio.wait_for` loses the cancellation (3.11)."""
    refused = await tries.get()
    task = connecting()
    refused.set_exception(ConnectionRefusedError())
    if inspect.isawaitable(ending := end()):
        await ending
    await asyncio.wait({task}, timeout=10)
    assert task.done(), "it goes on after it was cancelled"


async def test_a_first_connect_that_is_cancelled_while_it_fails_ends(tries: Tries) -> None:
    BackpressureClient(nc := Client())
    connecting = asyncio.create_task(nc.connect("nats://127.0.0.1:1", max_reconnect_attempts=-1))
    await refuse(tries, connecting.cancel, lambda: connecting)
    assert connecting.cancelled()


async def test_a_connection_that_is_closed_while_it_fails_to_connect_again_ends(
    server: NatsServer, nc: Client, tries: Tries
) -> None:
    for _ in range(2):
        BackpressureClient(nc)
    await server.kill()
    await refuse(tries, nc.close, lambda: nc._reconnection_task)


async def test_a_connection_is_closed_though_something_was_published_while_it_was_lost(server: NatsServer) -> None:
    nc, closed = Client(), asyncio.Event()

    async def on_close() -> None:
        closed.set()

    await nc.connect(server.url, max_reconnect_attempts=-1, closed_cb=on_close)
    BackpressureClient(nc)
    await server.kill()
    while not nc.is_reconnecting:
        await asyncio.sleep(0.01)
    await nc.publish("orders", b"1")
    async with asyncio.timeout(20):
        await nc.close()
    assert closed.is_set() and nc.is_closed
