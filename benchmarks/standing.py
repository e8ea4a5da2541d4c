"""Measures what the sidecar costs while nothing happens: its CPU and memory, the server's CPU and API requests.

Windows without the sidecar lie before and after the one with it; the difference is what it costs the server. CPU time
(user and system) is in percent of one core. Then one of the consumers is kept busy. Last, many consumers
under one subject, with the round trips of decisions meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from msgspec import Struct
from nats.aio.client import Client

from benchmarks.consumers import Consumer, PlainSocket, create, create_unfiltered
from benchmarks.figures import Figure, Figures, Size, command, percentiles, progress
from benchmarks.processes import Cost, SidecarProcess, api_requests, cost, memory_mib, nats_server
from nats_backpressure.runtime.tasks import cancel_and_wait

SETTLE = 5.0
"""Seconds after a start before anything is measured: the first readings cost more."""
STARTING, START_LOOKS = 60.0, 40
"""API requests per second above which the first states are still being written (the budget of readings is 50), and how
often that is looked at, for two seconds each."""
BUSY_EVERY = 0.1
"""Seconds between two messages of the consumer that is kept busy, each acknowledged at once."""
ASK_EVERY = 0.02
"""Seconds between two decisions that are asked for."""


class Aims(Struct, frozen=True):
    """Percent of a core of the sidecar, percent of a core more of the server, and MiB."""

    cpu: float
    server: float | None
    memory: float | None


class Scale(Struct, frozen=True):
    seconds: float
    """Of a window with the sidecar; those without are half as long, and there are two."""
    rest: float
    """Seconds after the first states before anything is measured. A consumer is at rest, its samples are no more than
    compared, once the window of its rates, 65 s, holds nothing else; until then every sample is evaluated."""
    idle: tuple[tuple[int, int, Aims], ...]
    """Consumers, streams and aims."""
    one_subject: tuple[int, ...]


AT_3, AT_1000, AT_10000 = Aims(0.5, 0.3, 40.0), Aims(2.0, 1.0, None), Aims(10.0, None, 150.0)
SCALES: dict[Size, Scale] = {
    "full": Scale(30.0, 90.0, ((3, 1, AT_3), (1000, 4, AT_1000), (10_000, 20, AT_10000)), (300, 900)),
    "quick": Scale(6.0, 20.0, ((3, 1, AT_3), (1000, 4, AT_1000)), (300,)),
    "tiny": Scale(0.3, 0.0, ((2, 1, AT_3),), (2,)),
}


async def _idle(consumers: int, streams: int, aims: Aims, scale: Scale) -> Figures:
    seconds = scale.seconds
    settle = min(SETTLE, seconds)
    async with nats_server() as (server, client):
        created = await create(client, consumers, streams)
        progress(f"{consumers:,} idle consumers in {streams} streams")
        await asyncio.sleep(settle)
        without = [await cost(client, server.pid, None, seconds / 2)]
        async with SidecarProcess(server.url) as sidecar:
            await asyncio.sleep(settle)
            await _states_written(client)
            await asyncio.sleep(scale.rest)
            idle = await cost(client, server.pid, sidecar.pid, seconds)
            memory = memory_mib(sidecar.pid)
            progress("the same, with one of them busy")
            async with _kept_busy(server.url, created[len(created) // 2]):
                await asyncio.sleep(settle / 2)
                busy = await cost(client, server.pid, sidecar.pid, seconds / 2)
            started_in = sidecar.started_in
        await asyncio.sleep(settle / 2)
        without.append(await cost(client, server.pid, None, seconds / 2))
    name = f"{consumers:,} idle consumers in {streams} stream{'s' if streams > 1 else ''}"
    return _figures(name, idle, without, aims) | {
        f"{name}: memory (rss)": Figure(memory["rss"], "MiB", aim=aims.memory, spread=memory),
        f"{name}: seconds until all is read after a start": Figure(started_in, "s"),
        f"{name}, one of them busy: sidecar": Figure(100 * busy.sidecar, "% of a core"),
        f"{name}, one of them busy: API requests": Figure(busy.requests, "1/s"),
    }


async def _states_written(client: Client) -> None:
    for _ in range(START_LOOKS):
        before = await api_requests(client)
        await asyncio.sleep(2.0)
        if await api_requests(client) - before <= 2.0 * STARTING:
            return


def _figures(name: str, with_it: Cost, without: Sequence[Cost], aims: Aims) -> Figures:
    alone = [100 * each.server for each in without]
    more = 100 * with_it.server - sum(alone) / len(alone)
    windows = {"without, before": alone[0], "with": 100 * with_it.server, "without, after": alone[-1]}
    return {
        f"{name}: sidecar": Figure(100 * with_it.sidecar, "% of a core", aim=aims.cpu),
        f"{name}: server, more than without us": Figure(
            more, "% of a core", sum(alone) / len(alone), "the server without us", aim=aims.server, spread=windows
        ),
        f"{name}: API requests": Figure(with_it.requests, "1/s"),
    }


@asynccontextmanager
async def _kept_busy(url: str, consumer: Consumer) -> AsyncIterator[None]:
    socket = await PlainSocket.connect(url)

    async def work() -> None:
        while True:
            socket.publish(consumer.subject, 1)
            await socket.drain(consumer, 1)
            await asyncio.sleep(BUSY_EVERY)

    task = asyncio.create_task(work())
    try:
        yield
    finally:
        await cancel_and_wait([task])
        socket.close()


async def round_trips(client: Client, subject: str, seconds: float, every: float = ASK_EVERY) -> list[float]:
    """Ask for a gateway decision at a steady rate; milliseconds of each round trip. One that starts late because the
    one before was slow counts from when it was due, so that a pause is seen at its full length."""
    took: list[float] = []
    due, end = time.monotonic(), time.monotonic() + seconds
    while due < end:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        await client.request(f"backpressure.v1.decide.gateway.{subject}", b"", timeout=10)
        took.append(1000 * (time.monotonic() - due))
        due += every
    return took


async def _one_subject(consumers: int, seconds: float) -> Figures:
    async with nats_server() as (server, client):
        await create_unfiltered(client, consumers)
        progress(f"{consumers:,} idle consumers under one subject")
        async with SidecarProcess(server.url) as sidecar:
            await asyncio.sleep(min(SETTLE, seconds))
            trips = asyncio.create_task(round_trips(client, "jobs", seconds))
            spent = await cost(client, server.pid, sidecar.pid, seconds)
            spread = percentiles(await trips)
    name = f"{consumers:,} idle consumers under one subject"
    return {
        f"{name}: sidecar": Figure(100 * spent.sidecar, "% of a core"),
        f"{name}: decision, p99": Figure(spread["p99"], "ms", aim=10.0, spread=spread),
    }


def main(size: Size = "full") -> Figures:
    scale = SCALES[size]
    figures: Figures = {}
    for consumers, streams, aims in scale.idle:
        figures |= asyncio.run(_idle(consumers, streams, aims, scale))
    for consumers in scale.one_subject:
        figures |= asyncio.run(_one_subject(consumers, scale.seconds / 1.5))
    return figures


if __name__ == "__main__":
    command(main)
