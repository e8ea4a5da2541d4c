"""Wall clocks that differ by minutes, and jump over a restart: no event comes from the time of day."""

from __future__ import annotations

import random
from pathlib import Path

from tests.chaos.installation import Installation
from tests.support.parts import need_command
from tests.support.servers import NatsServer


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
        await installation.check()
