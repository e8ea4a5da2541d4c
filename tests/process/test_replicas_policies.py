"""Replicas whose settings files differ, as processes: one truth, no flapping, and one change when the last one went."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from tests.process.waits import observed_for
from tests.support.router import drain, publish
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, UNHURRIED, Sidecar, Wire, eventually

BETWEEN = 90
"""Messages above the mark of LOW and below that at which HIGH releases."""


def file(overload: int) -> dict[str, Any]:
    marks = {"warn": 1, "critical": 2, "overload": overload}
    quick = {"recovery_hold_seconds": 0.2, "alert_on_active": False}
    pending_only = {"drain_seconds": {"overload": 1_000_000}, "stall_seconds": 3600}
    return UNHURRIED | {"policies": [{"subjects": [SUBJECT], "pending": marks, **quick, **pending_only}]}


LOW, HIGH = file(20), file(200)


class Fleet:
    def __init__(self, where: Path, url: str, stack: AsyncExitStack) -> None:
        self._where, self._url, self._stack = where, url, stack

    async def start(self, name: str, config: dict[str, Any]) -> Sidecar:
        sidecar = Sidecar(self._where, self._url, config | {"instance": name})
        await self._stack.enter_async_context(sidecar)
        return await sidecar.observing()


@pytest.fixture
async def fleet(tmp_path: Path, server: NatsServer, router: None) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        yield Fleet(tmp_path, server.url, stack)


async def judged_otherwise(sidecar: Sidecar) -> float:
    _, page = await sidecar.get("/metrics")
    line = next(line for line in page.splitlines() if 'dropped_total{what="judged_otherwise"}' in line)
    return float(line.split()[-1])


async def all_show(status: int, *sidecars: Sidecar) -> None:
    """Each of them has this status, whichever it judges itself."""

    async def agree() -> bool:
        pages = [(await sidecar.get("/metrics"))[1] for sidecar in sidecars]
        return all(f'router_backpressure_status{{subject="{SUBJECT}"}} {status}.0\n' in page for page in pages)

    await eventually(agree, f"all to show {status}")


async def test_two_files_make_one_truth_and_a_rolling_change_makes_one_change(
    nc: Client, fleet: Fleet, wire: Wire
) -> None:
    old = await fleet.start("old", LOW)
    await publish(nc, BETWEEN)
    await wire.event("backpressure_warning")
    new = await fleet.start("new", HIGH)

    async def differs() -> bool:
        return await judged_otherwise(new) == 1

    await eventually(differs, "the new one to count that it judges otherwise")
    for _ in range(40):
        assert (await wire.ask(f"decide.gateway.{SUBJECT}"))["status"] == "warning"
    await observed_for(wire, 3.0)
    assert [event["type"] for event in await wire.stored()] == ["backpressure_warning"]
    await drain(nc, [])
    await wire.event("recovery")
    await all_show(0, old, new)
    await publish(nc, BETWEEN)
    await wire.event("backpressure_warning", 2)
    await all_show(1, old, new)
    assert await judged_otherwise(old) == 0
    assert new.log.count('"policies.differ"') == 1

    await old.end()
    await wire.event("recovery", 2)
    old.configure(HIGH | {"instance": "old"})
    await old.start()
    await old.observing()
    await observed_for(wire, 2.0)
    for _ in range(20):
        assert (await wire.ask(f"decide.gateway.{SUBJECT}"))["status"] == "inactive"
    assert [event["type"] for event in await wire.stored()] == 2 * ["backpressure_warning", "recovery"]
