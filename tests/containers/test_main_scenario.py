"""The README example with the shipped image: a burst, a rejection and the recovery, seen only from outside."""

from __future__ import annotations

import asyncio

import pytest

from tests.containers.conftest import Connect, StartPair
from tests.containers.containers import any_user, kill, start
from tests.containers.router import create_router, publish, pull, take, work
from tests.support.sidecar import SUBJECT, Wire, eventually

pytestmark = [pytest.mark.containers, pytest.mark.timeout(500)]


@pytest.mark.parametrize("interrupted", [False, True], ids=["undisturbed", "sidecar killed while active"])
async def test_a_burst_is_rejected_and_its_recovery_is_published(
    start_pair: StartPair, connect: Connect, interrupted: bool
) -> None:
    pair = start_pair(user=any_user())
    nc = await connect(pair)
    await create_router(nc)
    assert (await pair.until_ready(observing=True))["nats"] == "connected"
    wire = await Wire(nc).listen()

    await publish(nc, 2100)
    router = await pull(nc)
    held = await take(router, 600)

    active = await wire.event("backpressure_active")
    assert (active["subject"], active["to"]) == (SUBJECT, "active")
    assert {"pending", "inflight"} <= set(active["reasons"])
    await wire.status(status="active", freshness="known")
    decision = await wire.ask(f"decide.gateway.{SUBJECT}", {"attempt": 1})
    assert (decision["status"], decision["action"], decision["retry_after_seconds"]) == ("active", "reject", 30)
    assert [(await pair.probe(path)).status_code for path in ("/healthz", "/readyz")] == [200, 200]
    assert f'router_backpressure_status{{subject="{SUBJECT}"}} 2.0' in (await pair.probe("/metrics")).text

    if interrupted:
        await asyncio.to_thread(kill, pair.sidecar)
        await asyncio.to_thread(start, pair.sidecar)
        await pair.until_ready(observing=True)

    for message in held:
        await message.ack()
    await work(router, 1500)

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


async def test_it_follows_its_mounted_settings_and_stops_on_request(start_pair: StartPair, connect: Connect) -> None:
    """As the user of the image. The settings change as those of a ConfigMap do; nothing is restarted for it."""
    pair = start_pair()
    nc = await connect(pair)
    await create_router(nc)
    await pair.until_ready(observing=True)
    wire = Wire(nc)
    pair.configure({"policies": [{"subjects": [">"], "retry_after_seconds": 7}]})

    async def followed() -> bool:
        policy = await wire.ask(f"get.policy.{SUBJECT}")
        return bool(policy["policy"]["retry_after_seconds"] == 7)

    await eventually(followed, "the changed settings to be in force")
    assert await asyncio.to_thread(pair.stop_sidecar, 5) == 0
