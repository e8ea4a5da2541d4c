"""Links that break, hang, or are slow, with the replica that writes on either side."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.chaos.conftest import Install
from tests.chaos.installation import Installation


async def during(installation: Installation, i: int, how: str, seconds: float) -> None:
    """Replica `i` is cut off over one change."""
    replica = installation[i]
    getattr(replica, how)()
    await asyncio.sleep(seconds)
    replica.heal()


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("how", ["partition", "half_open"])
@pytest.mark.parametrize("which", ["reader", "other"])
async def test_one_replica_is_cut_off(
    install: Install, dice: random.Random, rounds: int, which: str, how: str, n: int
) -> None:
    """The one that reads the stream, or one that receives its readings."""
    if n == 1 and which == "other":
        pytest.skip("a single replica reads")
    installation = await install(n)
    for _ in range(rounds):
        for change in (installation.overload, installation.calm):
            seconds = dice.choice([0.5, 3.0, 12.0])
            reader = await installation.reader()
            victim = reader if which == "reader" else dice.choice([i for i in range(n) if i != reader])
            cutting = asyncio.create_task(during(installation, victim, how, seconds))
            await asyncio.sleep(dice.uniform(0.0, 0.5))
            await change()
            await cutting
    await installation.check()


async def test_the_one_that_published_the_rise_is_cut_off_for_long(install: Install) -> None:
    """A1: nobody else saw the rise, and its writer comes back only after the end."""
    installation = await install(2)
    installation[1].half_open()
    await installation.overload()
    installation[0].partition()
    installation[1].heal()
    await installation.calm()
    installation[0].heal()
    await installation.check()


@pytest.mark.parametrize("n", [1, 3])
async def test_slow_links_with_stalls(install: Install, dice: random.Random, rounds: int, n: int) -> None:
    """300 ms each way, and connections that hang for a second or are reset."""
    installation = await install(n)
    for replica in installation.replicas.values():
        for link in replica.links:
            link.delay = 0.3

    async def stall() -> None:
        while True:
            await asyncio.sleep(dice.uniform(1.0, 4.0))
            replica = dice.choice(list(installation.replicas.values()))
            if dice.random() < 0.3:
                for link in replica.links:
                    link.cut()
            else:
                replica.half_open()
                await asyncio.sleep(dice.uniform(0.2, 1.0))
                replica.heal()

    stalling = asyncio.create_task(stall())
    for _ in range(rounds):
        await installation.overload()
        await asyncio.sleep(1.0)
        await installation.calm()
    stalling.cancel()
    for replica in installation.replicas.values():
        replica.heal()
        for link in replica.links:
            link.delay = 0.0
    await installation.check()
