"""Wall clocks that differ by minutes, and jump over a restart: no event comes from the time of day, and an override
ends at all replicas at the same moment."""

from __future__ import annotations

import random
import time
from pathlib import Path

from nats_backpressure.protocol.timestamps import parse_rfc3339
from tests.chaos.installation import Installation
from tests.support.parts import need_command
from tests.support.router import override
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, eventually

LASTS = 8.0
"""Seconds of an override."""


def clock(file: Path, offset: str) -> dict[str, str]:
    """The environment of a process whose time of day is what the file says."""
    need_command("faketime")
    file.write_text(offset)
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_CACHE_DURATION": "1",
        # Both names: that of the library's older versions, and that of its newer ones.
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


async def test_clocks_that_differ_and_jump(
    server: NatsServer, tmp_path: Path, dice: random.Random, rounds: int
) -> None:
    async with Installation(tmp_path, [server.port or 0], 0) as installation:
        files = [tmp_path / f"clock-{i}" for i in range(3)]
        for i, (file, offset) in enumerate(zip(files, ("+0s", "+600s", "-600s"), strict=True)):
            replica = await installation.add(f"i{i}", clock(file, offset))
            await replica.sidecar.observing()
        for _ in range(rounds):
            for change in (installation.overload, installation.calm):
                await change()
                i = dice.randrange(3)
                victim = installation[i]
                await victim.kill()
                files[i].write_text(dice.choice(["+3600s", "-3600s", "+0s"]))
                await victim.restart()
                await victim.sidecar.observing()
        await overridden(installation)
        await installation.check()


async def overridden(installation: Installation) -> None:
    """An override begins and ends, in what all replicas answer and in what is stored."""

    async def shown() -> set[bool]:
        state, answers = await installation.state(), (await installation.decisions()).values()
        reasons = {answer is not None and "override" in answer["reasons"] for answer in answers}
        return {*reasons, state is not None and state["override"] is not None}

    async def everywhere() -> bool:
        return await shown() == {True}

    async def nowhere() -> bool:
        return await shown() == {False}

    until = parse_rfc3339((await override(installation.nc, SUBJECT, "reject", LASTS))["until"]) or 0.0
    await eventually(everywhere, "the override to be in force everywhere", LASTS)
    await eventually(nowhere, "the override to be over everywhere", LASTS + 15)
    assert time.time() >= until
