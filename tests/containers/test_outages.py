"""NATS containers that are paused, killed and started again while a subject is active: nothing false, nothing lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from testcontainers.core.container import DockerContainer

from tests.containers.conftest import Connect, StartPair
from tests.containers.containers import any_user, kill, pause, resume, start
from tests.containers.router import STREAM, create_router, publish, pull, work
from tests.support.sidecar import SUBJECT, Wire

pytestmark = [pytest.mark.containers, pytest.mark.timeout(500)]

BACKLOG = 1500
ALONE = {"policies": [{"subjects": [">"], "active_signals": 1}]}
"""A backlog alone makes a subject active: no message is taken before the outage."""


async def assert_one_incident(wire: Wire, incident: str) -> None:
    """It became active once, recovered once, and every event of its epoch is there."""
    assert (await wire.event("recovery"))["incident"] == incident
    stored = [event for event in await wire.stored() if not event["type"].startswith("alert_")]
    kinds = [event["type"] for event in stored]
    assert kinds.count("backpressure_active") == 1 and kinds.count("recovery") == 1
    assert {event["incident"] for event in stored if event.get("incident")} == {incident}


@pytest.mark.parametrize(
    ("down", "up"), [(pause, resume), (kill, start)], ids=["paused and resumed", "killed and started again"]
)
async def test_an_outage_of_nats_ends_no_incident(
    start_pair: StartPair,
    connect: Connect,
    down: Callable[[DockerContainer], None],
    up: Callable[[DockerContainer], None],
) -> None:
    pair = start_pair(user=any_user())
    pair.configure(ALONE)
    nc = await connect(pair)
    await create_router(nc)
    await publish(nc, BACKLOG)
    wire = await Wire(nc).listen()
    active = await wire.status(status="active")

    await asyncio.to_thread(down, pair.nats)
    await pair.until_blind(seconds=2)
    assert (await pair.probe("/healthz")).status_code == 200, "an outage of NATS restarts no container"
    await asyncio.to_thread(up, pair.nats)

    nc = await connect(pair)
    wire = await Wire(nc).listen()
    status = await wire.status(status="active", freshness="known")
    assert status["incident"] == active["incident"]
    assert (await wire.ask(f"decide.gateway.{SUBJECT}"))["action"] == "reject"
    await work(await pull(nc), BACKLOG)
    await assert_one_incident(wire, active["incident"])


async def test_in_a_cluster_of_three_the_loss_of_a_leader_ends_no_incident(
    start_pair: StartPair, connect: Connect
) -> None:
    pair = start_pair(servers=3, user=any_user())
    pair.configure(ALONE | {"publish": {"replicas": 3}})
    nc = await connect(pair)
    await create_router(nc, replicas=3)
    await publish(nc, BACKLOG)
    wire = await Wire(nc).listen()
    active = await wire.status(status="active")

    leader = (await nc.jetstream().stream_info(STREAM)).cluster
    assert leader is not None
    number = {"nats": 0, "nats-2": 1, "nats-3": 2}[str(leader.leader)]
    await asyncio.to_thread(kill, pair.servers[number])

    nc = await connect(pair)
    wire = await Wire(nc).listen()
    status = await wire.status(status="active", freshness="known")
    assert status["incident"] == active["incident"]
    await work(await pull(nc), BACKLOG)
    await assert_one_incident(wire, active["incident"])
