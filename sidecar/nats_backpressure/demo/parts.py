"""One process of the demo by itself, for containers: `python3 -m nats_backpressure.demo.parts router|gateway|load`.

The NATS server is the one of NATS_URL. The load generator asks a gateway on its own machine (or pod), and repeats a
minute of calm, a minute of three times what the router can do, and a minute of calm.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final

import nats

from nats_backpressure.demo import gateway, router
from nats_backpressure.demo.load_generator import LoadGenerator
from nats_backpressure.demo.scenario import Scenario
from nats_backpressure.demo.stream import create_stream

PORT: Final = 8080
SCENARIO: Final = Scenario(overload=3, seconds=60, calm=60)


async def run_router(url: str) -> None:
    async with await nats.connect(url) as nc:
        await create_stream(nc.jetstream(), SCENARIO)
    await router.main(SCENARIO, url, report=False)


async def run_gateway(url: str) -> None:
    await gateway.main(SCENARIO, url, page="", port=PORT, host="0.0.0.0")


async def run_load(url: str) -> None:
    while True:
        await LoadGenerator(SCENARIO, PORT).run()


PARTS: Final = {"router": run_router, "gateway": run_gateway, "load": run_load}


async def until_sigterm(work: Coroutine[Any, Any, None]) -> None:
    """The first process of a container ignores SIGTERM unless it handles it."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with suppress(asyncio.CancelledError):
        await task


if __name__ == "__main__":
    asyncio.run(until_sigterm(PARTS[sys.argv[1]](os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))))
