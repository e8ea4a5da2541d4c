"""What was, asked over the wire of a real process: the same before and after a restart."""

from __future__ import annotations

import json
from typing import Any

from nats.aio.client import Client

from tests.support.router import drain, publish, take
from tests.support.sidecar import SUBJECT, Sidecar, Wire, eventually


async def test_a_burst_can_be_read_again_also_after_a_restart(nc: Client, sidecar: Sidecar, wire: Wire) -> None:
    await publish(nc, 2100)
    held = await take(nc, 600)
    await wire.event("backpressure_active")
    await drain(nc, held)
    await wire.status(status="inactive")

    async def calm() -> list[dict[str, Any]]:
        return [e for e in wire.live if (e["type"], e["to"]) == ("recovery", "inactive")]

    active, (recovery,) = await wire.event("backpressure_active"), await eventually(calm, "the last recovery")

    async def told() -> dict[str, Any] | None:
        found = await wire.ask(f"get.events.{SUBJECT}")
        return found if [e["id"] for e in reversed(found["events"])] == [e["id"] for e in wire.live] else None

    first = await eventually(told, "all that was told live")
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
    assert await eventually(told, "the same after a restart")
    assert (await wire.ask(f"get.history.{SUBJECT}"))["transitions"][-len(moves) :] == moves
    assert "history.loaded" in sidecar.log
