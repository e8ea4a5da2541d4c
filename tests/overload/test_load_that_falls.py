"""A load that falls from ten times to half of the capacity, under an adaptive share of a real sidecar: the gateway
sheds hardly anybody who could be served."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client

from nats_backpressure.client import Admission, BackpressureClient
from tests.support.background import meanwhile
from tests.support.router import CONSUMER, work
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, UNHURRIED, Sidecar, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(170)]

CAPACITY = 100
"""Messages per second."""
SHED_AT_MOST = 20
"""Requests, after the load has fallen."""
POLICY = {"subjects": [">"], "admission": {"mode": "adaptive"}}


@pytest.fixture
async def sidecar(nc: Client, server: NatsServer, tmp_path: Path) -> AsyncIterator[Sidecar]:
    await nc.jetstream().add_stream(name="ROUTER", subjects=[SUBJECT])
    await nc.jetstream().add_consumer("ROUTER", CONSUMER)
    async with Sidecar(tmp_path, server.url, UNHURRIED | {"policies": [POLICY]}) as process:
        yield await process.observing()


class Gateway:
    """Asks the client for each request, and publishes those that are admitted."""

    def __init__(self, nc: Client, client: BackpressureClient) -> None:
        self._nc, self._client = nc, client
        self.last: Admission | None = None

    async def offer(self, per_second: float, seconds: float = 1e9) -> None:
        """Evenly. What a busy machine delays is not made up for: together the late ones would be another load."""
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            self.last = self._client.admit(SUBJECT)
            if self.last:
                await self._nc.publish(SUBJECT, b"decide")
            await asyncio.sleep(max(0.0, now + 1 / per_second - time.monotonic()))


async def test_it_is_served_though_the_share_is_still_that_of_the_overload(
    nc: Client, server: NatsServer, sidecar: Sidecar
) -> None:
    async with await nats.connect(server.url) as own, BackpressureClient(own) as client:
        gateway = Gateway(own, client)
        assert await client.watch([SUBJECT], timeout=20)

        async def small_share() -> bool:
            return gateway.last is not None and gateway.last.action != "continue" and gateway.last.admit_ratio < 0.3

        async with meanwhile(work(nc, CAPACITY)):
            async with meanwhile(gateway.offer(10 * CAPACITY)):
                await asyncio.sleep(10)  # the loop of the sidecar needs seconds to settle
                await eventually(small_share, "a small share", 30)
            before, asked = client.stats.shed, client.stats.admitted + client.stats.shed
            assert before > asked / 2
            await gateway.offer(CAPACITY / 2, 10)
        assert client.stats.reports > 10
        assert client.stats.admitted + client.stats.shed - asked > 250, "the load that is left"
        assert client.stats.shed - before <= SHED_AT_MOST
