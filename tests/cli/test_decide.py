"""`decide ROLE SUBJECT`: what a gateway or a consumer would be told."""

from __future__ import annotations

import json

from nats.aio.client import Client

from tests.support.command import Command
from tests.support.sidecar import SUBJECT, Sidecar, Wire


async def test_a_gateway_and_a_consumer_are_told_what_the_wire_says(
    command: Command, nc: Client, sidecar: Sidecar, wire: Wire
) -> None:
    await wire.status(status="inactive")
    calm = await command.good("decide", "gateway", SUBJECT)
    told = dict(line.split(maxsplit=1) for line in calm.splitlines())
    assert (told["action"], told["status"], told["freshness"]) == ("continue", "inactive", "known")
    wanted = await command.json("decide", "consumer", SUBJECT, "--max-messages", 7)
    assert (wanted["role"], wanted["pull"]["max_messages"]) == ("consumer", 7)
    bucket = await nc.jetstream().key_value("backpressure_policy")
    await bucket.put(SUBJECT, json.dumps({"override": {"action": "reject", "until": "2999-01-01T00:00:00Z"}}).encode())
    await wire.status(override={"action": "reject", "until": "2999-01-01T00:00:00.000Z"})
    refused = await command.json("decide", "gateway", SUBJECT, "--attempt", 2)
    assert (refused["action"], refused["retry_delay_ms"]) == ("reject", 60_000)
    assert (await command.json("decide", "gateway", SUBJECT, "--priority", "critical"))["action"] == "continue"
