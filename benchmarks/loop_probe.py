"""Runs the sidecar with a probe in its event loop, that notes whatever holds the loop longer than 3 ms.

`python -m benchmarks.loop_probe run --config FILE` is `nats-backpressure run --config FILE`. Each hold is a line of
JSON in the file named by BENCH_HOLDS: when it ended (monotonic), and its milliseconds of CPU time and of wall time.
CPU time is the thread's own: it does not count what other processes took on a busy machine.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from nats_backpressure import app
from nats_backpressure.adapters.followed_file import FollowedFile
from nats_backpressure.cli import main
from nats_backpressure.runtime.tasks import cancel_and_wait

VARIABLE = "BENCH_HOLDS"
EVERY = 0.002
"""Seconds between two looks; a free loop looks within this time."""
SHORTEST = 3.0
"""Milliseconds of wall time from which a hold is noted."""


class Hold(Struct, frozen=True):
    at: float
    cpu: float
    wall: float


def holds(path: Path, since: float) -> list[Hold]:
    """The holds that ended since a monotonic time."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [hold for line in lines if (hold := msgspec.json.decode(line, type=Hold)).at >= since]


async def probe(path: Path) -> None:
    with path.open("ab", buffering=0) as file:
        wall, cpu = time.monotonic(), time.thread_time()
        while True:
            await asyncio.sleep(EVERY)
            now, spent = time.monotonic(), time.thread_time()
            hold = Hold(now, 1000 * (spent - cpu), 1000 * (now - wall - EVERY))
            if hold.wall >= SHORTEST:
                file.write(msgspec.json.encode(hold) + b"\n")
            wall, cpu = now, spent


async def _run_with_probe(self: app.App, stop: asyncio.Event, file: FollowedFile) -> None:
    task = asyncio.create_task(probe(Path(os.environ[VARIABLE])))
    try:
        await _run(self, stop, file)
    finally:
        await cancel_and_wait([task])


_run = app.App.run

if __name__ == "__main__":
    app.App.run = _run_with_probe  # type: ignore[method-assign]
    main()
