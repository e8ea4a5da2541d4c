"""One nats-server that is killed, restarted, suspended, drained of clients, or comes back with an older store."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Awaitable, Callable

import pytest

from tests.chaos.conftest import Install
from tests.support.servers import NatsServer

Fault = Callable[[NatsServer, random.Random], Awaitable[None]]


async def killed(server: NatsServer, dice: random.Random) -> None:
    await server.kill()
    await asyncio.sleep(dice.uniform(0.0, 3.0))
    await server.start()


async def restarted(server: NatsServer, dice: random.Random) -> None:
    await server.restart()


async def suspended(server: NatsServer, dice: random.Random) -> None:
    server.pause()
    await asyncio.sleep(dice.choice([0.5, 2.0, 8.0]))
    server.resume()


async def lame_duck(server: NatsServer, dice: random.Random) -> None:
    """It closes its clients one by one, and ends."""
    server.lame_duck()
    await asyncio.sleep(dice.uniform(1.0, 6.0))
    await server.restart()


FAULTS: dict[str, Fault] = {
    "killed": killed,
    "restarted": restarted,
    "suspended": suspended,
    "lame duck": lame_duck,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("n", [1, 3])
async def test_a_server_that_is_away_for_a_while(
    install: Install, server: NatsServer, dice: random.Random, rounds: int, fault: Fault, n: int
) -> None:
    installation = await install(n, purges=True)
    for _ in range(rounds):
        for change in (installation.overload, installation.calm):
            changing = asyncio.create_task(change())
            await asyncio.sleep(dice.uniform(0.0, 0.3))
            await fault(server, dice)
            await changing
    await installation.check()


@pytest.mark.parametrize("n", [1, 2])
async def test_a_store_that_is_lost(install: Install, server: NatsServer, n: int) -> None:
    """All streams are gone: what is true now is published again, in a stream that begins anew."""
    installation = await install(n)
    await installation.overload()
    await server.stop()
    shutil.rmtree(server.directory / "store")
    await server.start()
    await installation.make_stream()
    await installation.led_to("inactive")
    await installation.stored("inactive")
    installation.overloads, installation.unsure = 0, 1
    await installation.overload()
    await installation.calm()
    await installation.check()


@pytest.mark.parametrize("active", [False, True], ids=["calm then", "in an incident then"])
@pytest.mark.parametrize("n", [1, 2])
async def test_a_store_of_an_hour_ago(install: Install, server: NatsServer, n: int, active: bool) -> None:
    """The server goes back to an older store; `created` shows nothing of it. No id is given twice."""
    installation = await install(n)
    await installation.overload()
    await installation.calm()
    if active:
        await installation.overload()
    await server.stop()
    older = server.directory / "older"
    shutil.copytree(server.directory / "store", older)
    await server.start()
    await (installation.calm if active else installation.overload)()
    seen = [event["id"] for event in await installation.events()]
    await server.stop()
    shutil.rmtree(server.directory / "store")
    older.rename(server.directory / "store")
    await server.start()
    installation.forget_events()
    # What waits in the older store is true again.
    before = [event["id"] for event in await installation.events()]
    # One that went on, or whose end is forgotten, may be published again.
    installation.overloads, installation.unsure = (2 if active else 1), 1
    await installation.agree()
    await installation.calm()
    await installation.overload()
    await installation.calm()
    await installation.check()
    new = [event["id"] for event in await installation.events() if event["id"] not in before]
    assert not set(new) & set(seen), await installation.report()
