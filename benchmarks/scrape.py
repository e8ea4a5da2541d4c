"""Measures a scrape of `/metrics` at 1,000 subjects, and how long anything holds the event loop of the sidecar.

The loop is watched from outside: a decision is asked for 200 times a second, and a pause of the loop is a long round
trip. Beside: the same requests at the same times to a subscriber that does nothing but reply, a process of its own:
its longest round trip is the noise of the machine. And from inside: the longest CPU time of the loop's thread between
two turns of a task that wakes every 2 ms (loop_probe.py); other processes do not count in that. Then the same at
10,000 subjects for a minute with a scrape every 15 s and a page of all states every 5 s; and a start with 10,000
wildcards.
"""

from __future__ import annotations

import asyncio
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import nats
from msgspec import Struct
from nats.aio.client import Client
from nats.aio.msg import Msg

from benchmarks.consumers import create
from benchmarks.figures import Figure, Figures, Size, command, percentile, percentiles, progress
from benchmarks.loop_probe import Hold, holds
from benchmarks.processes import SidecarProcess, nats_server
from nats_backpressure.adapters.embedded_server import end_with_parent
from nats_backpressure.runtime.tasks import cancel_and_wait

EVERY = 0.005
"""Seconds between two requests."""
ECHO = "benchmark.echo"
PEER = "a subscriber that only replies"
SETTLE = 3.0


class Scale(Struct, frozen=True):
    few: int
    many: int
    scrapes: int
    """One a second."""
    minute: float
    """Seconds with `many` subjects."""


SCALES: dict[Size, Scale] = {
    "full": Scale(1000, 10_000, 20, 60.0),
    "quick": Scale(1000, 2000, 5, 5.0),
    "tiny": Scale(8, 8, 1, 0.3),
}


def get(page: str) -> tuple[float, int]:
    """Milliseconds of a scrape, and its size in bytes."""
    started = time.perf_counter()
    with urllib.request.urlopen(page, timeout=60) as reply:
        size = len(reply.read())
    return 1000 * (time.perf_counter() - started), size


async def echo(url: str) -> None:
    """The peer, a process of its own."""
    client = await nats.connect(url)

    async def respond(message: Msg) -> None:
        await client.publish(message.reply, b"x" * 400)

    await client.subscribe(ECHO, cb=respond)
    await client.flush()
    print("ready", flush=True)
    await asyncio.Event().wait()


@asynccontextmanager
async def _echo_process(url: str) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.scrape", "--echo", url),
        stdout=asyncio.subprocess.PIPE,
        preexec_fn=end_with_parent,
    )
    assert process.stdout is not None
    try:
        await process.stdout.readline()
        yield
    finally:
        process.kill()
        await process.wait()


async def _ask(client: Client, subject: str, took: list[float]) -> None:
    """Ask at a steady rate until cancelled; milliseconds from when each request was due."""
    due = time.monotonic()
    while True:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        await client.request(subject, b"", timeout=30)
        took.append(1000 * (time.monotonic() - due))
        due = max(due + EVERY, time.monotonic())


class Trips(Struct, frozen=True):
    """Milliseconds of the round trips to the sidecar and to the echo, and the holds of the sidecar's loop meanwhile."""

    ours: list[float]
    theirs: list[float]
    holds: list[Hold]


async def _trips(client: Client, subject: str, sidecar: SidecarProcess, work: Coroutine[Any, Any, None]) -> Trips:
    """Ask the sidecar and the echo while some work is done."""
    started = time.monotonic()
    ours: list[float] = []
    theirs: list[float] = []
    asking = [
        asyncio.create_task(_ask(client, f"backpressure.v1.decide.gateway.{subject}", ours)),
        asyncio.create_task(_ask(client, ECHO, theirs)),
    ]
    try:
        await work
        for task in asking:
            if task.done():
                task.result()  # raises what ended it
    finally:
        await cancel_and_wait(asking)
    return Trips(ours, theirs, holds(sidecar.holds, started))


def _held(name: str, trips: Trips) -> Figures:
    outside, inside = percentiles(trips.ours), [hold.cpu for hold in trips.holds]
    return {
        f"{name}: longest round trip of a decision": Figure(
            max(trips.ours), "ms", max(trips.theirs), PEER, aim=20.0, spread=outside
        ),
        f"{name}: longest hold of the loop": Figure(
            max(inside, default=0.0),
            "ms of CPU",
            aim=20.0,
            spread={"above 20 ms": sum(each > 20.0 for each in inside), "above 10 ms": sum(e > 10.0 for e in inside)},
        ),
    }


async def _scrapes(page: str, times: int, workers: ProcessPoolExecutor) -> list[tuple[float, int]]:
    taken = []
    for _ in range(times):
        taken.append(await asyncio.get_running_loop().run_in_executor(workers, get, page))
        await asyncio.sleep(max(0.0, 1.0 - taken[-1][0] / 1000))
    return taken


async def _few(scale: Scale, workers: ProcessPoolExecutor) -> Figures:
    async with nats_server() as (server, client):
        consumers = await create(client, scale.few, min(4, scale.few))
        async with SidecarProcess(server.url, probe=True) as sidecar, _echo_process(server.url):
            await asyncio.sleep(min(SETTLE, scale.minute))
            progress(f"scrapes at {scale.few:,} subjects")
            scrapes: list[tuple[float, int]] = []

            async def scrape() -> None:
                scrapes.extend(await _scrapes(sidecar.page, scale.scrapes, workers))

            quiet = await _trips(client, consumers[0].subject, sidecar, asyncio.sleep(scale.scrapes))
            busy = await _trips(client, consumers[0].subject, sidecar, scrape())
    times, size = [took for took, _ in scrapes], scrapes[-1][1]
    name = f"{scale.few:,} subjects"
    note = f"{size / 1e6:.1f} MB"
    return {
        f"{name}: a scrape": Figure(percentile(times, 0.5), "ms", aim=50.0, spread=percentiles(times), note=note),
        **_held(f"{name}, no scrape", quiet),
        **_held(f"{name}, a scrape a second", busy),
    }


async def _many(scale: Scale, workers: ProcessPoolExecutor) -> Figures:
    async with nats_server() as (server, client):
        consumers = await create(client, scale.many, min(20, scale.many))
        async with SidecarProcess(server.url, probe=True) as sidecar, _echo_process(server.url):
            await asyncio.sleep(min(SETTLE, scale.minute))
            progress(f"{scale.minute:g} s at {scale.many:,} subjects, with scrapes and pages of all states")

            async def minute() -> None:
                end, n = time.monotonic() + scale.minute, 0
                while time.monotonic() < end:
                    if n % 3 == 0:
                        await asyncio.get_running_loop().run_in_executor(workers, get, sidecar.page)
                    await client.request("backpressure.v1.get.status", b'{"offset": 500}', timeout=30)
                    await asyncio.sleep(min(5.0, max(0.0, end - time.monotonic())))
                    n += 1

            trips = await _trips(client, consumers[0].subject, sidecar, minute())
    return _held(f"{scale.many:,} subjects, a minute", trips)


async def _wildcards(scale: Scale) -> Figures:
    progress(f"a start with {scale.many:,} wildcards")
    async with nats_server() as (server, client):
        await create(client, scale.many, min(20, scale.many), below=".>")
        async with SidecarProcess(server.url) as sidecar:
            return {
                f"{scale.many:,} wildcards: seconds until all is read after a start": Figure(sidecar.started_in, "s")
            }


def main(size: Size = "full") -> Figures:
    scale = SCALES[size]
    with ProcessPoolExecutor(1, initializer=end_with_parent) as workers:
        figures = asyncio.run(_few(scale, workers))
        figures |= asyncio.run(_many(scale, workers))
    return figures | asyncio.run(_wildcards(scale))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--echo"]:
        asyncio.run(echo(sys.argv[2]))
    else:
        command(main)
