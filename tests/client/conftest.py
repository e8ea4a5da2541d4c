"""Fixtures: a state bucket written by the test, and a client."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from nats.aio.client import Client

from nats_backpressure.client import BackpressureClient
from tests.simulations.state_bucket import States


@pytest.fixture
async def states(nc: Client) -> States:
    bucket = States(nc)
    await bucket.make()
    return bucket


@pytest.fixture
async def client(nc: Client) -> AsyncIterator[BackpressureClient]:
    async with BackpressureClient(nc, report_every=None) as client:
        yield client
