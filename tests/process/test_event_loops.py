"""With uvloop and without it the process observes, answers, finds the server again, and ends in time at a signal."""

from __future__ import annotations

import importlib.util
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig

from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, UNHURRIED, Sidecar, Wire

LOOPS = ["uvloop", "asyncio"]
HIDDEN = "import sys; sys.modules['uvloop'] = None\n"


def test_the_tests_have_uvloop() -> None:
    assert importlib.util.find_spec("uvloop") is not None, "the extra `speed` is part of `dev`"


async def with_loop(tmp_path: Path, server: NatsServer, loop: str) -> Sidecar:
    """A sidecar that finds uvloop, or one that finds none."""
    sidecar = Sidecar(tmp_path, server.url, UNHURRIED | {"policies": [{"subjects": [">"], "stall_seconds": 3600}]})
    if loop == "asyncio":
        (tmp_path / "sitecustomize.py").write_text(HIDDEN)
        sidecar.environment["PYTHONPATH"] = str(tmp_path)
    return sidecar


def logged(sidecar: Sidecar, event: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, sidecar.log.splitlines()) if line["event"] == event]


@pytest.mark.parametrize("loop", LOOPS)
async def test_it_observes_answers_and_reconnects(nc: Client, server: NatsServer, tmp_path: Path, loop: str) -> None:
    js = nc.jetstream()
    await js.add_stream(name="ROUTER", subjects=[SUBJECT])
    await js.add_consumer("ROUTER", ConsumerConfig(durable_name="router", ack_policy=AckPolicy.EXPLICIT))
    async with await with_loop(tmp_path, server, loop) as sidecar:
        await sidecar.observing()
        assert [line["loop"] for line in logged(sidecar, "started")] == [loop]
        wire = Wire(nc)
        for _ in range(1500):
            await nc.publish(SUBJECT, b"x")
        await wire.status(status="warning")
        assert (await wire.ask(f"decide.gateway.{SUBJECT}"))["status"] == "warning"
        assert (await wire.ask(f"decide.consumer.{SUBJECT}"))["pull"]["max_messages"] > 0
        await server.kill()
        await server.start()
        await sidecar.ready(nats="connected")
        await wire.status(status="warning", freshness="known")
        assert (await sidecar.end())[0] == 0
        assert not logged(sidecar, "loop.crashed") and logged(sidecar, "stopped")


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_in_time_also_when_the_server_hangs(
    server: NatsServer, tmp_path: Path, loop: str, how: signal.Signals
) -> None:
    async with await with_loop(tmp_path, server, loop) as sidecar:
        await sidecar.observing()
        server.pause()
        try:
            code, _ = await sidecar.end(how)
        finally:
            server.resume()
        assert code == 0
