"""Lost messages of a stream, seen only over the wire: an incident that ends by loss, and traffic without loss."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StreamConfig

from tests.support.background import meanwhile
from tests.support.servers import NatsServer
from tests.support.sidecar import UNHURRIED, Sidecar, Wire, eventually

SUBJECT = "orders.created"
POLICY = UNHURRIED | {"policies": [{"subjects": ["orders.>"], "pending": {"overload": 100}}]}


async def fill(nc: Client, n: int, subject: str = SUBJECT) -> None:
    for _ in range(n - 1):
        await nc.publish(subject, b"x")
    await nc.jetstream().publish(subject, b"x")  # the ack of the last one: all are stored


async def stream(nc: Client, filter_: str | None = SUBJECT, **config: Any) -> None:
    js = nc.jetstream()
    await js.add_stream(StreamConfig(name="ORDERS", subjects=["orders.>"], **config))
    consumer = ConsumerConfig(durable_name="router", ack_policy=AckPolicy.EXPLICIT, filter_subject=filter_)
    await js.add_consumer("ORDERS", consumer)


async def lost(wire: Wire, subject: str = SUBJECT) -> list[int]:
    return [
        event["lost"] for event in await wire.stored() if event["type"] == "data_loss" and event["subject"] == subject
    ]


async def stored(wire: Wire, subject: str, pending: int) -> None:
    """Wait until the stored state accounts for so many waiting messages."""

    async def look() -> bool:
        carried = (await wire.state(subject))["record"].get("carried", ())
        return [facts["account"]["pending"] for _, facts in carried] == [pending]

    await eventually(look, f"a stored backlog of {pending}")


@pytest.mark.parametrize("how", ["max_age", "max_msgs", "flood"])
async def test_an_incident_that_ends_by_loss_has_that_reason(
    nc: Client, server: NatsServer, wire: Wire, tmp_path: Path, how: str
) -> None:
    limits = {"max_age": {"max_age": 5.0}, "max_msgs": {"max_msgs": 300}, "flood": {"max_msgs": 300}}[how]
    await stream(nc, **limits)
    async with Sidecar(tmp_path, server.url, POLICY) as process:
        await process.observing()
        await fill(nc, 240)
        await wire.event("backpressure_warning")
        if how == "max_msgs":
            await nc.jetstream().update_stream(StreamConfig(name="ORDERS", subjects=["orders.>"], max_msgs=40))
        elif how == "flood":
            await fill(nc, 300, "orders.other")
        recovery = await wire.event("recovery", seconds=40)
    assert "data_loss" in recovery["reasons"]
    expected = 200 if how == "max_msgs" else 240
    assert sum(await lost(wire)) == expected
    types = [event["type"] for event in await wire.stored()]
    assert types.index("data_loss") < types.index("recovery")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_what_a_stop_leaves_unpublished_of_a_loss_is_published_by_the_next_start(
    nc: Client, server: NatsServer, wire: Wire, tmp_path: Path, how: signal.Signals
) -> None:
    """An event reports what was lost up to then, and the next one comes 10 s later. Certain is the loss of the 300."""
    await stream(nc, max_msgs=1000)
    async with Sidecar(tmp_path, server.url, POLICY) as process:
        await process.observing()
        await fill(nc, 300)
        await wire.event("backpressure_warning")
        await nc.jetstream().update_stream(StreamConfig(name="ORDERS", subjects=["orders.>"], max_msgs=100))
        await wire.event("data_loss")
        await fill(nc, 300)
        await process.end(how)
    assert sum(await lost(wire)) < 300
    async with Sidecar(tmp_path, server.url, POLICY) as process:

        async def published() -> bool:
            return sum(await lost(wire)) >= 300

        await eventually(published, "the rest of the loss")
    assert sum(await lost(wire)) == 300


@pytest.mark.parametrize("filter_", [SUBJECT, None], ids=["a filter", "no filter"])
async def test_a_loss_while_no_sidecar_ran_is_reported_once(
    nc: Client, server: NatsServer, wire: Wire, tmp_path: Path, filter_: str | None
) -> None:
    await stream(nc, filter_, max_msgs=1500)
    subject = filter_ or "orders.=3E"
    async with Sidecar(tmp_path, server.url, UNHURRIED) as process:
        await process.observing()
        await fill(nc, 1200)
        await wire.event("backpressure_warning")
        await stored(wire, subject, 1200)
        await process.kill()
        await fill(nc, 2000, "orders.other" if filter_ else SUBJECT)
        for _ in range(2):
            await process.start()
            await process.observing()
            await wire.event("data_loss")
            await wire.status(subject, freshness="known")
            await process.kill()
    first_lost = 1200 if filter_ else 1700
    assert await lost(wire, filter_ or "orders.>") == [first_lost]


async def test_a_busy_work_queue_beside_idle_streams_recovers_and_loses_nothing(
    nc: Client, server: NatsServer, wire: Wire, tmp_path: Path
) -> None:
    """With more streams the look at one comes later after its sample, and more is acknowledged in between."""
    js = nc.jetstream()
    for n in range(10):
        await js.add_stream(name=f"IDLE{n}", subjects=[f"idle.{n}"])
        await js.add_consumer(f"IDLE{n}", ConsumerConfig(durable_name="c", ack_policy=AckPolicy.EXPLICIT))
    await stream(nc, retention=RetentionPolicy.WORK_QUEUE, max_age=3600.0)

    async def traffic() -> None:
        while True:
            await fill(nc, 10)
            await asyncio.sleep(0.02)

    async def worker() -> None:
        subscription = await js.pull_subscribe_bind("router", "ORDERS")
        while True:
            try:
                for message in await subscription.fetch(100, timeout=0.1):
                    await message.ack()
            except TimeoutError:
                pass

    async with Sidecar(
        tmp_path, server.url, {"policies": [{"subjects": ["orders.>"], "pending": {"overload": 500}}]}
    ) as process:
        await process.observing()
        await fill(nc, 1200)
        await wire.event("backpressure_warning")
        async with meanwhile(traffic()), meanwhile(worker()):
            await wire.event("recovery", seconds=60)
            calm = await wire.status(SUBJECT, status="inactive")
            busy = await wire.status(SUBJECT, status="inactive")

            async def moving() -> bool:
                return bool(((await wire.status(SUBJECT))["metrics"]["ack_rate"] or 0) > 40)

            await eventually(moving, "traffic")
    assert calm["reasons"] == busy["reasons"] == []
    assert await lost(wire) == []
