"""Writes docs/examples.json, the examples of docs/protocol.md, from a run on a real server: `make examples`."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any, Final

import nats
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, StreamConfig

from nats_backpressure.protocol.subjects import HEARTBEAT
from tests.support.router import drain, publish, take
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, Sidecar, Wire, eventually

FILE: Final = Path(__file__).parents[2] / "docs" / "examples.json"
ALIAS: Final = "beamline.router.v1.status.backpressure"
CONFIG: Final[dict[str, Any]] = {
    "instance": "router-0",
    "service": {"status_alias": ALIAS},
    "policies": [{"subjects": ["beamline.>"], "alerts": [{"name": "long-queue", "when": {"pending_above": 1900}}]}],
}
ROUTER: Final = ConsumerConfig(
    durable_name="router", ack_policy=AckPolicy.EXPLICIT, max_ack_pending=1000, ack_wait=60, sample_freq="100"
)
REPORT: Final = {"offered": 120, "admitted": 40, "seconds": 1.0}
VALID: Final = {"pending": {"overload": 5000}, "on_unknown": "continue"}
INVALID: Final = {"pending": {"warn": 10, "overload": 5}, "drain_second": {}}


async def record(nc: Client, wire: Wire) -> dict[str, Any]:
    """One overload and its end. Returns every message of the protocol, by the name used in docs/protocol.md."""
    await publish(nc, 1500)
    await wire.event("backpressure_warning")
    await publish(nc, 1100)
    held = await take(nc, 600)
    for message in held[:40]:
        await message.ack()
    await wire.event("alert_firing", 2)

    async def diagnosed() -> bool:
        status = await wire.ask(f"get.status.{SUBJECT}")
        return bool(status["diagnosis"]) and status["metrics"]["latency_source"] is not None

    await eventually(diagnosed, "a diagnosis", 30)
    kv = await nc.jetstream().key_value("backpressure_state")
    alias = await nc.request(ALIAS, json.dumps({"subject": SUBJECT}).encode(), timeout=2)
    examples = {
        "decision-gateway": await wire.ask(f"decide.gateway.{SUBJECT}", {"attempt": 2}),
        "decision-consumer": await wire.ask(f"decide.consumer.{SUBJECT}", {"max_messages": 50}),
        "status": await wire.ask(f"get.status.{SUBJECT}"),
        "status-list": {**await wire.ask("get.status", {"limit": 1}), "subjects": []},
        "state": await wire.state() | {"record": {}},
        "heartbeat": json.loads((await kv.get(HEARTBEAT)).value or b""),
        "policy": await wire.ask(f"get.policy.{SUBJECT}"),
        "validate-policy-valid": await wire.ask("validate.policy", VALID),
        "validate-policy-invalid": await wire.ask("validate.policy", INVALID),
        "alerts": await wire.ask(f"get.alerts.{SUBJECT}"),
        "gateway-report": REPORT,
        "status-alias": json.loads(alias.data),
    }
    await drain(nc, held[40:])
    await wire.event("alert_resolved", 2)
    await wire.status(status="inactive")
    examples |= {
        "recovery": await wire.ask(f"get.recovery.{SUBJECT}"),
        "history": await wire.ask(f"get.history.{SUBJECT}"),
        "events": await wire.ask(f"get.events.{SUBJECT}", {"type": "recovery", "limit": 1}),
        "metrics": await wire.ask(f"get.metrics.{SUBJECT}", {"windows": ["1m"]}),
    }
    await _lose_messages(nc, wire)
    await _lose_the_consumer(nc, wire)
    await (await nc.jetstream().key_value("backpressure_policy")).put("beamline.=3E", json.dumps(INVALID).encode())
    await wire.event("policy_rejected")
    by_type = {event["type"]: event for event in reversed(wire.live)}
    return examples | {f"event-{kind}": event for kind, event in by_type.items()}


async def _lose_messages(nc: Client, wire: Wire) -> None:
    js = nc.jetstream()
    await js.add_stream(StreamConfig(name="SMALL", subjects=["small"], max_msgs=800, discard=DiscardPolicy.OLD))
    await js.add_consumer("SMALL", ConsumerConfig(durable_name="slow", ack_policy=AckPolicy.EXPLICIT))
    await wire.status("small", status="inactive")
    for _ in range(700):
        await nc.publish("small", b"x")
    await nc.flush()

    async def seen() -> bool:
        return bool((await wire.ask("get.status.small"))["metrics"]["pending_messages"] == 700)

    await eventually(seen, "the first messages")
    for _ in range(700):
        await nc.publish("small", b"x")
    await wire.event("data_loss")


async def _lose_the_consumer(nc: Client, wire: Wire) -> None:
    await nc.jetstream().delete_consumer("ROUTER", "router")
    await wire.event("monitoring_lost")
    await nc.jetstream().add_consumer("ROUTER", ROUTER)
    await wire.event("monitoring_restored")


async def run() -> dict[str, Any]:
    """Start a server and a sidecar, and record."""
    with tempfile.TemporaryDirectory() as path:
        async with NatsServer(Path(path) / "nats") as server, await nats.connect(server.url) as nc:
            await nc.jetstream().add_stream(name="ROUTER", subjects=[SUBJECT])
            await nc.jetstream().add_consumer("ROUTER", ROUTER)
            wire = await Wire(nc).listen()
            async with Sidecar(Path(path), server.url, CONFIG) as sidecar:
                await sidecar.observing()
                await wire.status(status="inactive")
                return await record(nc, wire)


if __name__ == "__main__":
    FILE.write_text(json.dumps(asyncio.run(run()), indent=1) + "\n")
