"""Measures in flight and the drain rate of workers behind PullGate: `python -m benchmarks.grants [REPLICAS ...]`.

The same workers drain one backlog by a plain fetch, and asking one or several sidecars before each pull. `in flight`
should stay at the mark, and `acked/s` beside the plain fetch.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress

import nats
from msgspec import Struct
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig

from benchmarks.processes import SidecarProcess, nats_server
from nats_backpressure.client import BackpressureClient, PullGate

SUBJECT, STREAM, CONSUMER = "work", "WORK", "worker"
MARK = 300
BACKLOG, SECONDS, SETTLES = 30_000, 10.0, 3.0
GATES, AT_ONCE, BATCH, SERVICE = 6, 10, 50, 0.1
"""Workers with a connection each; messages that each works on at a time, asks for at a time, and seconds of each."""
SETTINGS = {
    "policies": [
        {
            "subjects": [SUBJECT],
            "inflight": {"warn": 1, "critical": 2, "overload": MARK},
            "latency_p95": {"overload": 1_000_000},
        }
    ]
}

Fetch = Callable[[int], Awaitable[list[Msg]]]


class Result(Struct, frozen=True):
    rate: float
    """Messages acknowledged per second."""
    mean: float
    most: int
    """In flight."""


class Worker:
    """Takes whatever its fetch returns, and works on some messages at a time: only the gate limits what it holds."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch, self._at_once = fetch, asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        while True:
            messages: list[Msg] = []
            with suppress(TimeoutError, nats.errors.Error):
                messages = await self._fetch(BATCH)
            for message in messages:
                task = asyncio.create_task(self._work(message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _work(self, message: Msg) -> None:
        async with self._at_once:
            await asyncio.sleep(SERVICE)
            with suppress(nats.errors.Error):  # the measurement is over
                await message.ack()


async def fetch_of(client: Client, gated: bool) -> Fetch:
    subscription = await client.jetstream().pull_subscribe_bind(CONSUMER, STREAM)
    if gated:
        return PullGate(BackpressureClient(client), subscription, SUBJECT).fetch

    async def fetch(n: int) -> list[Msg]:
        messages = await subscription.fetch(1, timeout=0.5)
        with suppress(TimeoutError):
            messages += await subscription.fetch(n - 1, timeout=0.02)
        return messages

    return fetch


async def measure(replicas: int) -> Result:
    """Without a replica the workers fetch without asking."""
    async with nats_server() as (server, client), AsyncExitStack() as stack:
        js = client.jetstream()
        await js.add_stream(name=STREAM, subjects=[SUBJECT])
        config = ConsumerConfig(durable_name=CONSUMER, ack_policy=AckPolicy.EXPLICIT, max_ack_pending=10_000)
        await js.add_consumer(STREAM, config)
        for _ in range(BACKLOG - 1):
            await client.publish(SUBJECT, b"x")
        await js.publish(SUBJECT, b"x")
        for n in range(replicas):
            await stack.enter_async_context(SidecarProcess(server.url, SETTINGS | {"instance": f"pod-{n}"}))
        clients = [await stack.enter_async_context(await nats.connect(server.url)) for _ in range(GATES)]
        workers = [Worker(await fetch_of(one, replicas > 0)) for one in clients]
        tasks = [asyncio.create_task(worker.run()) for worker in workers]
        try:
            await asyncio.sleep(SETTLES)
            return await watch(client)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def watch(client: Client) -> Result:
    """In flight and acks, by the consumer itself."""
    js, started, inflight = client.jetstream(), time.monotonic(), list[int]()
    first = (await js.consumer_info(STREAM, CONSUMER)).ack_floor
    assert first is not None
    while (took := time.monotonic() - started) < SECONDS:
        info = await js.consumer_info(STREAM, CONSUMER)
        inflight.append(info.num_ack_pending or 0)
        await asyncio.sleep(0.02)
    last = info.ack_floor
    assert last is not None
    return Result((last.consumer_seq - first.consumer_seq) / took, statistics.fmean(inflight), max(inflight))


async def main(replicas: list[int]) -> None:
    print(f"mark {MARK}, {GATES} workers x {AT_ONCE} at once x {SERVICE} s each, {SECONDS:.0f} s\n")
    print("                acked/s  of plain  in flight: mean  most")
    plain = 0.0
    for n in itertools.chain([0], replicas):
        result = await measure(n)
        plain = plain or result.rate
        name = f"{n} sidecars" if n else "plain fetch"
        print(f"{name:14}{result.rate:9.0f}{result.rate / plain:10.2f}{result.mean:17.0f}{result.most:6}")


if __name__ == "__main__":
    asyncio.run(main([int(n) for n in sys.argv[1:]] or [1, 3]))
