"""On a real server a message that a worker returns with a delayed NAK is no stall; a worker that hangs is one."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from nats.aio.client import Client

from tests.process.waits import observed_for
from tests.support.background import meanwhile
from tests.support.router import drain, publish, take
from tests.support.sidecar import SUBJECT, Sidecar, Wire

PAST_THE_MARK = 7.0
"""Seconds after which a stall is above the mark of 5 s."""


async def _pull_on(subscription: Any) -> None:
    """A worker that asks for the next message all the time, and finds none."""
    while True:
        with suppress(TimeoutError):
            for message in await subscription.fetch(1, timeout=1.0):
                await message.ack()


@pytest.mark.parametrize(
    ("after", "pulls"),
    [
        pytest.param(0.0, True, id="at once, pulls on"),
        pytest.param(0.5, False, id="after a while, pulls no more"),
        pytest.param(0.0, False, marks=pytest.mark.slow, id="at once, pulls no more"),
        pytest.param(0.5, True, marks=pytest.mark.slow, id="after a while, pulls on"),
    ],
)
async def test_a_message_returned_with_a_delayed_nak_is_no_stall(
    nc: Client, sidecar: Sidecar, wire: Wire, after: float, pulls: bool
) -> None:
    await publish(nc, 5)
    await drain(nc, [])
    await wire.status(status="inactive", diagnosis="idle")
    await publish(nc, 1)
    (message,) = await take(nc, 1)
    await asyncio.sleep(after)
    await message.nak(delay=120)
    await nc.flush()
    worker = await nc.jetstream().pull_subscribe_bind("router", "ROUTER")
    async with meanwhile(_pull_on(worker)) if pulls else asyncio.timeout(None):
        await observed_for(wire, PAST_THE_MARK)
        status = await wire.ask(f"get.status.{SUBJECT}")
    assert (status["status"], status["metrics"]["stall_ms"]) == ("inactive", 0)
    assert status["metrics"]["inflight_messages"] == 1
    assert await wire.stored() == []


async def test_a_hanging_worker_is_detected_beside_a_message_with_a_delayed_nak(
    nc: Client, sidecar: Sidecar, wire: Wire
) -> None:
    await publish(nc, 2)
    returned, held = await take(nc, 2)
    await returned.nak(delay=120)
    warning = await wire.event("backpressure_warning")
    assert warning["reasons"] == ["latency_p95", "stalled"]
    await held.ack()
    await wire.event("recovery")
