"""The disk of the server is full for a while: nothing can be stored until it is restarted, and nothing is invented."""

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

LONG_ENOUGH = 3.0
"""Seconds of calm that each replica sees, and judges."""


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
            await asyncio.sleep(LONG_ENOUGH)
            await installation.overload(seen=False)
            await asyncio.sleep(12.0)
            filler.unlink()
            await server.restart()  # until then it takes no message in a stream that it could not write
            await installation.make_stream()
            await installation.led_to("inactive")
            # The second one was never stored, and has ended with the restart.
            installation.overloads, installation.unsure = 1, 1
            await installation.check()
