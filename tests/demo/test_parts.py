"""One process of the demo by itself: the router creates what it needs, and ends on SIGTERM."""

from __future__ import annotations

import asyncio
import os
import sys

from nats.aio.client import Client
from nats.js.errors import NotFoundError

from nats_backpressure.demo.scenario import CONSUMER, STREAM
from tests.support.servers import NatsServer
from tests.support.sidecar import eventually


async def test_the_router_creates_its_stream_works_and_ends_on_sigterm(server: NatsServer, nc: Client) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nats_backpressure.demo.parts", "router"), env={**os.environ, "NATS_URL": server.url}
    )
    try:

        async def pulls() -> bool:
            try:
                return bool((await nc.jetstream().consumer_info(STREAM, CONSUMER)).num_waiting)
            except NotFoundError:
                return False

        await eventually(pulls, "a pull of the router", seconds=60)
        process.terminate()
        async with asyncio.timeout(20):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
