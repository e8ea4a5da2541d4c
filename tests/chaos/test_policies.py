"""Replicas whose files differ, as in a rolling change: one change of the status, not one for each reading."""

from __future__ import annotations

import asyncio

import pytest

from tests.chaos.conftest import Install
from tests.chaos.installation import FAST, Installation
from tests.support.background import meanwhile
from tests.support.event_checks import STATUS_EVENTS

OTHER = FAST | {"pending": {"warn": 5, "critical": 10, "overload": 200}}
BETWEEN = 90
"""Messages: above the mark of one, below that of the other."""


async def wave(installation: Installation) -> None:
    """The backlog moves, and stays between the marks."""
    while True:
        await installation.publish(10)
        await asyncio.sleep(0.3)
        await installation.work(leave=BETWEEN)


@pytest.mark.parametrize("moving", [True, False], ids=["moving", "still"])
async def test_two_policies_do_not_flap(install: Install, moving: bool) -> None:
    """A3: with the backlog between their marks for 20 s, the status changes once: to what the first one judges."""
    installation = await install(1)
    other = await installation.add("i1", policies=[OTHER])
    await other.sidecar.observing()
    await installation.overload(BETWEEN)
    async with meanwhile(*([wave(installation)] if moving else [])):
        await asyncio.sleep(20.0)
    changes = [event for event in await installation.events() if event["type"] in STATUS_EVENTS]
    assert len(changes) == 1, await installation.report()
    await installation.agree()
    await installation.calm()
    await installation.check()


async def test_a_rolling_change_of_the_file_is_one_change(install: Install) -> None:
    """Each replica in turn is stopped and started with the new file."""
    installation = await install(3)
    await installation.overload(BETWEEN)
    await installation.agree()
    async with meanwhile(wave(installation)):
        for i in range(3):
            await installation[i].terminate()
            installation[i].sidecar.configure({"instance": f"i{i}", **installation.config, "policies": [OTHER]})
            await installation[i].restart()
            await installation[i].sidecar.observing()
        await installation.led_to("inactive")
    changes = [event for event in await installation.events() if event["type"] in STATUS_EVENTS]
    assert len(changes) == 2, await installation.report()
    await installation.check()
