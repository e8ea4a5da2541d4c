"""Measures one local `admit` against one request to the sidecar: `python -m benchmarks.admit`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from nats_backpressure.adapters.embedded_server import EmbeddedServer
from nats_backpressure.client import BackpressureClient
from tests.worlds.state_bucket import States, active, state, wait_for_admission

CALLS, REQUESTS = 200_000, 1_000
ANSWER = b'{"subject": "calm", "role": "gateway", "action": "continue", "valid_for_ms": 0}'


def nanoseconds(call: Callable[[], object]) -> float:
    """The best of five rounds: the noise of a shared machine only adds time."""

    def once() -> float:
        start = time.perf_counter_ns()
        for _ in range(CALLS):
            call()
        return (time.perf_counter_ns() - start) / CALLS

    return min(once() for _ in range(5))


async def respond(message: Msg) -> None:
    await message.respond(ANSWER)


async def time_per_request(client: BackpressureClient) -> float:
    start = time.perf_counter_ns()
    for _ in range(REQUESTS):
        await client.decide("calm")
    return (time.perf_counter_ns() - start) / REQUESTS


async def measure(nc: Client) -> None:
    states = States(nc)
    await states.make()
    await states.put(state("calm"), active("full"), state("thin", action="throttle", admit_ratio=0.5))
    await states.heartbeat()
    await nc.subscribe("backpressure.v1.decide.gateway.calm", cb=respond)
    async with BackpressureClient(nc, report_every=None) as client:
        await client.watch()
        await wait_for_admission(client, "full", action="reject")
        rows = {
            f"admit, {name}": nanoseconds(lambda name=name: client.admit(name)) for name in ("calm", "full", "thin")
        }
        rows["decide, one request each"] = await time_per_request(client)
    for name, took in rows.items():
        print(f"{name:26} {took:12,.0f} ns {took / rows['admit, calm']:10,.1f} times admit, calm")


async def main() -> None:
    server = EmbeddedServer()
    await server.start()
    try:
        async with await nats.connect(server.url) as nc:
            await measure(nc)
    finally:
        await server.stop()


if __name__ == "__main__":
    asyncio.run(main())
