"""A gateway opens again when its sidecars are killed or stopped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from nats_backpressure.client import BackpressureClient
from tests.process.waits import FIRES_WITHIN, SLACK, STOPS_WITHIN, heartbeats, observed_for
from tests.simulations.state_bucket import wait_for_admission
from tests.support.background import meanwhile
from tests.support.router import drain, publish, take, work
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, Sidecar, Wire, eventually

QUICK: dict[str, Any] = {
    "observe": {"min_interval_ms": 50, "stale_after_seconds": 2, "unknown_after_seconds": 4},
    "publish": {"heartbeat_seconds": 0.3},
}


def under(policy: dict[str, Any], config: dict[str, Any] = QUICK) -> dict[str, Any]:
    return config | {"policies": [{"subjects": [">"], "hold_seconds": 1} | policy]}


@pytest.fixture
async def gateway(nc: Client) -> AsyncIterator[BackpressureClient]:
    async with BackpressureClient(nc, report_every=None) as client:
        yield client


async def overloaded(nc: Client, gateway: BackpressureClient, **expected: Any) -> list[Msg]:
    """Overload the router until the gateway rejects; returns the messages that the worker holds."""
    await publish(nc, 2100)
    held = await take(nc, 600)
    assert await gateway.watch([SUBJECT])
    await wait_for_admission(
        gateway, SUBJECT, freshness="known", **({"action": "reject", "status": "active"} | expected)
    )
    return held


async def opening(gateway: BackpressureClient, since: float, seconds: float) -> tuple[float, float]:
    """Seconds from `since` until the first requests are admitted, and until all are."""
    began: float | None = None

    async def look() -> tuple[float, float] | None:
        nonlocal began
        now, admission = time.monotonic() - since, gateway.admit(SUBJECT)
        if began is None and admission.admit_ratio > 0:
            began = now
        return (began or 0.0, now) if admission.action == "continue" else None

    both: tuple[float, float] = await eventually(look, "the gateway to open", seconds)
    return both


async def test_after_a_kill_a_gateway_is_open_within_14_s(
    nc: Client, server: NatsServer, router: None, gateway: BackpressureClient, tmp_path: Path
) -> None:
    async with Sidecar(tmp_path, server.url) as process:
        await process.observing()
        held = await overloaded(nc, gateway)
        killed = time.monotonic()
        await process.kill()
        async with meanwhile(drain(nc, held)):
            began, opened = await opening(gateway, killed, 14 + SLACK)
    assert began >= 7 and began + 2.5 <= opened <= 14 + SLACK, "it is held for a while, and then opens step by step"


async def test_after_an_orderly_stop_of_the_last_replica_a_gateway_is_open_within_5_s(
    nc: Client, server: NatsServer, router: None, gateway: BackpressureClient, tmp_path: Path
) -> None:
    async with Sidecar(tmp_path, server.url) as process:
        await process.observing()
        await overloaded(nc, gateway)
        await heartbeats(nc)
        asked = time.monotonic()
        (code, seconds), (began, opened) = await asyncio.gather(process.end(), opening(gateway, asked, 5 + SLACK))
    assert (code, seconds < STOPS_WITHIN) == (0, True)
    assert began < 2 + SLACK and began + 2.5 <= opened <= 5 + SLACK
    assert gateway.admit(SUBJECT).freshness == "stale"


async def test_only_the_stop_of_the_last_of_two_replicas_opens_the_gateway(
    nc: Client, server: NatsServer, router: None, gateway: BackpressureClient, tmp_path: Path
) -> None:
    # Known for longer than a heartbeat may be late; the gateway would open by age after unknown_after_seconds only.
    settings = QUICK | {"observe": {"min_interval_ms": 50, "stale_after_seconds": 10, "unknown_after_seconds": 20}}
    one, two = (Sidecar(tmp_path, server.url, settings | {"instance": name}) for name in ("one", "two"))
    async with one, two:
        await asyncio.gather(one.observing(), two.observing())
        await overloaded(nc, gateway)
        await heartbeats(nc)
        code, _ = await one.end()
        assert code == 0
        until = time.monotonic() + 3
        while time.monotonic() < until:
            admission = gateway.admit(SUBJECT)
            assert (admission.action, admission.freshness) == ("reject", "known")
            await asyncio.sleep(0.02)
        asked = time.monotonic()
        _, (began, _) = await asyncio.gather(two.end(), opening(gateway, asked, 5 + SLACK))
        assert began < 2 + SLACK


async def test_a_restarted_sidecar_is_used_again_at_once(
    nc: Client, server: NatsServer, router: None, gateway: BackpressureClient, tmp_path: Path
) -> None:
    async with Sidecar(tmp_path, server.url, QUICK) as process:
        await process.observing()
        await overloaded(nc, gateway)
        await heartbeats(nc)
        await process.end()
        await opening(gateway, time.monotonic(), 5 + SLACK)
        await process.start()
        await wait_for_admission(gateway, SUBJECT, action="reject", freshness="known")


@pytest.mark.parametrize(
    ("policy", "before", "after"),
    [
        pytest.param({"on_unknown": "continue"}, "reject", "continue", id="continue"),
        pytest.param({"on_unknown": "reject"}, "reject", "reject", id="reject"),
        pytest.param({"mode": "observe"}, "continue", "continue", id="a dry run"),
    ],
)
async def test_on_unknown_applies_after_a_kill(
    nc: Client,
    server: NatsServer,
    router: None,
    gateway: BackpressureClient,
    tmp_path: Path,
    policy: dict[str, Any],
    before: str,
    after: str,
) -> None:
    async with Sidecar(tmp_path, server.url, under(policy)) as process:
        await process.observing()
        await overloaded(nc, gateway, action=before)
        watching = policy.get("mode") == "observe"
        assert gateway.admit(SUBJECT).would == ("reject" if watching else None)
        await process.kill()
        await wait_for_admission(gateway, SUBJECT, freshness="stale", action=after)
        if watching:
            await wait_for_admission(gateway, SUBJECT, would="throttle", action="continue", seconds=5)
            await wait_for_admission(gateway, SUBJECT, would="continue", seconds=5 + SLACK)
        await wait_for_admission(gateway, SUBJECT, freshness="unknown", action=after, seconds=5 + SLACK)


async def test_an_admit_ratio_opens_from_its_last_value(
    nc: Client, server: NatsServer, router: None, gateway: BackpressureClient, tmp_path: Path
) -> None:
    policy = {"admission": {"mode": "adaptive", "floor": 0.02}}
    async with Sidecar(tmp_path, server.url, under(policy)) as process, meanwhile(work(nc, 50)):
        await process.observing()
        await publish(nc, 3000)
        assert await gateway.watch([SUBJECT])

        async def low() -> bool:
            return gateway.admit(SUBJECT).admit_ratio < 0.2

        await eventually(low, "a low share")
        killed = time.monotonic()
        await process.kill()
        _, opened = await opening(gateway, killed, 2 + 4 + SLACK)
        assert opened >= 3


@pytest.mark.parametrize("how", ["killed", "paused"])
async def test_a_stop_takes_less_than_5_s_without_nats(
    nc: Client, server: NatsServer, router: None, gateway: BackpressureClient, tmp_path: Path, how: str
) -> None:
    async with Sidecar(tmp_path, server.url, QUICK) as process:
        await process.observing()
        await overloaded(nc, gateway)
        await heartbeats(nc)
        await (server.kill() if how == "killed" else asyncio.to_thread(server.pause))
        code, seconds = await process.end()
        if how == "paused":
            server.resume()
    assert code == 0 and seconds < STOPS_WITHIN, (code, seconds)


async def test_a_start_under_load_fires_no_alert_for_the_time_before(
    nc: Client, server: NatsServer, router: None, wire: Wire, tmp_path: Path
) -> None:
    """While no sidecar runs, messages go on being published, and in flight exceeds its mark."""
    rule = {"name": "queue", "when": {"pending_above": 1000}, "severity": "critical"}
    await publish(nc, 1700)
    held = await take(nc, 600)
    async with Sidecar(tmp_path, server.url, under({"alert_on_warning": True, "alerts": [rule]})) as process:
        await process.observing()
        await wire.event("backpressure_active")
        pending = await wire.ask(f"get.alerts.{SUBJECT}")
        assert {alert["state"] for alert in pending["alerts"]} == {"pending"}
        await observed_for(wire, 1)
        await drain(nc, held)
        await wire.event("recovery")
        await observed_for(wire, 9)
        # It may fall in one step or in two; what counts is that no alert fired.
        assert {event["type"] for event in wire.live} == {"backpressure_active", "recovery"}
        await publish(nc, 11_000)
        await wire.event("alert_firing", seconds=FIRES_WITHIN)
