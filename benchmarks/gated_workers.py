"""The workers of `benchmarks.gate`: two sides of one stream, in calm, and then with a backlog that they drain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import nats
from msgspec import Struct
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

from benchmarks.figures import percentile
from nats_backpressure.client import BackpressureClient, PullGate
from nats_backpressure.runtime.tasks import cancel_and_wait

SERVICE = 0.2
"""Seconds that a worker takes for a message."""
CALM = 0.5
"""What arrives in calm, as a share of what the workers can do."""
READ_EVERY = 0.02
"""Seconds between two looks at what is in flight."""
SIDES = ("plain", "gated")
"""The consumers of each stream."""

Fetch = Callable[[int], Awaitable[list[Msg]]]


class Case(Struct, frozen=True):
    workers: int
    batch: int
    mark: int | None
    """None: both sides are a plain fetch, which shows how far two equal sides differ."""

    @property
    def name(self) -> str:
        return f"{self.workers}x{self.batch}m{self.mark}"

    @property
    def text(self) -> str:
        return f"{self.workers} workers, fetch({self.batch}), {f'mark {self.mark}' if self.mark else 'no gate'}"


class Seconds(Struct, frozen=True):
    settle: float
    """Before each of the others: until the workers are in step."""
    calm: float
    drain: float


class Side(Struct, frozen=True):
    """What one side did."""

    rate: float
    """Messages acknowledged per second, of a backlog."""
    p95: float
    """Seconds from publishing a message to its handling, in calm."""
    most: int
    """In flight, in both."""
    asked: int
    """Questions to the sidecar in calm."""
    refused: int
    """Those of them that were answered 0."""


class _Workers:
    """Those of one side. Each handles one message after another."""

    def __init__(self, case: Case, consumer: str, client: Client, asking: BackpressureClient | None) -> None:
        self._case, self._consumer, self._js, self._asking = case, consumer, client.jetstream(), asking
        self.most = 0
        self.waited: list[float] = []
        """Seconds that each message waited since this was emptied."""
        self.acked: list[list[float]] = [[] for _ in range(case.workers)]
        """When each worker acknowledged, since this was emptied."""

    async def run(self) -> None:
        fetches = [self._fetch_of(await self._subscribe()) for _ in range(self._case.workers)]
        await asyncio.gather(self._look(), *map(self._work, fetches, self.acked))

    async def _subscribe(self) -> JetStreamContext.PullSubscription:
        return await self._js.pull_subscribe_bind(self._consumer, self._case.name)

    def _fetch_of(self, subscription: JetStreamContext.PullSubscription) -> Fetch:
        if self._asking is None or self._case.mark is None:
            return subscription.fetch
        return PullGate(self._asking, subscription, self._case.name).fetch

    async def _work(self, fetch: Fetch, acked: list[float]) -> None:
        while True:
            with suppress(NatsTimeoutError):
                for message in await fetch(self._case.batch):
                    self.waited.append(time.monotonic() - float(message.data))
                    await asyncio.sleep(SERVICE)
                    await message.ack()
                    acked.append(time.monotonic())

    async def _look(self) -> None:
        while True:
            self.most = max(self.most, (await self._js.consumer_info(self._case.name, self._consumer)).num_ack_pending)
            await asyncio.sleep(READ_EVERY)

    def counts(self) -> tuple[int, int]:
        """Questions, and those that were answered 0."""
        return (self._asking.stats.asked, self._asking.stats.held_back) if self._asking else (0, 0)


async def create(client: Client, case: Case) -> None:
    js = client.jetstream()
    await js.add_stream(name=case.name, subjects=[case.name])
    for consumer in SIDES:
        config = ConsumerConfig(
            durable_name=consumer, ack_policy=AckPolicy.EXPLICIT, ack_wait=60, max_ack_pending=10_000
        )
        await js.add_consumer(case.name, config)


async def measure(url: str, case: Case, seconds: Seconds) -> tuple[Side, Side]:
    """By a plain fetch, and behind gates: the same messages at the same time."""
    clients = [await nats.connect(url) for _ in range(3)]
    publishing, plain, gated = clients
    try:
        async with BackpressureClient(gated) as asking:
            sides = (_Workers(case, SIDES[0], plain, None), _Workers(case, SIDES[1], gated, asking))
            tasks = [asyncio.create_task(side.run()) for side in sides]
            try:
                calm = await _calm(publishing, case, sides, seconds)
                rates = await _drain(publishing, case, sides, seconds)
            finally:
                await cancel_and_wait(tasks)
            first, second = (
                Side(rate, p95, side.most, *counts)
                for side, rate, (p95, counts) in zip(sides, rates, calm, strict=True)
            )
            return first, second
    finally:
        for client in clients:
            await client.close()


async def _calm(
    publishing: Client, case: Case, sides: tuple[_Workers, ...], seconds: Seconds
) -> list[tuple[float, tuple[int, int]]]:
    """The p95 of each side in seconds, and the questions of its gates."""
    publisher = asyncio.create_task(_publish_evenly(publishing, case))
    try:
        await asyncio.sleep(seconds.settle)
        before = [side.counts() for side in sides]
        for side in sides:
            side.waited.clear()
        await asyncio.sleep(seconds.calm)
        return [
            (percentile(side.waited, 0.95), (side.counts()[0] - asked, side.counts()[1] - refused))
            for side, (asked, refused) in zip(sides, before, strict=True)
        ]
    finally:
        await cancel_and_wait([publisher])


async def _publish_evenly(client: Client, case: Case) -> None:
    every, due = SERVICE / (CALM * case.workers), time.monotonic()
    while True:
        await client.publish(case.name, str(time.monotonic()).encode())
        due += every
        await asyncio.sleep(max(0.0, due - time.monotonic()))


async def _drain(publishing: Client, case: Case, sides: tuple[_Workers, ...], seconds: Seconds) -> list[float]:
    """What each side acknowledges per second of a backlog."""
    for _ in range(round(2 * (seconds.settle + seconds.drain) * case.workers / SERVICE)):
        await publishing.publish(case.name, str(time.monotonic()).encode())
    await publishing.flush()
    await asyncio.sleep(seconds.settle)
    for acked in (acked for side in sides for acked in side.acked):
        acked.clear()
    began = time.monotonic()
    await asyncio.sleep(seconds.drain)
    ended = time.monotonic()
    return [sum(rate_of(acked, began, ended) for acked in side.acked) for side in sides]


def rate_of(acked: list[float], began: float, ended: float) -> float:
    """What one worker acknowledges per second: from its first ack to its last, since they all may be in step, and one
    more or less in the window would be 2 %. A wait longer than a message before or after these counts."""
    if len(acked) < 2:
        return 0.0
    return (len(acked) - 1) / (max(acked[-1], ended - SERVICE) - min(acked[0], began + SERVICE))
