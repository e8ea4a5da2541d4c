"""The history of a real process, over the wire: the same before and after a restart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nats.aio.client import Client

from tests.support.router import CONSUMER, drain, publish, take
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, UNHURRIED, Sidecar, Wire, eventually


async def test_the_history_of_a_burst_is_the_same_after_a_restart(nc: Client, sidecar: Sidecar, wire: Wire) -> None:
    await publish(nc, 2100)
    held = await take(nc, 600)
    await wire.event("backpressure_active")
    await drain(nc, held)
    await wire.status(status="inactive")

    async def calm() -> list[dict[str, Any]]:
        return [e for e in wire.live if (e["type"], e["to"]) == ("recovery", "inactive")]

    active, (recovery,) = await wire.event("backpressure_active"), await eventually(calm, "the last recovery")

    async def events() -> dict[str, Any] | None:
        result = await wire.ask(f"get.events.{SUBJECT}")
        return result if [e["id"] for e in reversed(result["events"])] == [e["id"] for e in wire.live] else None

    first = await eventually(events, "all that was published live")
    assert (first["truncated"], first["matched"]) == (False, [SUBJECT])
    assert json.dumps({e["id"]: e for e in first["events"]}[active["id"]]) == json.dumps(active), "10 is not 10.0"
    assert (await wire.ask(f"get.events.{SUBJECT}", {"type": "recovery", "limit": 1}))["events"] == [recovery]
    moves = (await wire.ask(f"get.history.{SUBJECT}"))["transitions"]
    kinds = ("backpressure_active", "backpressure_warning", "recovery")
    rose = [e for e in wire.live if e["type"] in kinds]
    assert [(t["from"], t["to"], t["at"]) for t in reversed(moves)] == [
        (e["from"], e["to"], e["timestamp"]) for e in rose
    ]
    assert moves[-1]["held_ms"] is None and all(t["held_ms"] >= 0 for t in moves[:-1])
    recovered = await wire.ask(f"get.recovery.{SUBJECT}")
    assert (recovered["recovered"], recovered["incident"]) == (True, active["incident"])
    assert (await wire.ask(f"get.metrics.{SUBJECT}"))["active_events"] == 1
    assert {a["subject"] for a in (await wire.ask("get.alerts"))["alerts"]} <= {SUBJECT}
    assert await wire.refused("get.events.nobody") == "404"
    await sidecar.kill()
    await sidecar.start()
    await sidecar.observing()
    assert await eventually(events, "the same after a restart")
    assert (await wire.ask(f"get.history.{SUBJECT}"))["transitions"][-len(moves) :] == moves
    assert "history.loaded" in sidecar.log


async def test_a_subject_has_its_own_history_beside_an_audit_consumer_that_covers_it(
    nc: Client, server: NatsServer, tmp_path: Path
) -> None:
    """seed.md D2 and D15: the audit durable is calm, has no events, and comes first by name."""
    js = nc.jetstream()
    await js.add_stream(name="ROUTER", subjects=["beamline.router.v1.>"])
    await js.add_consumer("ROUTER", CONSUMER.evolve(filter_subject=SUBJECT))
    audit = CONSUMER.evolve(durable_name="audit", filter_subject="beamline.router.v1.>")
    await js.add_consumer("ROUTER", audit)
    wire = await Wire(nc).listen()
    policy = {"subjects": ["beamline.router.v1.>"], "pending": {"overload": 100_000}}
    pending_only = {"drain_seconds": {"overload": 1e6}, "latency_p95": {"overload": 1e6}, "stall_seconds": 3600}
    policies = [policy, {"subjects": [SUBJECT]} | pending_only]
    async with Sidecar(tmp_path, server.url, UNHURRIED | {"policies": policies}) as process:
        await process.observing()
        await publish(nc, 1500)
        await wire.status(status="warning")
        await drain(nc, [])
        await wire.status(status="inactive")

        async def over() -> list[str]:
            events = [e for e in await wire.stored() if e["subject"] == SUBJECT]
            return [e["id"] for e in events] if [e["type"] for e in events][-1:] == ["recovery"] else []

        rose: list[str] = await eventually(over, "the recovery to be published")
        assert len(rose) >= 2

        async def own() -> bool:
            return [e["id"] for e in reversed((await wire.ask(f"get.events.{SUBJECT}"))["events"])] == rose

        await eventually(own, "its own events")
        status = await wire.status()
        assert [c["consumer"] for c in status["consumers"]] == [CONSUMER.durable_name]
        assert status["matched"] == [SUBJECT, "beamline.router.v1.>"]
        assert (await wire.ask(f"get.metrics.{SUBJECT}"))["warning_events"] == 1
        assert (await wire.ask(f"get.recovery.{SUBJECT}"))["recoveries_total"] == 1
        assert {t["to"] for t in (await wire.ask(f"get.history.{SUBJECT}"))["transitions"]} == {"warning", "inactive"}
        assert {a["subject"] for a in (await wire.ask(f"get.alerts.{SUBJECT}"))["alerts"]} <= {SUBJECT}
        await wire.ask(f"decide.gateway.{SUBJECT}")
        assert (await process.get("/metrics"))[1].startswith("# router_intake_backpressure_active 0 ")
        counted = f'router_backpressure_decisions_total{{action="continue",role="gateway",subject="{SUBJECT}"}} 1.0'
        assert counted in (await process.get("/metrics"))[1]
