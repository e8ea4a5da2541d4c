"""A replica that watches less than another one, as processes: it answers for the rest what the other one stores."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from nats_backpressure.client import BackpressureClient
from tests.process.waits import observed_for
from tests.support.router import CONSUMER, prepare
from tests.support.servers import NatsServer
from tests.support.sidecar import QUICK, Sidecar, Wire, eventually

POLICY = {
    "subjects": [">"],
    "pending": {"warn": 1, "critical": 2, "overload": 20},
    "drain_seconds": {"overload": 1_000_000},
    "recovery_hold_seconds": 0.2,
}
HOLD, UNKNOWN = 8.0, 6.0
WIDE = QUICK | {
    "policies": [POLICY | {"hold_seconds": HOLD}],
    "observe": QUICK["observe"] | {"stale_after_seconds": UNKNOWN / 2, "unknown_after_seconds": UNKNOWN},
}
NARROW = WIDE | {"watch": [{"stream": "ROUTER"}]}
OTHER = "other.x"
"""Of a stream that only the wide one watches."""
MANY = 40
"""Requests, of which each replica surely answers some."""
WARNING, ACTIVE = 60, 600
"""Messages above the mark, and so many above it that they are an overload by themselves."""


@pytest.fixture
async def two(tmp_path: Path, server: NatsServer, nc: Client, router: None) -> AsyncIterator[list[Sidecar]]:
    js = nc.jetstream()
    await prepare(lambda: js.add_stream(name="OTHER", subjects=[OTHER]))
    await prepare(lambda: js.add_consumer("OTHER", CONSUMER))
    async with AsyncExitStack() as stack:
        sidecars = []
        for name, config in (("wide", WIDE), ("narrow", NARROW)):
            sidecar = Sidecar(tmp_path, server.url, config | {"instance": name})
            sidecars.append(await (await stack.enter_async_context(sidecar)).observing())
        yield sidecars


async def decisions(sidecar: Sidecar) -> float:
    """How many it made about the subject."""
    _, page = await sidecar.get("/metrics")
    lines = [line for line in page.splitlines() if line.startswith("router_backpressure_decisions_total{")]
    return sum(float(line.split()[-1]) for line in lines if f'subject="{OTHER}"' in line)


async def answers(wire: Wire) -> set[tuple[Any, ...]]:
    asked = [await wire.ask(f"decide.gateway.{OTHER}") for _ in range(MANY)]
    return {(one["status"], one["action"], one["freshness"], one["incident"]) for one in asked}


async def load(nc: Client, n: int) -> None:
    for _ in range(n):
        await nc.publish(OTHER, b"")
    await nc.flush()


async def drain(nc: Client) -> None:
    js = nc.jetstream()
    subscription = await js.pull_subscribe_bind(CONSUMER.durable_name, "OTHER")
    while (await js.consumer_info("OTHER", CONSUMER.durable_name or "")).num_pending:
        for message in await subscription.fetch(100, timeout=5):
            await message.ack()
    await subscription.unsubscribe()


@pytest.mark.slow
async def test_both_answer_for_what_only_one_watches(nc: Client, two: list[Sidecar], wire: Wire) -> None:
    wide, narrow = two
    for n, event, status, action in (
        (WARNING, "backpressure_warning", "warning", "continue"),
        (ACTIVE, "backpressure_active", "active", "reject"),
    ):
        await load(nc, n)
        incident = (await wire.event(event))["incident"]
        await observed_for(wire, 1.0)
        assert await answers(wire) == {(status, action, "known", incident)}
        await drain(nc)
        await wire.event("recovery", 1 if event == "backpressure_warning" else 2)
        await observed_for(wire, 1.0)
        assert await answers(wire) == {("inactive", "continue", "known", None)}
    assert min(await decisions(wide), await decisions(narrow)) > 0
    for line in ("consumer.out", "stream.gone", "policies.differ", "replicas.differ", "state.conflict"):
        assert f'"{line}"' not in narrow.log, line


@pytest.mark.slow
async def test_without_the_one_that_watches_it_the_other_one_answers_that_it_is_unknown(
    nc: Client, two: list[Sidecar], wire: Wire
) -> None:
    wide, _ = two
    await load(nc, ACTIVE)
    await wire.event("backpressure_active")
    await observed_for(wire, 10.0 + 2 * HOLD)  # the alert is stored, and then nothing for longer than a refusal holds
    async with BackpressureClient(nc, report_every=None) as gateway:
        assert await gateway.watch([OTHER])
        await wide.kill()
        until = time.monotonic() + HOLD - 1.5  # a report of presence comes once a second
        while time.monotonic() < until:
            assert {one[1] for one in await answers(wire)} == {"reject"}
            assert gateway.admit(OTHER).action == "reject"

    async def is_unknown() -> bool:
        return {one[:3] for one in await answers(wire)} == {("unknown", "continue", "unknown")}

    await eventually(is_unknown, "the refusal to end, and the answer to be unknown")
    await wire.event("monitoring_lost")
    assert (await wire.state(OTHER))["status"] == "unknown"
    await wide.start()
    await wide.observing()
    await wire.event("monitoring_restored")
    await drain(nc)
    await wire.event("recovery")
    await observed_for(wire, 1.0)
    assert await answers(wire) == {("inactive", "continue", "known", None)}
