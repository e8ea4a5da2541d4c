"""A cluster of three nodes: one is killed, leaders move, the majority is lost and comes back."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from tests.chaos.installation import BUCKET, EVENTS, Installation
from tests.support.cluster import Cluster
from tests.support.sidecar import eventually

pytestmark = pytest.mark.timeout(400)

InstallHere = Callable[[int], Awaitable[tuple[Cluster, Installation]]]


@pytest.fixture
async def install_on_cluster(tmp_path: Path) -> AsyncIterator[InstallHere]:
    async with AsyncExitStack() as stack:

        async def start(n: int) -> tuple[Cluster, Installation]:
            cluster = await stack.enter_async_context(Cluster(tmp_path))
            installation = Installation(tmp_path, cluster.ports, n, copies=3)
            return cluster, await stack.enter_async_context(installation)

        yield start


async def test_nodes_are_killed(install_on_cluster: InstallHere, dice: random.Random, rounds: int) -> None:
    cluster, installation = await install_on_cluster(3)
    for _ in range(rounds):
        for change in (installation.overload, installation.calm):
            node = dice.choice(cluster.nodes)
            changing = asyncio.create_task(change())
            await asyncio.sleep(dice.uniform(0.0, 0.3))
            await node.kill()
            await changing
            await node.start()
            await cluster.ready()
    await installation.check()


async def test_leaders_move_all_the_time(install_on_cluster: InstallHere, dice: random.Random, rounds: int) -> None:
    _, installation = await install_on_cluster(3)

    async def step_down() -> None:
        places = [f"STREAM.LEADER.STEPDOWN.{name}" for name in (BUCKET, EVENTS, "ROUTER")]
        places += ["META.LEADER.STEPDOWN", "CONSUMER.LEADER.STEPDOWN.ROUTER.router"]
        while True:
            with suppress(Exception):
                await installation.nc.request(f"$JS.API.{dice.choice(places)}", timeout=1)
            await asyncio.sleep(dice.uniform(0.2, 1.0))

    moving = asyncio.create_task(step_down())
    for _ in range(rounds):
        await installation.overload()
        await installation.calm()
    moving.cancel()
    await installation.check()


async def test_one_node_is_down_for_long(install_on_cluster: InstallHere, dice: random.Random, rounds: int) -> None:
    cluster, installation = await install_on_cluster(2)
    node = dice.choice(cluster.nodes)
    await node.kill()
    for _ in range(rounds):
        await installation.overload()
        await asyncio.sleep(10.0)
        await installation.calm()
    await node.start()
    await cluster.ready()
    await installation.check()


MANY = 300
"""Messages that make a single signal active: gateways refuse."""
REFUSED_FOR = 14.0
"""Seconds after the last proof within which a refusal opens: 10 until it is stale, and the hold; see docs/policy.md."""
NOTICED_WITHIN = 15.0
"""Seconds within which a node that is left notices that it has no majority, and answers no more: 10 or so."""


OPEN = {("continue", "stale"), ("continue", "unknown")}


async def test_the_majority_is_lost_and_comes_back(install_on_cluster: InstallHere, dice: random.Random) -> None:
    """Without it nothing can be written: the last status stays and is marked as old, nothing is invented, and no gate
    stays closed."""
    cluster, installation = await install_on_cluster(2)
    await installation.overload(MANY)
    await installation.stored("active")
    assert {answer and answer["action"] for answer in (await installation.decisions()).values()} == {"reject"}
    events = list(await installation.events())
    away = dice.sample(cluster.nodes, 2)
    lost_at = time.monotonic()
    for node in away:
        await node.kill()
    opened_at = await until_open(installation)
    print(f"opened {opened_at - lost_at:.1f} s after the majority was lost")
    assert opened_at - lost_at <= REFUSED_FOR + NOTICED_WITHIN
    while time.monotonic() - lost_at < 40.0:
        for answer in filter(None, (await installation.decisions()).values()):
            assert (answer["action"], answer["freshness"]) in OPEN, answer
        await asyncio.sleep(1.0)
    assert {event["id"] for event in installation.live} <= {event["id"] for event in events}, "none without a store"
    for node in away:
        await node.start()
    await cluster.ready()
    await installation.calm()
    await installation.check()


async def until_open(installation: Installation) -> float:
    """When no answer refuses any more."""

    async def is_open() -> bool:
        answers = [answer for answer in (await installation.decisions()).values() if answer]
        return bool(answers) and all(answer["action"] == "continue" for answer in answers)

    await eventually(is_open, "an answer that does not refuse", 2 * REFUSED_FOR + NOTICED_WITHIN)
    return time.monotonic()
