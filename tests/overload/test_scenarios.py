"""The four overloads of the router's design and some more, each with real processes.

Time runs ten times as fast as in the design (100 ms of work are 10 ms; marks in seconds too), except for the thousand
messages at once. The counts are those of the design.
"""

from __future__ import annotations

import asyncio
from typing import Any

import nats
import pytest

from nats_backpressure.demo.load_generator import HttpConnection
from nats_backpressure.demo.processes import DemoProcesses
from nats_backpressure.demo.scenario import SUBJECT, Scenario
from nats_backpressure.demo.summary import summarize
from tests.overload.conftest import RunScenario
from tests.overload.observed_events import back_to_calm, clean, overload_reported_and_over, shed_while_active
from tests.support.router import CONSUMER, publish, take
from tests.support.servers import NatsServer
from tests.support.sidecar import QUICK, Sidecar, Wire

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

MARKS: dict[str, Any] = {
    "pending": {"warn": 10, "critical": 100, "overload": 1000},
    "inflight": {"warn": 50, "critical": 200, "overload": 500},
    "latency_p95": {"warn": 50, "critical": 200, "overload": 500},
    "drain_seconds": {"warn": 0.05, "critical": 0.2, "overload": 0.5},
    "retry_after_seconds": 3,
}
"""The defaults, those in seconds divided by ten."""
SETTLING = {"settle": 40.0, "calm": 1.0}


def burst(messages: int, per_second: float, **scenario: Any) -> Scenario:
    """This many messages at this rate, with little load before and after."""
    scenario = {"policy": MARKS, "calm_load": 0.1, **SETTLING, **scenario}
    overload = per_second / Scenario(**scenario).capacity
    return Scenario(**scenario | {"overload": overload, "seconds": messages / per_second})


async def test_two_thousand_messages_of_100_ms_fill_the_queue(run_scenario: RunScenario) -> None:
    # With low in-flight marks the pull gate leaves the other messages in the queue.
    few = MARKS | {"inflight": {"warn": 5, "critical": 10, "overload": 20}}
    overload_reported_and_over(
        await run_scenario(burst(2000, 1000, workers=3, seconds_per_message=0.010, policy=MARKS | few)),
        "pending",
        "drain",
    )


async def test_a_thousand_messages_of_2_s_exceed_the_latency_mark(run_scenario: RunScenario) -> None:
    data = await run_scenario(burst(1000, 500, workers=20, seconds_per_message=0.200, pull_gate=False))
    overload_reported_and_over(data, "latency_p95")


async def test_a_thousand_at_once_exceed_the_in_flight_mark(run_scenario: RunScenario) -> None:
    data = await run_scenario(burst(1000, 700, workers=1000, seconds_per_message=1.0, pull_gate=False, calm_load=0.02))
    overload_reported_and_over(data, "inflight")


async def test_three_thousand_messages_of_3_s_exceed_every_mark(run_scenario: RunScenario) -> None:
    data = await run_scenario(burst(3000, 700, workers=30, seconds_per_message=0.300, pull_gate=False))
    overload_reported_and_over(data, "inflight", "latency_p95")


async def test_without_backpressure_the_tests_above_fail(run_scenario: RunScenario) -> None:
    deaf = MARKS | {name: {"overload": 1_000_000} for name in ("pending", "inflight", "latency_p95", "drain_seconds")}
    data = await run_scenario(burst(700, 700, workers=4, seconds_per_message=0.010, policy=deaf))
    assert data.callers["shed"] == 0
    with pytest.raises(AssertionError, match="backpressure never came"):
        overload_reported_and_over(data)


async def test_a_short_burst_is_one_incident(run_scenario: RunScenario) -> None:
    data = await run_scenario(Scenario(overload=10, seconds=1.5, **SETTLING))
    overload_reported_and_over(data)
    assert summarize(data).events["backpressure_active"] == 1


async def test_a_slight_overload_is_limited_before_messages_are_late(run_scenario: RunScenario) -> None:
    data = await run_scenario(Scenario(mode="adaptive", overload=1.2, seconds=12, **SETTLING))
    summary = summarize(data)
    assert 0 < summary.shed < 0.5
    assert summary.goodput > 0.8
    assert summary.largest_backlog <= 3 * data.scenario.target_drain * data.scenario.capacity
    clean(data)


async def test_a_router_crash_loses_no_message(run_scenario: RunScenario) -> None:
    data = await run_scenario(Scenario(overload=3, seconds=6, crash_at=3.0, ack_wait=3.0, settle=40.0, calm=1.0))
    shed_while_active(data)
    assert (data.lost, data.unfinished) == (0, 0)
    # No more is ever in flight: only what the killed router had pulled is delivered again.
    in_flight = 3 * data.scenario.workers
    assert 0 < data.worker["redelivered"] <= in_flight
    assert data.worker["done"] >= data.callers["admitted"] - in_flight


async def test_with_a_pull_gate_overload_causes_no_redelivery(run_scenario: RunScenario) -> None:
    data = await run_scenario(Scenario(overload=10, seconds=6, max_deliver=3, **SETTLING))
    clean(data)
    back_to_calm(data)


async def test_with_naks_messages_are_redelivered_and_given_up(run_scenario: RunScenario) -> None:
    data = await run_scenario(Scenario(mode="none", nak=True, overload=10, seconds=6, calm=1.0, max_deliver=3))
    assert data.worker["redelivered"] > data.worker["done"]
    assert data.lost > 100


async def test_a_gateway_that_starts_late_rejects_its_first_request(server: NatsServer, tmp_path: Any) -> None:
    scenario = Scenario()
    async with await nats.connect(server.url) as nc, Sidecar(tmp_path, server.url, QUICK) as process:
        await nc.jetstream().add_stream(name="ROUTER", subjects=[SUBJECT])
        await nc.jetstream().add_consumer("ROUTER", CONSUMER)
        await process.observing()
        await publish(nc, 2100)
        held = await take(nc, 600)
        await Wire(nc).status(status="active")
        processes = DemoProcesses(scenario, server.url)
        try:
            await processes.gateway()
            caller = HttpConnection(processes.ports.gateway)
            while True:
                try:
                    first = await caller.call()
                    break
                except OSError:
                    await asyncio.sleep(0.05)
            caller.close()
        finally:
            await processes.stop()
        assert held
        assert first == 503
