"""The router's stream and worker, step by step: a test decides what is published, pulled and acknowledged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import BadRequestError, ServiceUnavailableError

from nats_backpressure.protocol.subjects import encode
from tests.support.sidecar import SUBJECT

T = TypeVar("T")

CONSUMER = ConsumerConfig(durable_name="router", ack_policy=AckPolicy.EXPLICIT, max_ack_pending=1000, ack_wait=60)


async def override(nc: Client, pattern: str, action: str, seconds: float, name: str = "backpressure") -> dict[str, str]:
    """Put an override in the bucket as any program would; returns its fields."""
    until = datetime.now(UTC) + timedelta(seconds=seconds)
    fields = {"action": action, "until": until.isoformat(timespec="milliseconds").replace("+00:00", "Z")}
    bucket = await nc.jetstream().key_value(f"{name}_policy")
    await bucket.put(f"=override.{encode(pattern)}", json.dumps(fields).encode())
    return fields


NO_SUITABLE_PEERS = 10005


async def prepare(make: Callable[[], Awaitable[T]]) -> T:
    """Run a step of a test's preparation again while the server under load answers 503, or takes a node of its cluster
    for offline, for at most 20 s."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await make()
            except (ServiceUnavailableError, BadRequestError) as error:
                if isinstance(error, BadRequestError) and error.err_code != NO_SUITABLE_PEERS:
                    raise
            await asyncio.sleep(0.1)


UNACKNOWLEDGED = 2000
"""Messages published between two acks: with more than 10,000 before a stream, a server drops them or answers 429."""


async def publish(nc: Client, n: int) -> None:
    for left in range(n, 0, -1):
        if left % UNACKNOWLEDGED == 1:
            await nc.jetstream().publish(SUBJECT, b"decide")  # the ack of this one: all before it are stored
        else:
            await nc.publish(SUBJECT, b"decide")


async def take(nc: Client, n: int, consumer: str = "router") -> list[Msg]:
    """Exactly `n` messages, unacknowledged; a fetch may give fewer, and waiting for the rest would be a stall."""
    subscription = await nc.jetstream().pull_subscribe_bind(consumer, "ROUTER")
    taken: list[Msg] = []
    async with asyncio.timeout(30):
        while len(taken) < n:
            with suppress(TimeoutError):  # a short one would end before a busy server has sent all: more in flight
                taken += await subscription.fetch(n - len(taken), timeout=2.0)
    return taken


async def drain(nc: Client, held: list[Msg]) -> None:
    for message in held:
        await message.ack()
    await nc.flush()
    while left := (await nc.jetstream().consumer_info("ROUTER", "router")).num_pending:
        for message in await take(nc, min(500, left)):
            await message.ack()
        await nc.flush()


async def work(nc: Client, per_second: int, consumer: str = "router") -> None:
    """A steady worker."""
    while True:
        for message in await take(nc, per_second // 20, consumer):
            await message.ack()
        await asyncio.sleep(0.05)
