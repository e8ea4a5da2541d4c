"""The story of the README told by the shipped image: a burst, a rejection, and the way back, seen only from outside."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig

from tests.containers.pair import Pair

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]

SUBJECT = "beamline.router.v1.decide"
DURABLE = "router_decide_consumer"


@pytest.fixture
async def nc(pair: Pair) -> AsyncIterator[Client]:
    async with asyncio.timeout(20):
        while True:
            try:
                client = await nats.connect(pair.nats_url, allow_reconnect=False)
                break
            except (OSError, nats.errors.Error):
                await asyncio.sleep(0.05)
    yield client
    await client.close()


async def test_a_burst_is_rejected_and_its_end_is_announced(pair: Pair, nc: Client) -> None:
    await _tell(pair, nc, interrupted=False)


async def test_a_sidecar_killed_while_active_repeats_nothing_and_forgets_nothing(pair: Pair, nc: Client) -> None:
    await _tell(pair, nc, interrupted=True)


async def test_the_container_ends_by_itself_when_asked_to(pair: Pair, nc: Client) -> None:
    await pair.until_ready(observing=True)
    assert await asyncio.to_thread(pair.stop_sidecar, 5) == 0, pair.logs()


async def _tell(pair: Pair, nc: Client, *, interrupted: bool) -> None:
    js = nc.jetstream()
    await js.add_stream(name="ROUTER", subjects=[SUBJECT])
    await js.add_consumer(
        "ROUTER",
        ConsumerConfig(
            durable_name=DURABLE,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=300,
            max_ack_pending=1000,
            filter_subject=SUBJECT,
        ),
    )
    ready = await pair.until_ready(observing=True)
    assert ready["nats"] == "connected"
    assert (await pair.probe("/healthz")).status_code == 200

    heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    await nc.subscribe("backpressure.v1.event.>", cb=lambda message: _hear(heard, message))
    await nc.flush()

    await asyncio.gather(*(js.publish(SUBJECT, b"decide") for _ in range(2100)))
    router = await js.pull_subscribe_bind(durable=DURABLE, stream="ROUTER")
    taken = await _take(router, 600)

    active = await _event(pair, heard, "backpressure_active")
    assert (active["subject"], active["to"]) == (SUBJECT, "active")
    assert {"pending", "inflight"} <= set(active["reasons"])

    decision = await _ask(nc, f"backpressure.v1.decide.gateway.{SUBJECT}")
    assert (decision["status"], decision["action"], decision["retry_after_seconds"]) == ("active", "reject", 30)
    assert decision["freshness"] == "known"
    assert [(await pair.probe(path)).status_code for path in ("/healthz", "/readyz")] == [200, 200]
    assert f'router_backpressure_status{{subject="{SUBJECT}"}} 2.0' in (await pair.probe("/metrics")).text

    if interrupted:
        await asyncio.to_thread(pair.kill_sidecar)
        await asyncio.to_thread(pair.start_sidecar)
        await pair.until_ready(observing=True)

    for message in taken:
        await message.ack()
    for _ in range(15):
        for message in await _take(router, 100):
            await message.ack()

    recovery = await _event(pair, heard, "recovery", to="inactive")
    assert recovery["incident"] == active["incident"]
    decision = await _ask(nc, f"backpressure.v1.decide.gateway.{SUBJECT}")
    assert (decision["status"], decision["action"], decision["admit_ratio"]) == ("inactive", "continue", 1)
    assert (await _state(nc))["status"] == "inactive"

    stored = await _stored(nc)
    assert [event["type"] for event in stored].count("backpressure_active") == 1
    assert [event["seq"] for event in stored] == list(range(1, len(stored) + 1))


async def _hear(heard: asyncio.Queue[dict[str, Any]], message: Msg) -> None:
    heard.put_nowait(json.loads(message.data))


async def _event(pair: Pair, heard: asyncio.Queue[dict[str, Any]], kind: str, **facts: str) -> dict[str, Any]:
    """The next event of this type with these facts; those before it are the steps on the way."""
    passed = []
    try:
        async with asyncio.timeout(30):
            while True:
                event = await heard.get()
                if event["type"] == kind and facts.items() <= event.items():
                    return event
                passed.append((event["type"], event["to"], event["reasons"]))
    except TimeoutError:
        raise AssertionError(f"no {kind} {facts} came, only {passed}\n{pair.logs()}") from None


async def _ask(nc: Client, subject: str) -> dict[str, Any]:
    reply = await nc.request(subject, b"{}", timeout=5)
    assert "Nats-Service-Error" not in (reply.headers or {}), reply.headers
    return dict(json.loads(reply.data))


async def _take(router: Any, count: int) -> list[Msg]:
    taken: list[Msg] = []
    while len(taken) < count:
        taken += await router.fetch(min(100, count - len(taken)), timeout=10)
    return taken


async def _state(nc: Client) -> dict[str, Any]:
    bucket = await nc.jetstream().key_value("backpressure_state")
    return dict(json.loads((await bucket.get(SUBJECT)).value or b"{}"))


async def _stored(nc: Client) -> list[dict[str, Any]]:
    """All events of the subject, as the stream keeps them."""
    js = nc.jetstream()
    last = (await js.stream_info("BACKPRESSURE_EVENTS")).state.last_seq
    messages = [await js.get_msg("BACKPRESSURE_EVENTS", seq=seq) for seq in range(1, last + 1)]
    return [json.loads(message.data or b"{}") for message in messages]
