"""Two sidecars on one server: the ack metrics that the reader of a stream receives show at the other one too, which may
not subscribe to them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from nats.js.api import ConsumerConfig

from tests.conftest import StartServer
from tests.support.router import prepare
from tests.support.servers import NatsServer
from tests.support.sidecar import Sidecar, eventually

USERS = """accounts { A { jetstream: enabled, users: [
  {user: all, password: p}, {user: blind, password: p, permissions: {subscribe: {deny: "$JS.EVENT.>"}}}] } }"""
CONFIG = {
    "observe": {"min_interval_ms": 100},
    # It is hot all the time: the mark is below what waits.
    "policies": [{"subjects": [">"], "pending": {"warn": 1, "critical": 1, "overload": 1}}],
}
MESSAGES, ACKED = 60, 40


@pytest.fixture
async def server(start_server: StartServer) -> NatsServer:
    return await start_server(USERS)


@pytest.fixture
async def nc(server: NatsServer) -> AsyncIterator[Client]:
    client = await nats.connect(server.url, user="all", password="p")
    js = client.jetstream()
    await prepare(lambda: js.add_stream(name="A", subjects=["a.>"]))
    config = ConsumerConfig(durable_name="worker", ack_policy="explicit", sample_freq="100%", filter_subject="a.x")
    await prepare(lambda: js.add_consumer("A", config))
    for _ in range(MESSAGES):
        await js.publish("a.x", b"")
    yield client
    await client.close()


@pytest.fixture
async def two(tmp_path: Path, server: NatsServer, nc: Client) -> AsyncIterator[list[Sidecar]]:
    """The first one reads: one that is newer does not take its place for a minute."""
    async with AsyncExitStack() as stack:
        sidecars = []
        for name, user in (("first", "all"), ("blind", "blind")):
            url = server.url.replace("://", f"://{user}:p@")
            sidecars.append(await stack.enter_async_context(Sidecar(tmp_path, url, CONFIG | {"instance": name})))
            await sidecars[-1].observing()
        yield sidecars


async def latency(sidecar: Sidecar) -> list[str]:
    _, page = await sidecar.get("/metrics")
    return [line for line in page.splitlines() if line.startswith("router_backpressure_latency_seconds{")]


async def test_both_show_the_latency_that_the_reader_measured(two: list[Sidecar], nc: Client) -> None:
    async def read_by_the_first() -> bool:
        reads = [(await sidecar.ready())["reads"] for sidecar in two]
        present = [sidecar.log.count("replica.present") > 0 for sidecar in two]
        return reads[0] >= 1 and not any(reads[1:]) and all(present)

    await eventually(read_by_the_first, "the first one to read all")
    work = await nc.jetstream().pull_subscribe_bind("worker", "A")
    for message in await work.fetch(ACKED, timeout=5):
        await message.ack_sync()

    shown: list[list[str]] = []

    async def the_same() -> bool:
        shown[:] = [await latency(sidecar) for sidecar in two]
        return len(shown[0]) == 3 and shown[0] == shown[1]

    await eventually(the_same, "the same quantiles at both")
