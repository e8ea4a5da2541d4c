"""The router of the container tests: a stream, a consumer, a burst of messages and the work on them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import APIError

from tests.support.sidecar import SUBJECT, eventually

STREAM, DURABLE = "ROUTER", "router_decide_consumer"


async def create_router(nc: Client, replicas: int = 1) -> None:
    """With several replicas it is tried until so many servers have found each other."""
    js = nc.jetstream()

    async def created() -> bool:
        with suppress(APIError):
            await js.add_stream(name=STREAM, subjects=[SUBJECT], num_replicas=replicas)
            return True
        return False

    await eventually(created, f"a stream of {replicas} replicas", seconds=30)
    consumer = ConsumerConfig(
        durable_name=DURABLE,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=300,
        max_ack_pending=1000,
        filter_subject=SUBJECT,
    )
    await js.add_consumer(STREAM, consumer)


async def publish(nc: Client, count: int) -> None:
    js = nc.jetstream()
    await asyncio.gather(*(js.publish(SUBJECT, b"decide", timeout=30) for _ in range(count)))


async def pull(nc: Client) -> Any:
    return await nc.jetstream().pull_subscribe_bind(durable=DURABLE, stream=STREAM)


async def take(router: Any, count: int) -> list[Msg]:
    """Take so many messages, without an ack; also while a cluster elects the leader of the consumer."""
    messages: list[Msg] = []
    async with asyncio.timeout(60):
        while len(messages) < count:
            try:
                messages += await router.fetch(min(100, count - len(messages)), timeout=10)
            except nats.errors.Error:
                await asyncio.sleep(0.05)
    return messages


async def work(router: Any, count: int) -> None:
    """Take so many messages and acknowledge them, a hundred at a time."""
    for done in range(0, count, 100):
        for message in await take(router, min(100, count - done)):
            await message.ack()
