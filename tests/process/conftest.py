"""A router's stream with its consumer, a sidecar, and a client of its public subjects."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from tests.support.router import CONSUMER
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, UNHURRIED, Sidecar, Wire


@pytest.fixture
async def router(nc: Client) -> None:
    """A stream and the durable consumer of a router on it."""
    await nc.jetstream().add_stream(name="ROUTER", subjects=[SUBJECT])
    await nc.jetstream().add_consumer("ROUTER", CONSUMER)


@pytest.fixture
async def wire(nc: Client) -> Wire:
    return await Wire(nc).listen()


@pytest.fixture
async def sidecar(tmp_path: Path, server: NatsServer, router: None) -> AsyncIterator[Sidecar]:
    async with Sidecar(tmp_path, server.url, UNHURRIED) as process:
        await process.observing()
        yield process
