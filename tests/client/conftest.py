"""Fixtures: a state bucket written by the test, and a client."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from nats.aio.client import Client

from nats_backpressure.client import BackpressureClient
from tests.simulations.state_bucket import States


@pytest.fixture(autouse=True)
def patient_askers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks waits for an answer longer than the default of 0.25 s: an answer that a busy machine delays is none of
    what these tests are about. Where nobody answers, the test says for how long to wait."""
    monkeypatch.setitem(BackpressureClient.decide.__kwdefaults__, "timeout", 10.0)


@pytest.fixture
async def states(nc: Client) -> States:
    bucket = States(nc)
    await bucket.make()
    return bucket


@pytest.fixture
async def client(nc: Client) -> AsyncIterator[BackpressureClient]:
    async with BackpressureClient(nc, report_every=None) as client:
        yield client
