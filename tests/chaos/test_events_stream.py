"""The events stream is purged, deleted, made again, and full: `seq` has no gap, and no event comes twice."""

from __future__ import annotations

import random
from typing import Any

import pytest
from nats.js.api import DiscardPolicy

from tests.chaos.conftest import Install
from tests.chaos.installation import EVENTS, Installation


async def purge(installation: Installation) -> None:
    await installation.nc.jetstream().purge_stream(EVENTS)


async def delete(installation: Installation) -> None:
    await installation.nc.jetstream().delete_stream(EVENTS)


async def make_small(installation: Installation) -> None:
    """Made again by somebody else, for two messages."""
    js = installation.nc.jetstream()
    config: Any = (await js.stream_info(EVENTS)).config
    config.max_msgs = 2
    await js.delete_stream(EVENTS)
    await js.add_stream(config)


@pytest.mark.parametrize("change", [purge, delete, make_small], ids=lambda change: change.__name__)
@pytest.mark.parametrize("n", [1, 3])
async def test_the_events_stream_loses_its_events(install: Install, rounds: int, change: Any, n: int) -> None:
    installation = await install(n)
    installation.trust_live = True
    for _ in range(rounds):
        await installation.overload()
        await change(installation)
        await installation.calm()
        await change(installation)
    await installation.overload()
    await installation.calm()
    await installation.check()


@pytest.mark.parametrize("n", [1, 2])
async def test_the_events_stream_is_full_for_a_while(install: Install, dice: random.Random, n: int) -> None:
    """What could not be published is published after; with one killed meanwhile."""
    installation = await install(n)
    js = installation.nc.jetstream()
    await installation.overload()
    config: Any = (await js.stream_info(EVENTS)).config
    config.max_msgs, config.discard = 1, DiscardPolicy.NEW
    await js.update_stream(config)
    await installation.calm(seen=False)
    await installation.stored("inactive")
    await installation.overload(seen=False)
    await installation.stored("warning")
    victim = installation[dice.randrange(n)]
    await victim.kill()
    await victim.restart()
    await victim.sidecar.observing()
    config.max_msgs, config.discard = -1, DiscardPolicy.OLD
    await js.update_stream(config)
    await installation.led_to("warning", "active")
    await installation.calm()
    await installation.check()
