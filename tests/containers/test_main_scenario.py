"""The README example with the shipped image: a burst, a rejection and the recovery, seen only from outside."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig

from tests.containers.containers import Pair
from tests.support.sidecar import SUBJECT, Wire

pytestmark = [pytest.mark.containers, pytest.mark.timeout(500)]

DURABLE = "router_decide_consumer"


@pytest.fixture
async def nc(pair: Pair) -> AsyncIterator[Client]:
    async with asyncio.timeout(20):
        while True:
            try:
                client = await nats.connect(pair.nats_url, allow_reconnect=False)
                break
            except (OSError, nats.errors.Error):
                await asyncio.sleep(0.05)
    yield client
    await client.close()


@pytest.mark.parametrize("interrupted", [False, True], ids=["undisturbed", "sidecar killed while active"])
async def test_a_burst_is_rejected_and_its_recovery_is_published(pair: Pair, nc: Client, interrupted: bool) -> None:
    js = nc.jetstream()
    await js.add_stream(name="ROUTER", subjects=[SUBJECT])
    consumer = ConsumerConfig(
        durable_name=DURABLE,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=300,
        max_ack_pending=1000,
        filter_subject=SUBJECT,
    )
    await js.add_consumer("ROUTER", consumer)
    assert (await pair.until_ready(observing=True))["nats"] == "connected"
    wire = await Wire(nc).listen()

    await asyncio.gather(*(js.publish(SUBJECT, b"decide") for _ in range(2100)))
    router = await js.pull_subscribe_bind(durable=DURABLE, stream="ROUTER")
    held = await _take(router, 600)

    active = await wire.event("backpressure_active")
    assert (active["subject"], active["to"]) == (SUBJECT, "active")
    assert {"pending", "inflight"} <= set(active["reasons"])
    await wire.status(status="active", freshness="known")
    decision = await wire.ask(f"decide.gateway.{SUBJECT}", {"attempt": 1})
    assert (decision["status"], decision["action"], decision["retry_after_seconds"]) == ("active", "reject", 30)
    assert [(await pair.probe(path)).status_code for path in ("/healthz", "/readyz")] == [200, 200]
    assert f'router_backpressure_status{{subject="{SUBJECT}"}} 2.0' in (await pair.probe("/metrics")).text

    if interrupted:
        await asyncio.to_thread(pair.kill_sidecar)
        await asyncio.to_thread(pair.start_sidecar)
        await pair.until_ready(observing=True)

    for message in held:
        await message.ack()
    for _ in range(15):
        for message in await _take(router, 100):
            await message.ack()

    await wire.status(status="inactive", freshness="known")
    recovery = await wire.event("recovery")
    assert recovery["incident"] == active["incident"]
    decision = await wire.ask(f"decide.gateway.{SUBJECT}")
    assert (decision["status"], decision["action"], decision["admit_ratio"]) == ("inactive", "continue", 1)
    assert (await wire.state())["status"] == "inactive"

    stored = await wire.stored()
    assert [event["type"] for event in stored].count("backpressure_active") == 1
    assert [event["seq"] for event in stored] == list(range(1, len(stored) + 1))
    changes = [event for event in stored if not event["type"].startswith("alert_")]
    assert (changes[-1]["type"], changes[-1]["to"]) == ("recovery", "inactive")


async def test_the_container_stops_on_request(pair: Pair, nc: Client) -> None:
    await pair.until_ready(observing=True)
    assert await asyncio.to_thread(pair.stop_sidecar, 5) == 0


async def _take(router: Any, count: int) -> list[Msg]:
    held: list[Msg] = []
    while len(held) < count:
        held += await router.fetch(min(100, count - len(held)), timeout=10)
    return held
