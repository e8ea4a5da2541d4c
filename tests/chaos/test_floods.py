"""A flood of forged advisories: changes are seen and published during it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.chaos.conftest import Install
from tests.support.background import meanwhile


async def flood(nc: Any, per_second: int) -> None:
    created = json.dumps({"type": "io.nats.jetstream.advisory.v1.consumer_action", "stream": "ROUTER", "consumer": "x"})
    bodies = [created.encode(), b"{", b"[" * 1000, b"\xff\xfe", b"null"]
    while True:
        for n in range(per_second // 20):
            await nc.publish(f"$JS.EVENT.ADVISORY.CONSUMER.CREATED.ROUTER.c{n % 50}", bodies[n % len(bodies)])
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("n", [1, 2])
async def test_forged_advisories(install: Install, rounds: int, n: int) -> None:
    installation = await install(n)
    async with meanwhile(flood(installation.nc, 5000)):
        for _ in range(rounds):
            await installation.overload()
            await asyncio.sleep(1.0)
            await installation.calm()
    await installation.check()
