"""The programs around the sidecar: they know it only by its wire, as programs in other languages would."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.js import JetStreamContext

STREAM, CONSUMER, SUBJECT = "ROUTER", "router-decide", "beamline.router.v1.decide"
PREFIX = "backpressure.v1"
ANSWER_TIMEOUT = 0.25
"""Seconds a program waits for a decision; without one it goes on, since backpressure that fails closed is an outage."""


async def ask(nc: Client, endpoint: str, payload: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """One request to the sidecar; None where it does not answer in time, or refuses."""
    try:
        reply = await nc.request(f"{PREFIX}.{endpoint}", json.dumps(payload or {}).encode(), timeout=ANSWER_TIMEOUT)
    except (TimeoutError, NoRespondersError):
        return None
    if reply.headers and "Nats-Service-Error-Code" in reply.headers:
        return None
    found: dict[str, Any] = json.loads(reply.data)
    return found


class Router:
    """A worker pool that asks before each pull, works, and acknowledges; it never refuses what it was given."""

    def __init__(self, nc: Client, seconds_each: float, hands: int) -> None:
        self.nc = nc
        self.seconds_each = seconds_each
        self.hands = asyncio.Semaphore(hands)
        self.done = 0
        self.redelivered = 0
        self.answers: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        subscription = await self.nc.jetstream().pull_subscribe_bind(CONSUMER, STREAM)
        while True:
            decision = await ask(self.nc, f"decide.consumer.{SUBJECT}", {"max_messages": 50, "consumer": CONSUMER})
            pull = decision["pull"] if decision else {"max_messages": 50, "wait_ms": 0}
            self.answers[decision["action"] if decision else "no answer"] += 1
            if pull["max_messages"] == 0:
                await asyncio.sleep(pull["wait_ms"] / 1000)
                continue
            await self._take(subscription, pull["max_messages"])

    async def finish(self) -> None:
        """Work off what was taken; nothing is given back."""
        await asyncio.gather(*self._tasks)

    async def _take(self, subscription: JetStreamContext.PullSubscription, n: int) -> None:
        try:
            messages = await subscription.fetch(n, timeout=0.5)
        except TimeoutError:
            return
        for message in messages:
            task = asyncio.create_task(self._work(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _work(self, message: Msg) -> None:
        async with self.hands:
            await asyncio.sleep(self.seconds_each)
            await message.ack()
        self.done += 1
        self.redelivered += message.metadata.num_delivered > 1


class Gateway:
    """Admits until an event says otherwise: 202 and a message, or 503 with the Retry-After it was told."""

    def __init__(self, nc: Client) -> None:
        self.nc = nc
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue(maxsize=1000)
        self.active = False
        self.answered: Counter[int] = Counter()

    async def listen(self) -> None:
        await self.nc.subscribe(f"{PREFIX}.event.*.{SUBJECT}", cb=self._heard)

    async def _heard(self, message: Msg) -> None:
        event = json.loads(message.data)
        if event["type"] in ("backpressure_active", "backpressure_warning", "recovery"):
            self.active = event["to"] == "active"
        self.events.put_nowait(event)

    async def call(self, n: int) -> None:
        """`n` requests at once, as they come in from outside."""
        if self.active:
            self.answered[503] += n
            return
        acks = [await self.nc.jetstream().publish_async(SUBJECT, b"decide") for _ in range(n)]
        await asyncio.gather(*acks)
        self.answered[202] += n

    async def steady(self, per_second: int) -> None:
        while True:
            await self.call(per_second // 10)
            await asyncio.sleep(0.1)
