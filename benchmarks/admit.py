"""Measures one local `admit` against one request to the sidecar: `python -m benchmarks.admit`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from functools import partial

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from nats_backpressure.adapters.embedded_server import EmbeddedServer
from nats_backpressure.client import BackpressureClient, ThreadedClient
from nats_backpressure.protocol.subjects import Names

CALLS, REQUESTS = 200_000, 1_000
STATES: dict[str, dict[str, object]] = {
    "calm": {"status": "inactive", "action": "continue"},
    "full": {"status": "active", "action": "reject", "retry_after_seconds": 30},
    "thin": {"status": "warning", "action": "throttle", "admit_ratio": 0.5},
}
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


async def measure(nc: Client, url: str) -> None:
    bucket = await nc.jetstream().create_key_value(bucket=Names().state_bucket)
    for subject, fields in STATES.items():
        await bucket.put(subject, json.dumps({"subject": subject, **fields}).encode())
    await nc.subscribe("backpressure.v1.decide.gateway.calm", cb=respond)
    async with BackpressureClient(nc, report_every=None) as client:
        assert await client.watch(), "the states cannot be read"
        rows = {f"admit, {name}": nanoseconds(partial(client.admit, name)) for name in ("calm", "full", "thin")}
        with ThreadedClient(url) as threaded:
            assert threaded.start(wait=5), "the states cannot be read"
            rows["admit, calm, ThreadedClient"] = nanoseconds(partial(threaded.admit, "calm"))
        rows["decide, one request each"] = await time_per_request(client)
    for name, took in rows.items():
        print(f"{name:28} {took:12,.0f} ns {took / rows['admit, calm']:10,.1f} times admit, calm")


async def main() -> None:
    server = EmbeddedServer()
    await server.start()
    try:
        async with await nats.connect(server.url) as nc:
            await measure(nc, server.url)
    finally:
        await server.stop()


if __name__ == "__main__":
    asyncio.run(main())
