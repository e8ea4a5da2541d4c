"""The watched stream and consumer are deleted, made again and purged."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.chaos.conftest import Install


@pytest.mark.parametrize("n", [1, 2])
async def test_a_consumer_that_is_deleted_in_an_incident_and_comes_back(install: Install, n: int) -> None:
    installation = await install(n)
    await installation.overload()
    await installation.nc.jetstream().delete_consumer("ROUTER", "router")
    await installation.published("monitoring_lost")
    await installation.agree()
    await installation.make_consumer()
    await installation.published("monitoring_restored")
    await installation.calm()
    await installation.check()


@pytest.mark.parametrize("n", [1, 2])
async def test_a_stream_that_is_deleted_in_an_incident_and_comes_back_empty(
    install: Install, dice: random.Random, rounds: int, n: int
) -> None:
    """A2 as well: the new stream is calm, and nobody publishes a second rise."""
    installation = await install(n)
    for _ in range(rounds):
        await installation.overload()
        await installation.nc.jetstream().delete_stream("ROUTER")
        await asyncio.sleep(dice.choice([0.0, 0.5, 5.0]))
        await installation.make_stream()
        await installation.led_to("inactive")
    await installation.check()


@pytest.mark.parametrize("n", [1, 3])
async def test_a_purge_ends_an_incident(install: Install, rounds: int, n: int) -> None:
    installation = await install(n)
    for _ in range(rounds):
        await installation.overload()
        await installation.nc.jetstream().purge_stream("ROUTER")
        await installation.led_to("inactive")
        assert "purged" in (await installation.events())[-1]["reasons"]
    await installation.check()
