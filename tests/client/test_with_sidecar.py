"""The client and a real sidecar: the client decides from the states what the sidecar answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig

from nats_backpressure.client import BackpressureClient, PullGate
from nats_backpressure.runtime.tasks import cancel_and_wait
from tests.simulations.state_bucket import wait_for_admission
from tests.support.router import CONSUMER, drain, publish, take
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, UNHURRIED, Sidecar, eventually

CONFIG = UNHURRIED | {"publish": {"heartbeat_seconds": 0.2}, "policies": [{"subjects": [">"], "hold_seconds": 1}]}
STAGES = {"observe": {"min_interval_ms": 50, "stale_after_seconds": 1, "unknown_after_seconds": 3}}
"""Each stage of a sidecar's absence lasts 2 s or more, to be seen on a busy machine, too."""


@pytest.fixture
async def sidecar(
    tmp_path: Path, server: NatsServer, nc: Client, request: pytest.FixtureRequest
) -> AsyncIterator[Sidecar]:
    await nc.jetstream().add_stream(name="ROUTER", subjects=[SUBJECT])
    await nc.jetstream().add_consumer("ROUTER", CONSUMER)
    async with Sidecar(tmp_path, server.url, CONFIG | getattr(request, "param", {})) as process:
        yield await process.observing()


async def test_a_burst_is_refused_and_after_it_requests_are_admitted_again(
    nc: Client, sidecar: Sidecar, client: BackpressureClient
) -> None:
    await client.watch([SUBJECT])
    await wait_for_admission(client, SUBJECT, status="inactive", freshness="known", admitted=True)
    await publish(nc, 2100)
    held = await take(nc, 600)
    await wait_for_admission(
        client, SUBJECT, status="active", freshness="known", admitted=False, retry_after_seconds=30
    )

    async def same() -> bool:  # the watch may be ahead of the sidecar's own answer, by the ack of its write
        asked = await client.decide(SUBJECT)
        return (asked.action, asked.status, asked.retry_after_seconds) == ("reject", "active", 30)

    await eventually(same, "the same answer from the sidecar")
    assert (
        client.admit(SUBJECT, "critical") and (await client.decide(SUBJECT, priority="critical")).action == "continue"
    )
    await drain(nc, held)
    await wait_for_admission(client, SUBJECT, status="inactive", admitted=True)
    assert client.stats.malformed_state == client.stats.malformed_heartbeat == client.stats.malformed_reply == 0


@pytest.mark.parametrize("sidecar", [STAGES], indirect=True, ids=["short stages"])
async def test_a_sidecar_that_dies_is_believed_for_a_while_and_again_when_it_is_back(
    nc: Client, sidecar: Sidecar, client: BackpressureClient
) -> None:
    await publish(nc, 2100)
    held = await take(nc, 600)
    await client.watch([SUBJECT])
    await wait_for_admission(client, SUBJECT, status="active", freshness="known")
    await sidecar.kill()
    await wait_for_admission(client, SUBJECT, freshness="stale", action="throttle")
    await wait_for_admission(client, SUBJECT, freshness="unknown", action="throttle")
    await wait_for_admission(client, SUBJECT, freshness="unknown", action="continue")
    await sidecar.start()
    await sidecar.observing()
    await wait_for_admission(client, SUBJECT, freshness="known", action="reject")
    assert held


async def test_both_admit_a_subject_that_nobody_watches(
    sidecar: Sidecar, client: BackpressureClient, caplog: pytest.LogCaptureFixture
) -> None:
    await client.watch()
    assert client.admit("nobody.at.all") and client.admit("nobody.at.all")
    answers = [await client.decide("nobody.at.all") for _ in range(2)]
    assert [a.failed_open for a in answers] == ["unwatched"] * 2 and client.stats.unwatched == 4
    assert client.stats.outages == 0
    assert sum("nobody" in record.message for record in caplog.records) == 1


async def test_a_pull_gate_stops_at_the_mark_and_goes_on_as_acks_come(
    nc: Client, sidecar: Sidecar, client: BackpressureClient
) -> None:
    await publish(nc, 1200)
    subscription = await nc.jetstream().pull_subscribe_bind("router", "ROUTER")
    gate = PullGate(client, subscription, SUBJECT, stream="ROUTER", consumer="router")
    held: list[Msg] = []
    async with asyncio.timeout(30):
        while client.stats.held_back == 0:
            with suppress(TimeoutError):
                held += await gate.fetch(200, timeout=0.2)
    assert 300 <= len(held) <= 560, "about the in-flight mark of 500"
    taken = len(held)
    async with asyncio.timeout(30):
        while taken < 1200:
            for message in held:
                await message.ack()
            held = await gate.fetch(200, timeout=10)
            taken += len(held)
    assert client.stats.failed_open == 0


async def test_workers_that_share_a_small_mark_handle_everything_and_keep_it(
    tmp_path: Path, server: NatsServer, nc: Client, client: BackpressureClient
) -> None:
    """Each asks for more than its part, some messages are dropped or returned; all share one connection."""
    mark, total, handled = 4, 200, set[bytes]()
    js = nc.jetstream()
    await js.add_stream(name="ROUTER", subjects=[SUBJECT])
    config = ConsumerConfig(durable_name="router", ack_policy=AckPolicy.EXPLICIT, ack_wait=1, max_ack_pending=1000)
    await js.add_consumer("ROUTER", config)
    inflight = {"warn": mark, "critical": mark, "overload": mark}
    policy = {"subjects": [">"], "inflight": inflight, "latency_p95": {"overload": 1_000_000}}
    await publish(nc, total)
    most = 0

    async def work() -> None:
        gate = PullGate(client, await js.pull_subscribe_bind("router", "ROUTER"), SUBJECT)
        async for message in gate.messages(batch=10):
            if message.metadata.num_delivered == 1 and message.metadata.sequence.stream % 20 == 0:
                continue  # dropped: it comes again after the ack wait
            handled.add(message.data + str(message.metadata.sequence.stream).encode())
            await message.ack()

    async def look() -> bool:
        nonlocal most
        most = max(most, (await js.consumer_info("ROUTER", "router")).num_ack_pending)
        return len(handled) == total

    async with Sidecar(tmp_path, server.url, UNHURRIED | {"policies": [policy]}) as process:
        await process.observing()
        workers = [asyncio.create_task(work()) for _ in range(4)]
        await eventually(look, "all messages", 60)
        await cancel_and_wait(workers)
    assert most <= mark
    assert client.stats.failed_open == 0
