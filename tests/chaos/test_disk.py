"""The disk of the server is full for a while: nothing can be stored, and nothing is invented."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from nats.js.api import StorageType, StreamConfig

from tests.chaos.installation import Installation
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a disk of 24 MB, which needs the right to mount."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(path)]
    if mount is None or os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("missing part: the right to mount")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=False)


async def test_a_full_disk(small_disk: Path) -> None:
    memory = StreamConfig(name="ROUTER", subjects=[SUBJECT], storage=StorageType.MEMORY)
    async with NatsServer(small_disk) as server:
        async with Installation(small_disk.parent, [server.port or 0], 2, stream=memory) as installation:
            await installation.overload()
            filler = small_disk / "filler"
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(65536)):
                    pass
            await installation.calm(seen=False)
            await installation.overload(seen=False)
            await asyncio.sleep(12.0)
            filler.unlink()
            await installation.calm()
            # What changed while nothing could be stored may not have been seen.
            installation.overloads = len({event["incident"] for event in await installation.events()})
            await installation.check()
