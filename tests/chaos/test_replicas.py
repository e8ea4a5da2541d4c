"""Replicas that are killed, suspended or stopped at any moment: each overload is one incident, and all agree after."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from tests.chaos.conftest import Install
from tests.chaos.installation import FAST, Installation, Replica
from tests.support.background import meanwhile
from tests.support.event_checks import MONITORING_EVENTS, STATUS_EVENTS, counted

Strike = Callable[[Replica, random.Random], Awaitable[None]]


async def kill(replica: Replica, dice: random.Random) -> None:
    await replica.kill()
    await asyncio.sleep(dice.uniform(0.0, 1.0))
    await replica.restart()


async def terminate(replica: Replica, dice: random.Random) -> None:
    await replica.terminate()
    await asyncio.sleep(dice.uniform(0.0, 1.0))
    await replica.restart()


async def suspend(replica: Replica, dice: random.Random) -> None:
    replica.sidecar.pause()
    try:
        await asyncio.sleep(dice.choice([0.3, 1.0, 3.0, 8.0]))
    finally:
        if replica.sidecar.alive:
            replica.sidecar.resume()


STRIKES: dict[str, tuple[Strike, ...]] = {
    "kill": (kill,),
    "suspend": (suspend,),
    "all": (kill, suspend, terminate),
}


async def strikes(installation: Installation, dice: random.Random, kinds: tuple[Strike, ...], n: int) -> None:
    """Strike `n` times within some two seconds."""
    for _ in range(n):
        await asyncio.sleep(dice.uniform(0.0, 1.0))
        replica = dice.choice(list(installation.replicas.values()))
        if replica.sidecar.alive:
            await dice.choice(kinds)(replica, dice)


@pytest.mark.parametrize("kinds", STRIKES.values(), ids=STRIKES)
@pytest.mark.parametrize("n", [1, 3])
async def test_strikes_at_any_moment(
    install: Install, dice: random.Random, rounds: int, kinds: tuple[Strike, ...], n: int
) -> None:
    installation = await install(n)
    for _ in range(rounds):
        for change in (installation.overload, installation.calm):
            striking = asyncio.create_task(strikes(installation, dice, kinds, 2))
            await change()
            await striking
    await installation.check()


LONG = 40.0
"""Seconds: longer than `unknown_after_seconds`, and than any other limit of a replica that runs."""


@pytest.mark.parametrize("over", ["the rise", "the fall"])
@pytest.mark.parametrize("n", [1, 3])
async def test_one_that_is_suspended_for_longer_than_any_limit(install: Install, n: int, over: str) -> None:
    """The one that reads and writes. It adds nothing when it goes on; alone it publishes late what it finds then, and
    may say that nobody watched."""
    installation = await install(n)
    if over == "the fall":
        await installation.overload()
    suspended = installation[await installation.reader()]
    suspended.sidecar.pause()
    try:
        await (installation.overload if over == "the rise" else installation.calm)(seen=n > 1)
        await asyncio.sleep(LONG)
    finally:
        suspended.sidecar.resume()
    await installation.led_to("warning" if over == "the rise" else "inactive")
    await installation.agree()
    if over == "the rise":
        await installation.calm()
    await installation.check()
    assert n == 1 or not [event for event in await installation.events() if event["type"] in MONITORING_EVENTS]


@pytest.mark.parametrize("leaves", ["kill", "terminate"])
async def test_an_incident_that_only_one_saw_is_closed_by_another(install: Install, leaves: str) -> None:
    """A1: the one that published the rise is gone; the other was suspended meanwhile."""
    installation = await install(2)
    writer, other = installation[0], installation[1]
    other.sidecar.pause()
    await installation.overload()
    await getattr(writer, leaves)()
    await installation.work()
    other.sidecar.resume()
    await installation.led_to("inactive")
    await installation.check()


async def test_a_peak_between_two_readings_of_the_other(install: Install, dice: random.Random) -> None:
    """A1 without a fault: replicas that read rarely, a short peak, and a scale-down."""
    installation = await install(2, observe={"min_interval_ms": 2500})
    await asyncio.sleep(dice.uniform(0.0, 2.5))
    await installation.overload()
    await installation[0].terminate()
    await installation.work()
    await installation.led_to("inactive")
    await installation.check()


@pytest.mark.parametrize("n", [2, 3])
async def test_one_that_releases_late_publishes_no_second_incident(
    install: Install, dice: random.Random, rounds: int, n: int
) -> None:
    """A2: suspended over the fall, with a hold of a second."""
    installation = await install(n, policy=FAST | {"recovery_hold_seconds": 1.0})
    for _ in range(rounds):
        await installation.overload()
        await asyncio.sleep(dice.uniform(0.2, 1.0))
        late = installation[n - 1]
        late.sidecar.pause()
        await installation.calm()
        await asyncio.sleep(dice.uniform(0.5, 3.0))
        late.sidecar.resume()
        await asyncio.sleep(3.0)
    await installation.check()


async def counters_add_up(installation: Installation) -> None:
    """With no process that has ended, and no answer lost: each event and each change is counted by one replica."""
    events = await installation.events()
    assert await installation.counter("router_backpressure_events_total", "event_type") == Counter(
        event["type"] for event in events
    )
    moves = Counter(event["to"] for event in events if event["type"] in STATUS_EVENTS)
    # From unknown to inactive is the first change of all, and no event.
    assert await installation.counter("router_backpressure_transitions_total", "to") == moves + Counter(["inactive"])


async def test_event_counts_are_the_same_at_all_replicas(install: Install, rounds: int) -> None:
    """A6: windows count what others published."""
    installation = await install(3)
    for _ in range(rounds):
        await installation.overload()
        await installation.calm()
    await installation.check()
    expected = {"backpressure_active": 0, "backpressure_warning": rounds, "recovery": rounds}
    assert counted(await installation.events()) == expected
    await counters_add_up(installation)


async def test_a_load_without_faults(install: Install, dice: random.Random, rounds: int) -> None:
    """The truth of the other tests: with nobody struck."""
    installation = await install(3)
    for _ in range(2 * rounds):
        await installation.overload()
        async with meanwhile(installation.publish(dice.randrange(20))):
            await asyncio.sleep(dice.uniform(0.0, 1.0))
        await installation.calm()
    await installation.check()
    await counters_add_up(installation)
