"""The command line beside a server, and sidecars with several subjects or a guard."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from tests.process.conftest import router, sidecar, wire
from tests.support.command import Command
from tests.support.router import CONSUMER
from tests.support.servers import NatsServer
from tests.support.sidecar import UNHURRIED, Sidecar

__all__ = ["router", "sidecar", "wire"]


@pytest.fixture
async def command(server: NatsServer) -> AsyncIterator[Command]:
    command = Command(server.url)
    yield command
    await command.close()


GUARDED = UNHURRIED | {"policy_guard": {"max_pending_overload": 5000}}


@pytest.fixture
async def guarded(tmp_path: Path, server: NatsServer, router: None) -> AsyncIterator[Sidecar]:
    async with Sidecar(tmp_path, server.url, GUARDED) as process:
        await process.observing()
        yield process


@pytest.fixture
def no_rejections(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests in which nothing is rejected: commands do not wait for a rejection."""
    monkeypatch.setattr("nats_backpressure.cli.policy_bucket.REJECTION_WITHIN", 0.05)


@pytest.fixture
async def orders(nc: Client, server: NatsServer, tmp_path: Path) -> AsyncIterator[Sidecar]:
    """operations.md: three subjects of one stream, and an audit durable that reads them all."""
    await nc.jetstream().add_stream(name="ORDERS", subjects=["orders.>"])
    for name in ("created", "paid", "shipped"):
        own = CONSUMER.evolve(durable_name=f"router-{name}", filter_subject=f"orders.{name}")
        await nc.jetstream().add_consumer("ORDERS", own)
    async with Sidecar(tmp_path, server.url, UNHURRIED) as process:
        await process.observing()
        yield process
