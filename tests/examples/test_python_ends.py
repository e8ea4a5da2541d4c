"""docs/examples/python: each ends by SIGINT and by SIGTERM, without a traceback of its own: with NATS, without, and
where NATS goes away just before."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from nats.aio.client import Client

from tests.examples.conftest import EXAMPLES
from tests.examples.program import Program
from tests.support.servers import NatsServer, free_port
from tests.support.sidecar import STARTS_WITHIN, SUBJECT, WAIT_SECONDS, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(170)]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
EVERY = sorted(path.name for path in (EXAMPLES / "python").glob("*.py"))
STARTED = {
    "faststream_worker.py": ("started successfully", "app starting"),
    "push_worker.py": ("handled", "NATS: "),
}
"""What a worker prints once it works, and once it waits for NATS."""


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def end_one(example: str, how: signal.Signals, server: NatsServer, nats: str, where: Path) -> None:
    port = free_port()
    command = [sys.executable, EXAMPLES / "python" / example, *([str(port)] if "gateway" in example else [])]
    async with Program(where, command, {**os.environ, "NATS_URL": server.url}) as program:
        if example in STARTED:
            await program.printed(STARTED[example][nats == "away"])
        else:
            await eventually(lambda: listens(port), "the port", STARTS_WITHIN)
        if nats == "gone":
            await server.kill()  # harmless when it is gone already
        printed = len(program.output)
        assert await program.end(how) == 0, program.output[-2000:]
        assert program.own_tracebacks(example, printed) == []


@pytest.mark.parametrize("nats", ["there", "away", "gone"])
@pytest.mark.parametrize("example", EVERY)
async def test_it_ends_in_an_orderly_way(
    example: str, nats: str, nc: Client, server: NatsServer, tmp_path: Path
) -> None:
    js = nc.jetstream()
    await js.add_stream(name="ROUTER", subjects=[SUBJECT])
    for how in SIGNALS:
        if nats == "away":
            await server.kill()
        elif how is not SIGNALS[0] and nats == "gone":
            await server.start()
        if nats != "away":
            await js.publish(SUBJECT, b"1", timeout=WAIT_SECONDS)
        await end_one(example, how, server, nats, tmp_path)
