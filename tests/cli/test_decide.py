"""`decide ROLE SUBJECT`: prints the decision that the service returns."""

from __future__ import annotations

from nats.aio.client import Client

from tests.support.command import Command
from tests.support.router import override
from tests.support.sidecar import SUBJECT, Sidecar, Wire


async def test_decisions_of_both_roles_are_printed_as_the_service_returns_them(
    command: Command, nc: Client, sidecar: Sidecar, wire: Wire
) -> None:
    await wire.status(status="inactive")
    calm = await command.good("decide", "gateway", SUBJECT)
    lines = dict(line.split(maxsplit=1) for line in calm.splitlines())
    assert (lines["action"], lines["status"], lines["freshness"]) == ("continue", "inactive", "known")
    wanted = await command.json("decide", "consumer", SUBJECT, "--max-messages", 7)
    assert (wanted["role"], wanted["pull"]["max_messages"]) == ("consumer", 7)
    _, page = await sidecar.get("/metrics")
    counts = [line for line in page.splitlines() if line.startswith("router_backpressure_decisions_total{")]
    assert all(line.endswith(" 0.0") for line in counts), "an operator's question is no gateway's"
    put = await override(nc, SUBJECT, "reject", 600)
    await wire.status(override=put)
    refused = await command.json("decide", "gateway", SUBJECT, "--attempt", 2)
    assert (refused["action"], refused["retry_delay_ms"]) == ("reject", 60_000)
    assert (await command.json("decide", "gateway", SUBJECT, "--priority", "critical"))["action"] == "continue"
