"""The router's worker pool: takes messages, works on each for a while, acknowledges; and says how that went."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error

from nats_backpressure.client import BackpressureClient, PullGate
from nats_backpressure.demo.scenario import CONSUMER, REPORT_EVERY, SENT_AT, STREAM, SUBJECT, Scenario, report

BATCH = 50
HANDED_BACK_BEYOND = 4
"""Messages per hand that the NAK habit keeps; what comes beyond is handed back at once."""


class Worker:
    def __init__(self, nc: Client, scene: Scenario, fetch: Callable[[int], Awaitable[list[Msg]]]) -> None:
        self._nc, self._scene, self._fetch = nc, scene, fetch
        self._hands = asyncio.Semaphore(scene.hands)
        self._tasks: set[asyncio.Task[None]] = set()
        self.counts = Counter[str]()
        self.latencies: list[float] = []

    async def run(self) -> None:
        while True:
            try:
                messages = await self._fetch(BATCH)
            except (TimeoutError, Error):
                await asyncio.sleep(0.05)
                continue
            for message in messages:
                self.counts["redelivered"] += message.metadata.num_delivered > 1
                if self._scene.nak and len(self._tasks) >= HANDED_BACK_BEYOND * self._scene.hands:
                    self.counts["naked"] += 1
                    await message.nak(delay=0.2)
                    continue
                task = asyncio.create_task(self._work(message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _work(self, message: Msg) -> None:
        async with self._hands:
            await asyncio.sleep(self._scene.seconds_each)
            await message.ack()
        took = time.monotonic() - float((message.headers or {}).get(SENT_AT, time.monotonic()))
        self.counts["done"] += 1
        self.counts["in_time"] += took <= self._scene.deadline
        self.latencies.append(took)

    async def tell(self) -> None:
        while True:
            await asyncio.sleep(REPORT_EVERY)
            latencies, self.latencies = self.latencies, []
            report(**self.counts, latencies=[round(took, 4) for took in latencies], in_hand=len(self._tasks))


async def main(scene: Scenario, url: str) -> None:
    async with await nats.connect(url) as nc:
        subscription = await nc.jetstream().pull_subscribe_bind(CONSUMER, STREAM)

        async def freely(n: int) -> list[Msg]:
            messages = await subscription.fetch(1, timeout=0.5)
            with suppress(TimeoutError):  # for as long as the gate does: fetch(n) alone waits for the last of them
                messages += await subscription.fetch(n - 1, timeout=0.02)
            return messages

        asks = scene.asks and scene.mode in ("binary", "adaptive") and not scene.nak
        fetch = PullGate(BackpressureClient(nc), subscription, SUBJECT).fetch if asks else freely
        worker = Worker(nc, scene, fetch)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.run())
            tasks.create_task(worker.tell())


if __name__ == "__main__":
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Scenario), sys.argv[2]))
