"""A sidecar that is stopped or killed during an incident and started again publishes no event about it."""

from __future__ import annotations

from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals

import pytest
from nats.aio.client import Client

from tests.process.waits import FIRES_WITHIN, observed_for
from tests.support.router import drain, publish
from tests.support.servers import NatsServer
from tests.support.sidecar import UNHURRIED, Sidecar, Wire

PAST_ALL_EVIDENCE = 8.0
"""Seconds: longer than a diagnosis needs (5 s if it waits), its minimum duration, and the hold of a latch."""


@pytest.mark.parametrize(
    ("how", "times"),
    [
        pytest.param(SIGKILL, 1, id="killed"),
        pytest.param(SIGKILL, 2, marks=pytest.mark.slow, id="killed twice"),
        pytest.param(SIGTERM, 2, marks=pytest.mark.slow, id="stopped twice"),
    ],
)
async def test_nobody_pulling_survives_a_restart_without_an_event(
    nc: Client, server: NatsServer, router: None, tmp_path: Path, how: Signals, times: int
) -> None:
    wire = await Wire(nc).listen()
    policy = {"subjects": [">"], "stall_seconds": 2, "alert_for_seconds": 0}
    async with Sidecar(tmp_path, server.url, UNHURRIED | {"policies": [policy]}) as process:
        await process.observing()
        await wire.status(status="inactive")
        await publish(nc, 1500)
        await wire.event("alert_firing", seconds=FIRES_WITHIN)
        before, state = await wire.stored(), await wire.state()
        for _ in range(times):
            await process.end(how)
            await process.start()
            await process.observing()
            status = await wire.status(status="active", freshness="known", reasons=["pending", "nobody_pulling"])
            assert status["incident"] == state["incident"]
            await observed_for(wire, PAST_ALL_EVIDENCE)
            status = await wire.status(diagnosis="nobody_pulling")
            assert (status["status"], status["reasons"]) == ("active", ["pending", "nobody_pulling"])
            assert await wire.stored() == before
        await drain(nc, [])
        await wire.status(status="inactive")
        await wire.event("alert_resolved")
        after = [event["type"] for event in (await wire.stored())[len(before) :]]
        assert set(after) == {"recovery", "alert_resolved"} and after.count("alert_resolved") == 1
