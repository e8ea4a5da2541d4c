"""The demo's router process: a worker pool that pulls messages, works on each for a while and acknowledges it."""

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
from nats_backpressure.demo.scenario import CONSUMER, REPORT_INTERVAL, SENT_AT, STREAM, SUBJECT, Scenario, print_report

BATCH = 50
NAK_ABOVE = 4
"""Messages per worker that the NAK mode holds; further ones are returned with a NAK at once."""


class Worker:
    def __init__(self, nc: Client, scenario: Scenario, fetch: Callable[[int], Awaitable[list[Msg]]]) -> None:
        self._nc, self._scenario, self._fetch = nc, scenario, fetch
        self._workers = asyncio.Semaphore(scenario.workers)
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
                if self._scenario.nak and len(self._tasks) >= NAK_ABOVE * self._scenario.workers:
                    self.counts["naked"] += 1
                    await message.nak(delay=0.2)
                    continue
                task = asyncio.create_task(self._work(message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _work(self, message: Msg) -> None:
        async with self._workers:
            await asyncio.sleep(self._scenario.seconds_per_message)
            await message.ack()
        took = time.monotonic() - float((message.headers or {}).get(SENT_AT, time.monotonic()))
        self.counts["done"] += 1
        self.counts["in_time"] += took <= self._scenario.deadline
        self.latencies.append(took)

    async def report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_INTERVAL)
            latencies, self.latencies = self.latencies, []
            print_report(**self.counts, latencies=[round(took, 4) for took in latencies])


async def main(scenario: Scenario, url: str, report: bool = True) -> None:
    async with await nats.connect(url, max_reconnect_attempts=-1) as nc:
        subscription = await nc.jetstream().pull_subscribe_bind(CONSUMER, STREAM)

        async def fetch_directly(n: int) -> list[Msg]:
            messages = await subscription.fetch(1, timeout=0.5)
            with suppress(TimeoutError):  # as long as the gate waits: fetch(n) alone waits for the last message
                messages += await subscription.fetch(n - 1, timeout=0.02)
            return messages

        pull_gate = scenario.pull_gate and scenario.mode in ("binary", "adaptive") and not scenario.nak
        fetch = PullGate(BackpressureClient(nc), subscription, SUBJECT).fetch if pull_gate else fetch_directly
        worker = Worker(nc, scenario, fetch)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.run())
            if report:
                tasks.create_task(worker.report())


if __name__ == "__main__":
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Scenario), sys.argv[2]))
