"""`forget`: removes a subject whose consumers were deleted, and no other."""

from __future__ import annotations

from nats.aio.client import Client

from tests.support.command import Command
from tests.support.sidecar import Sidecar, Wire, eventually


async def test_a_subject_is_forgotten_once_its_consumer_is_gone(command: Command, nc: Client, orders: Sidecar) -> None:
    wire = await Wire(nc).listen()
    await wire.status("orders.paid", status="inactive")
    refused = await command.failed("forget", "orders.paid")
    assert "orders.paid has consumers" in refused
    assert "not watched" in await command.failed("forget", "orders.unknown")
    await nc.jetstream().delete_consumer("ORDERS", "router-paid")
    await wire.event("monitoring_lost")
    assert await command.good("forget", "orders.paid") == "orders.paid: removed\n"

    async def gone() -> bool:
        _, page = await orders.get("/metrics")
        return 'subject="orders.paid"' not in page and "orders.paid" not in await command.good("status")

    await eventually(gone, "the subject to be gone")
    kv = await nc.jetstream().key_value("backpressure_state")
    assert "orders.paid" not in await kv.keys()
