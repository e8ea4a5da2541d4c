"""The messages of a running sidecar are valid by the schemas in docs/schemas."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from nats.aio.client import Client

from nats_backpressure.protocol.subjects import HEARTBEAT
from tests.process.waits import FIRES_WITHIN
from tests.support.router import drain, publish, take
from tests.support.sidecar import SUBJECT, Sidecar, Wire, eventually

SCHEMAS = Path(__file__).parent.parent.parent / "docs" / "schemas"
FORMATS = FormatChecker(())


@FORMATS.checks("date-time", raises=ValueError)
def is_utc_to_the_millisecond(text: object) -> bool:
    if isinstance(text, str):
        datetime.fromisoformat(text)
        return text.endswith("Z") and len(text) == len("2026-01-01T00:00:00.000Z")
    return True


def check(name: str, message: Any) -> None:
    """Valid, and without a field that the schema does not have."""
    document = json.loads((SCHEMAS / f"{name}.json").read_text())
    strict = {kind: body | {"additionalProperties": False} for kind, body in document["$defs"].items()}
    Draft202012Validator(document | {"$defs": strict}, format_checker=FORMATS).validate(message)


async def check_all(nc: Client, wire: Wire) -> None:
    check("Decision", await wire.ask(f"decide.gateway.{SUBJECT}"))
    check("Decision", await wire.ask(f"decide.consumer.{SUBJECT}"))
    check("Status", await wire.ask(f"get.status.{SUBJECT}"))
    check("StatusList", await wire.ask("get.status"))
    check("Events", await wire.ask(f"get.events.{SUBJECT}"))
    check("Transitions", await wire.ask(f"get.history.{SUBJECT}"))
    check("Windows", await wire.ask(f"get.metrics.{SUBJECT}"))
    check("Recovered", await wire.ask(f"get.recovery.{SUBJECT}"))
    check("Alerts", await wire.ask(f"get.alerts.{SUBJECT}"))
    check("Alerts", await wire.ask("get.alerts"))
    check("EffectivePolicy", await wire.ask(f"get.policy.{SUBJECT}"))
    check("PolicyValidation", await wire.ask("validate.policy", {"pending": {"warn": 10}}))
    check("PolicyValidation", await wire.ask("validate.policy", {"pending": {"warn": -1}}))
    check("State", await wire.state())
    bucket = await nc.jetstream().key_value("backpressure_state")
    check("Heartbeat", json.loads((await bucket.get(HEARTBEAT)).value or b""))
    for event in wire.live:
        check("Event", event)


async def test_all_messages_are_valid_while_calm_while_active_and_after(
    nc: Client, sidecar: Sidecar, wire: Wire
) -> None:
    async def stored() -> bool:
        return bool(await wire.state())

    await eventually(stored, "the first state")
    policies = await nc.jetstream().key_value("backpressure_policy")
    await policies.put(SUBJECT, b'{"alert_for_seconds": 0}')
    await check_all(nc, wire)
    await publish(nc, 2100)
    held = await take(nc, 600)
    await wire.event("alert_firing", seconds=FIRES_WITHIN)
    await wire.status(status="active")
    await check_all(nc, wire)
    await drain(nc, held)
    await wire.status(status="inactive")
    await wire.event("alert_resolved")
    await check_all(nc, wire)
    await policies.put(SUBJECT, b'{"pending": {"warn": 5000}}')
    assert (await wire.event("policy_rejected"))["errors"]
    await policies.put(f"=override.{SUBJECT}", b'{"action": "reject", "until": "2099-01-01T00:00:00Z"}')
    await check_all(nc, wire)
