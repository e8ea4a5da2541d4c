"""Runs whole demo scenarios: load generator, gateway, router and sidecar as processes on a fresh server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from nats_backpressure.demo.run import run_demo
from nats_backpressure.demo.scenario import Scenario
from nats_backpressure.demo.summary import RunData
from nats_backpressure.demo.terminal_output import NoOutput
from tests.support.servers import NatsServer

RunScenario = Callable[[Scenario], Awaitable[RunData]]


@pytest.fixture
def run_scenario(server: NatsServer) -> RunScenario:
    async def run(scenario: Scenario) -> RunData:
        return await run_demo(scenario, server.url, NoOutput())

    return run
