"""The client of the micro framework: bounded queues, slow requests apart, and an orderly close."""

from __future__ import annotations

import asyncio

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from nats_backpressure.adapters.nats.bounded_client import WAITING, WAITING_BYTES, BoundedServiceClient
from tests.support.sidecar import eventually


async def answer(message: Msg) -> None:
    await message.respond(b"done")


async def test_a_subscription_has_a_bound(nc: Client) -> None:
    subscription = await BoundedServiceClient(nc, lambda message: True).subscribe("s", "q", answer)
    assert (subscription._pending_queue.maxsize, subscription._pending_bytes_limit) == (WAITING, WAITING_BYTES)


async def test_a_message_that_is_not_allowed_is_not_handled(nc: Client) -> None:
    handled: list[str] = []

    async def record(message: Msg) -> None:
        handled.append(message.data.decode())
        await message.respond(b"done")

    client = BoundedServiceClient(nc, lambda message: message.data != b"no")
    await client.subscribe("s", "q", record)
    await nc.publish("s", b"no", reply="_INBOX.x")
    assert (await nc.request("s", b"yes", timeout=5)).data == b"done"
    assert handled == ["yes"]


async def test_a_slow_request_does_not_delay_the_next(nc: Client) -> None:
    release = asyncio.Event()

    async def wait_first(message: Msg) -> None:
        if message.data == b"first":
            await release.wait()
        await message.respond(message.data)

    client = BoundedServiceClient(nc, lambda message: True, ["slow"])
    await client.subscribe("slow", "q", wait_first)
    first = asyncio.ensure_future(nc.request("slow", b"first", timeout=30))
    assert (await nc.request("slow", b"second", timeout=30)).data == b"second"
    assert not first.done()
    release.set()
    assert (await first).data == b"first"


@pytest.mark.parametrize("subject", ["quick", "slow"])
async def test_a_close_answers_what_has_arrived_and_takes_no_more(nc: Client, subject: str) -> None:
    release, arrived = asyncio.Event(), asyncio.Event()

    async def wait(message: Msg) -> None:
        arrived.set()
        await release.wait()
        await message.respond(b"done")

    client = BoundedServiceClient(nc, lambda message: True, ["slow"])
    await client.subscribe(subject, "q", wait)
    request = asyncio.ensure_future(nc.request(subject, b"", timeout=30))
    await arrived.wait()
    closing = asyncio.ensure_future(client.close(30))
    release.set()
    await closing

    async def answered() -> bool:
        return request.done()

    await eventually(answered, "the reply")
    assert (await request).data == b"done"
