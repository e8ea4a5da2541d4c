"""docs/examples/c: the gateway refuses while a real sidecar reports an overload, and fails open."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.examples.conftest import LONGEST_INTERVAL_MS
from tests.examples.program import Program
from tests.simulations.decision_service import FakeDecisionService
from tests.simulations.state_bucket import States, active, state
from tests.support.background import meanwhile
from tests.support.proxy import Proxy
from tests.support.router import drain, publish, take
from tests.support.servers import NatsServer, free_port
from tests.support.sidecar import SUBJECT, Sidecar, Wire, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

USERS = Path(__file__).parents[2] / "deploy" / "nats" / "users.conf"
OPEN_AGAIN = 20
"""Requests in a row that are admitted before a gateway counts as open: an opening one admits a share of them."""


@dataclass
class Gateway:
    """The gateway and its callers."""

    program: Program
    http: httpx.AsyncClient
    retry_after: set[int] = field(default_factory=set)

    async def post(self, path: str = "/v1/decide") -> int:
        reply = await self.http.post(path, content=b"decide", timeout=20)
        if reply.status_code == 503:
            self.retry_after.add(int(reply.headers["Retry-After"]))
        return reply.status_code

    async def answers(self, code: int, times: int = 1) -> None:
        """Wait until this many requests in a row are answered with this code."""

        async def look() -> bool:
            for _ in range(times):
                if await self.post() != code:
                    return False
            return True

        await eventually(look, f"{times} times {code}", 30)


@asynccontextmanager
async def running(binary: Path, url: str, where: Path) -> AsyncIterator[Gateway]:
    port = free_port()
    async with (
        Program(where, [binary, url, SUBJECT, str(port)]) as program,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http,
    ):

        async def serves() -> bool:
            try:
                return (await http.post("/unknown")).status_code == 404
            except httpx.TransportError:
                return False

        await eventually(serves, "the gateway's port")
        yield Gateway(program, http)


@pytest.fixture
async def gateway(gateway_binary: Path, server: NatsServer, tmp_path: Path, stream: None) -> AsyncIterator[Gateway]:
    async with running(gateway_binary, server.url, tmp_path) as gateway:
        yield gateway


@pytest.fixture
async def questions(nc: Client) -> list[Msg]:
    """Every decide.gateway request so far."""
    received: list[Msg] = []

    async def receive(message: Msg) -> None:
        received.append(message)

    await nc.subscribe("backpressure.v1.decide.gateway.>", cb=receive)
    return received


async def overload(nc: Client) -> list[Msg]:
    await publish(nc, 2100)
    return await take(nc, 600)


async def decides_by_itself(nc: Client, gateway: Gateway, questions: list[Msg], code: int) -> None:
    """Wait until a request is answered like this without a question to the sidecar."""

    async def look() -> bool:
        await nc.flush()
        before, until = len(questions), time.monotonic() + 3 * LONGEST_INTERVAL_MS / 1000
        while time.monotonic() < until:
            if await gateway.post() != code:
                return False
        await nc.flush()
        return len(questions) == before

    await eventually(look, f"{code} without a question")


async def hold(nc: Client, seconds: float) -> None:
    """Change `hold_seconds` of the policy, and wait until it is in force."""
    wire, bucket = Wire(nc), await nc.jetstream().key_value("backpressure_policy")
    await bucket.put(SUBJECT, json.dumps({"hold_seconds": seconds}).encode())

    async def look() -> bool:
        policy = (await wire.ask(f"get.policy.{SUBJECT}"))["policy"]
        return policy["hold_seconds"] == seconds

    await eventually(look, "the policy in force")


async def test_an_overload_is_refused_and_after_it_requests_are_admitted_again(
    nc: Client, sidecar: Sidecar, gateway: Gateway, questions: list[Msg]
) -> None:
    await gateway.answers(202)
    await decides_by_itself(nc, gateway, questions, 202)
    held = await overload(nc)
    await gateway.answers(503, OPEN_AGAIN)
    await decides_by_itself(nc, gateway, questions, 503)
    assert len(gateway.retry_after) > 1 and min(gateway.retry_after) >= 30 and max(gateway.retry_after) <= 45
    assert await gateway.post("/v1/emergency") == 202
    await drain(nc, held)
    await gateway.answers(202, OPEN_AGAIN)
    stored = [event for event in await Wire(nc).stored() if event["subject"] == SUBJECT]
    for event in stored:
        line = f"backpressure.v1.event.{event['type']}.{SUBJECT} seq {event['seq']}\n"
        await gateway.program.printed(line)
        assert gateway.program.count(line) == 1
    assert stored[-1]["type"] == "recovery"


async def test_one_that_starts_in_an_overload_refuses_the_first_request(
    nc: Client, sidecar: Sidecar, gateway_binary: Path, server: NatsServer, tmp_path: Path, questions: list[Msg]
) -> None:
    await overload(nc)
    await Wire(nc).status(status="active")
    async with running(gateway_binary, server.url, tmp_path) as gateway:
        assert await gateway.post() == 503
        await decides_by_itself(nc, gateway, questions, 503)


async def test_what_changed_while_its_connection_was_down_is_loaded_with_the_next_heartbeat(
    nc: Client, gateway_binary: Path, server: NatsServer, tmp_path: Path, stream: None
) -> None:
    states = States(nc)  # a sidecar would write the state again, and soon
    await states.make()
    await states.put(state(SUBJECT, freshness="known"))

    async def heartbeats() -> None:
        while True:
            await states.heartbeat()
            await asyncio.sleep(0.1)

    assert server.port is not None
    async with (
        Proxy(server.port) as link,
        running(gateway_binary, link.url, tmp_path) as gateway,
        meanwhile(heartbeats()),
    ):
        await gateway.answers(202)
        link.refuse()
        await states.put(active(SUBJECT, freshness="known"))
        link.forward()
        await gateway.answers(503, OPEN_AGAIN)


async def test_a_write_that_the_bucket_refuses_is_no_state(nc: Client, gateway: Gateway, questions: list[Msg]) -> None:
    states = States(nc)
    await states.make()
    await states.put(state(SUBJECT, freshness="known"))

    async def heartbeats() -> None:
        while True:
            await states.heartbeat()
            await asyncio.sleep(0.1)

    async with meanwhile(heartbeats()):
        await decides_by_itself(nc, gateway, questions, 202)
        value = json.dumps(active(SUBJECT, freshness="known")).encode()
        refused = {"Nats-Expected-Last-Subject-Sequence": "1000"}
        await nc.publish(f"$KV.backpressure_state.{SUBJECT}", value, headers=refused)
        await nc.flush()
        assert [await gateway.post() for _ in range(OPEN_AGAIN)] == [202] * OPEN_AGAIN


async def test_heartbeats_that_the_bucket_refuses_prove_nothing(nc: Client, gateway: Gateway) -> None:
    """Without a quorum a replica still sends them, and they come to the subscription."""
    states = States(nc)
    await states.make()
    await states.put(active(SUBJECT, freshness="known", hold_seconds=1))
    limits = {"heartbeat_ms": 200, "stale_after_ms": 1000, "unknown_after_ms": 2000}

    async def refused_heartbeats() -> None:
        for n in itertools.count():
            value = {"schema": 1, "instance": "i", "sampled_at": f"2026-01-01T00:{n // 60 % 60:02}:{n % 60:02}.000Z"}
            refused = {"Nats-Expected-Last-Subject-Sequence": "1000"}
            payload = json.dumps(value | limits).encode()
            await nc.publish("$KV.backpressure_state.=heartbeat", payload, headers=refused)
            await asyncio.sleep(0.1)

    async def proved() -> bool:
        await states.heartbeat(**limits)
        return await gateway.post() == 503

    await eventually(proved, "a refusal")
    async with meanwhile(refused_heartbeats()):
        await gateway.answers(202, OPEN_AGAIN)


async def test_an_older_state_of_a_server_that_is_late_is_not_taken(
    nc: Client, gateway_binary: Path, server: NatsServer, tmp_path: Path, stream: None
) -> None:
    """The test answers the direct gets: there is no bucket."""
    revision, at, action, sampled = 10, "2026-01-01T00:00:10.5Z", "reject", itertools.count()

    async def answer(message: Msg) -> None:
        value: dict[str, Any] = {"subject": SUBJECT, "action": action, "freshness": "known", "hold_seconds": 600}
        headers = {"Nats-Sequence": str(revision), "Nats-Time-Stamp": at}
        if b"=heartbeat" in message.data:
            n = next(sampled)
            value = {"schema": 1, "instance": "i", "sampled_at": f"2026-01-01T00:00:00.{n:06}Z"}
            headers = {"Nats-Sequence": str(1000 + n), "Nats-Time-Stamp": "2026-01-01T00:00:00Z"}
        await nc.publish(message.reply, json.dumps(value).encode(), headers=headers)

    async def noticed() -> None:
        while True:
            for key in (SUBJECT, "=heartbeat"):
                await nc.publish(f"$KV.backpressure_state.{key}", b"")
            await asyncio.sleep(0.05)

    await nc.subscribe("$JS.API.DIRECT.GET.KV_backpressure_state", cb=answer)
    async with running(gateway_binary, server.url, tmp_path) as gateway, meanwhile(noticed()):
        await gateway.answers(503, OPEN_AGAIN)
        revision, at, action = 9, "2026-01-01T00:00:10.49Z", "continue"
        for _ in range(20):
            assert await gateway.post() == 503
            await asyncio.sleep(0.02)
        revision, at = 11, "2026-01-01T00:00:10.49Z"
        await gateway.answers(202, OPEN_AGAIN)
        revision, at, action = 1, "2026-01-01T00:00:10.51Z", "reject"  # of a bucket that was created again
        await gateway.answers(503, OPEN_AGAIN)


async def test_it_asks_until_a_heartbeat_proves_the_state_that_it_loaded(
    nc: Client, server: NatsServer, gateway_binary: Path, tmp_path: Path, stream: None
) -> None:
    states = States(nc)
    await states.make()
    await states.put(active(SUBJECT, freshness="known"))
    async with running(gateway_binary, server.url, tmp_path) as gateway:
        assert await gateway.post() == 202  # nobody answers, and nothing proves the refusal
        async with FakeDecisionService(nc) as service:
            await gateway.answers(503, OPEN_AGAIN)
            asked = len(service.requests)
            assert asked >= OPEN_AGAIN  # this answer may not be used again

            async def unasked() -> bool:
                await states.heartbeat()  # two that it loads, each with another `sampled_at`, prove the state
                before = len(service.requests)
                return [await gateway.post() for _ in range(5)] == [503] * 5 and len(service.requests) == before

            await eventually(unasked, "503 without a question")


async def test_it_prints_each_event_once(nc: Client, gateway: Gateway) -> None:
    subject = f"backpressure.v1.event.recovery.{SUBJECT}"
    for epoch, seq in (("a", 1), ("a", 1), ("a", 2), ("a", 1), ("b", 3)):
        await nc.publish(subject, json.dumps({"epoch": epoch, "seq": seq}).encode())
    await gateway.program.printed(f"{subject} seq 3\n")
    assert gateway.program.output == "".join(f"{subject} seq {seq}\n" for seq in (1, 2, 3))


async def test_it_does_all_of_this_with_the_rights_of_a_gateway(
    nc: Client, sidecar: Sidecar, server: NatsServer, gateway_binary: Path, tmp_path: Path, questions: list[Msg]
) -> None:
    block = re.search(r"\{\s+user: gateway,.*?\n    \}", USERS.read_text(), re.DOTALL)
    assert block
    user = block.group().replace("$BACKPRESSURE_GATEWAY_PASSWORD", "secret")
    server.reload(f"authorization {{ users: [{user}, {{user: all, password: all}}] }}\nno_auth_user: all")
    held = await overload(nc)
    async with running(gateway_binary, f"nats://gateway:secret@127.0.0.1:{server.port}", tmp_path) as gateway:
        await gateway.answers(503)
        await decides_by_itself(nc, gateway, questions, 503)
        await drain(nc, held)
        await gateway.answers(202, OPEN_AGAIN)
        await gateway.program.printed(".recovery.")
    assert "ermissions" not in gateway.program.output
    assert "Permissions Violation" not in server.log


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_when_the_sidecar_has_ended_a_refusal_ends_too_and_comes_back_with_it(
    nc: Client, sidecar: Sidecar, gateway: Gateway, questions: list[Msg], how: signal.Signals
) -> None:
    if how == signal.SIGTERM:  # an orderly stop does not wait for the end of the hold
        await hold(nc, 600)
    await overload(nc)
    await gateway.answers(503)
    await decides_by_itself(nc, gateway, questions, 503)
    await sidecar.end(how)
    assert await gateway.post() == 503
    await gateway.answers(202, OPEN_AGAIN)
    await sidecar.start()
    await gateway.answers(503, OPEN_AGAIN)


async def test_when_the_bucket_is_deleted_it_follows_the_one_that_is_created_in_its_place(
    nc: Client, sidecar: Sidecar, gateway: Gateway, questions: list[Msg]
) -> None:
    held = await overload(nc)
    await gateway.answers(503)
    await decides_by_itself(nc, gateway, questions, 503)
    await nc.jetstream().delete_stream("KV_backpressure_state")
    assert await gateway.post() == 503
    await decides_by_itself(nc, gateway, questions, 503)
    await drain(nc, held)
    await gateway.answers(202, OPEN_AGAIN)
    await decides_by_itself(nc, gateway, questions, 202)


async def test_without_a_sidecar_everything_is_admitted_and_one_request_a_second_asks(
    nc: Client, gateway: Gateway, questions: list[Msg]
) -> None:
    for _ in range(50):
        assert await gateway.post() == 202
    await nc.flush()
    assert len(questions) < 25


async def test_it_starts_and_serves_while_nats_is_away(
    gateway_binary: Path, server: NatsServer, tmp_path: Path, stream: None
) -> None:
    await server.stop()
    async with running(gateway_binary, server.url, tmp_path) as gateway:
        assert await gateway.post() == 502
        await server.start()
        await gateway.answers(202)
