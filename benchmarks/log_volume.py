"""Measures how much a sidecar logs at level `info`, in MB a day: in calm, and while statuses change all the time.

`python -m benchmarks.log_volume` takes ten minutes: as long as the longest period of a limit of lines, so that a day
has 144 times as much at most. docs/operations.md (Size) has the figures.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import click
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig

from benchmarks.processes import SidecarProcess, nats_server
from nats_backpressure.adapters.logs import SUBJECT_PERIOD

SCENES = {"calm": 0, "one": 1, "hundred": 100}
"""How many subjects flap beside three calm ones."""
FLAP = 4.5
"""Seconds of one overload and its end, as in the trial that found 22 MB a day."""
POLICY: dict[str, Any] = {
    "subjects": [">"],
    "pending": {"warn": 0.2, "critical": 0.5, "overload": 0.9},
    "recovery_hold_seconds": 0.2,
}
DAY = 86_400.0


def settings(name: str) -> dict[str, Any]:
    watch = [{"stream": f"{name}-*"}]
    return {"name": name, "watch": watch, "policies": [POLICY], "log": {"level": "info", "format": "json"}}


async def make(client: Client, name: str, flapping: int) -> None:
    js = client.jetstream()
    await js.add_stream(name=f"{name}-calm", subjects=[f"{name}.calm.*"])
    await js.add_stream(name=f"{name}-flap", subjects=[f"{name}.flap.*"])
    for kind, n in (("calm", 3), ("flap", flapping)):
        for i in range(n):
            subject = f"{name}.{kind}.tenant-{i:03}"
            config = ConsumerConfig(durable_name=f"c{i}", filter_subject=subject, ack_policy=AckPolicy.EXPLICIT)
            await js.add_consumer(f"{name}-{kind}", config)


async def flap(client: Client, name: str, flapping: int) -> None:
    js = client.jetstream()
    while True:
        for i in range(flapping):
            await js.publish(f"{name}.flap.tenant-{i:03}", b"x")
        await asyncio.sleep(FLAP / 2)
        await js.purge_stream(f"{name}-flap")
        await asyncio.sleep(FLAP / 2)


async def measure(seconds: float) -> dict[str, float]:
    """Bytes of each scene in that time, all beside one server."""
    async with nats_server() as (server, client), AsyncExitStack() as stack:
        sidecars = {}
        for name, flapping in SCENES.items():
            await make(client, name, flapping)
            sidecars[name] = await stack.enter_async_context(SidecarProcess(server.url, settings(name)))
        before = {name: sidecar.log.stat().st_size for name, sidecar in sidecars.items()}
        loads = [asyncio.ensure_future(flap(client, name, n)) for name, n in SCENES.items() if n]
        await asyncio.sleep(seconds)
        bytes_logged = {name: float(sidecar.log.stat().st_size - before[name]) for name, sidecar in sidecars.items()}
        for load in loads:
            load.cancel()
        await asyncio.wait(loads)
        return bytes_logged


@click.command()
@click.option("--seconds", default=SUBJECT_PERIOD, show_default=True)
def main(seconds: float) -> None:
    for name, n in asyncio.run(measure(seconds)).items():
        a_day = n * DAY / seconds / 1e6
        print(f"{SCENES[name]:>4} flapping subjects: {n:>9,.0f} bytes in {seconds:g} s, {a_day:.1f} MB a day")


if __name__ == "__main__":
    main()
