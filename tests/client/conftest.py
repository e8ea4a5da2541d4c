"""A sidecar's state bucket, written by hand, and a client that follows it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from nats.aio.client import Client

from nats_backpressure.client import BackpressureClient
from tests.worlds.state_bucket import States


@pytest.fixture
async def states(nc: Client) -> States:
    made = States(nc)
    await made.make()
    return made


@pytest.fixture
async def client(nc: Client) -> AsyncIterator[BackpressureClient]:
    async with BackpressureClient(nc, report_every=None) as made:
        yield made
