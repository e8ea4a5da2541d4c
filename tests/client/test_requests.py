"""Decide requests: answered, shared, reused, or unanswered at the cost of one timeout."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import nats
import pytest
from nats.aio.client import Client

from nats_backpressure.client import BackpressureClient
from nats_backpressure.client.requests import MAX_VALID, RequestSender
from nats_backpressure.client.stats import OnceLogger, Stats
from nats_backpressure.protocol.subjects import Names
from tests.simulations.decision_service import GATEWAY, Answer, FakeDecisionService
from tests.simulations.state_bucket import SUBJECT, wait_until
from tests.support.proxy import Proxy
from tests.support.servers import NatsServer

REPORTS: dict[str, Any] = {"unused": 0, "held": None, "lost": 0, "ahead": 0}


async def test_a_request_returns_the_sidecars_answer(client: BackpressureClient, nc: Client) -> None:
    async with FakeDecisionService(nc) as service:
        answer = await client.decide(SUBJECT, attempt=3, priority="low")
        assert (answer.action, answer.status, answer.retry_after_seconds) == ("reject", "active", 30)
        assert answer.failed_open is None
        await client.decide("orders.*", "consumer", max_messages=7, consumer="router")
    gateway, consumer = service.requests
    assert gateway == (f"gateway.{SUBJECT}", {"attempt": 3, "priority": "low"})
    assert consumer == ("consumer.orders.=2A", {"max_messages": 7, "stream": None, "consumer": "router"} | REPORTS)


async def test_a_gateways_answer_is_reused_while_valid_and_only_for_the_same_request(
    client: BackpressureClient, nc: Client
) -> None:
    async with FakeDecisionService(nc, lambda _: GATEWAY | {"valid_for_ms": 1000}) as service:
        for _ in range(10):
            await client.decide(SUBJECT)
        await client.decide(SUBJECT, priority="critical")
        assert len(service.requests) == 2 and client.stats.reused == 9
        valid_until = max(until for until, _ in client._requests._cache.values())
        await wait_until(lambda: time.monotonic() > valid_until, "the answers' end")
        await client.decide(SUBJECT)
        assert len(service.requests) == 3


async def test_an_answer_is_valid_from_when_it_was_asked_and_never_for_long(
    client: BackpressureClient, nc: Client
) -> None:
    async with FakeDecisionService(nc, lambda _: GATEWAY | {"valid_for_ms": 10**12}):
        asked = time.monotonic()
        await client.decide(SUBJECT)
        [(valid_until, _)] = client._requests._cache.values()
        assert asked <= valid_until - MAX_VALID <= time.monotonic()


async def test_a_consumers_grant_is_never_reused_nor_shared(client: BackpressureClient, nc: Client) -> None:
    grant = {"subject": SUBJECT, "role": "consumer", "pull": {"max_messages": 5, "wait_ms": 0}, "valid_for_ms": 5000}
    async with FakeDecisionService(nc, lambda _: grant) as service:
        answers = await asyncio.gather(*(client.decide(SUBJECT, "consumer") for _ in range(5)))
        assert [a.pull and a.pull.max_messages for a in answers] == [5] * 5
        assert len(service.requests) == 5


async def test_equal_requests_under_way_are_sent_once(client: BackpressureClient, nc: Client) -> None:
    async with FakeDecisionService(nc) as service:
        answers = await asyncio.gather(*(client.decide(SUBJECT) for _ in range(50)))
        assert len(service.requests) == 1 and {a.action for a in answers} == {"reject"}


async def test_silence_costs_one_timeout_per_outage_and_is_logged_once(
    client: BackpressureClient, nc: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "nats_backpressure.client")
    async with FakeDecisionService(nc, lambda _: None) as service:
        began = time.monotonic()
        first = await client.decide(SUBJECT, timeout=0.2)
        assert (first.action, first.failed_open) == ("continue", "timeout")
        assert time.monotonic() - began >= 0.2
        for n in range(100):
            answer = await client.decide(f"s{n}", "consumer", max_messages=9)
            assert answer.failed_open == "outage" and answer.pull is not None and answer.pull.max_messages == 9
        assert (client.stats.failed_open, client.stats.outages) == (101, 1)
        service.answer = lambda _: GATEWAY
        await until_answered(client)
        await asyncio.gather(*client._requests._under_way)  # what was asked before the answer, and fails after it
    away, back = (record.message for record in caplog.records)
    assert "does not answer (timeout)" in away and "answers again" in back
    assert all(tail.startswith("gateway.") for tail, _ in service.requests), "a probe takes no grant"
    assert (await client.decide(SUBJECT)).failed_open == "no_responders"
    assert client.stats.outages == 2


async def test_an_answer_that_comes_late_ends_the_outage(client: BackpressureClient, nc: Client) -> None:
    async with FakeDecisionService(nc) as service:
        service.delay = 0.2
        assert (await client.decide(SUBJECT, timeout=0.05)).failed_open == "timeout"
        service.delay = 0.0
        await wait_until(lambda: not client._requests._in_outage, "the late answer")
        assert (await client.decide(SUBJECT)).action == "reject"
        assert len(service.requests) == 2


async def test_one_slow_request_is_no_outage_while_others_are_answered(client: BackpressureClient, nc: Client) -> None:
    async with FakeDecisionService(nc, lambda request: None if request["attempt"] == 9 else GATEWAY):
        slow = asyncio.create_task(client.decide(SUBJECT, attempt=9, timeout=1))
        await asyncio.sleep(0)
        assert (await client.decide(SUBJECT, timeout=10)).action == "reject"
        assert (await slow).failed_open == "timeout"
        assert client.stats.outages == 0


async def test_a_stalled_link_costs_one_timeout_and_the_answer_comes_back_with_it(server: NatsServer) -> None:
    async with Proxy(server.port or 0) as proxy:
        near = await nats.connect(proxy.url, reconnect_time_wait=0.1, max_reconnect_attempts=-1)
        far = await nats.connect(server.url)
        async with FakeDecisionService(far), BackpressureClient(near) as client:
            assert (await client.decide(SUBJECT)).action == "reject"
            proxy.black_hole()
            reasons = [(await client.decide(SUBJECT, timeout=0.25)).failed_open for _ in range(20)]
            assert reasons == ["timeout"] + ["outage"] * 19, "an outage waits for nothing"
            proxy.forward()
            await until_answered(client)
        await near.close()
        await far.close()


async def test_a_restart_of_the_server_is_one_outage(
    client: BackpressureClient, server: NatsServer, nc: Client
) -> None:
    async with FakeDecisionService(nc):
        await client.decide(SUBJECT)
        await server.stop()
        await wait_until(lambda: not nc.is_connected, "the disconnect")
        assert (await client.decide(SUBJECT)).failed_open == "disconnected"
        assert (await client.decide(SUBJECT)).failed_open == "outage"
        await server.start()
        await until_answered(client)
        assert client.stats.outages == 1


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "malformed"),
        (b"nonsense", "malformed"),
        (b"[1]", "malformed"),
        (GATEWAY | {"admit_ratio": -0.5}, "malformed"),
        (GATEWAY | {"admit_ratio": 7}, "malformed"),
        (GATEWAY | {"action": 3}, "malformed"),
        (GATEWAY | {"retry_after_seconds": -3}, "malformed"),
        (GATEWAY | {"valid_for_ms": "long"}, "malformed"),
        ("404", "unwatched"),
        ("400", "refused"),
        ("503", "unavailable"),
        ("teapot", "unavailable"),
    ],
    ids=str,
)
async def test_an_unusable_answer_means_continue(
    client: BackpressureClient, nc: Client, caplog: pytest.LogCaptureFixture, answer: Answer, why: str
) -> None:
    async with FakeDecisionService(nc, lambda _: answer):
        answers = [await client.decide(SUBJECT) for _ in range(3)]
    assert [a.action for a in answers] == ["continue"] * 3 and answers[0].failed_open == why
    assert answers[0].valid_for_ms == 0 and client.stats.failed_open == 3
    assert len(caplog.records) == 1


async def test_an_answer_to_a_consumer_needs_a_pull(client: BackpressureClient, nc: Client) -> None:
    for pull in (None, {"max_messages": -1}, {"max_messages": 1.5}, 5):
        answer: dict[str, Any] = GATEWAY | {"pull": pull}
        async with FakeDecisionService(nc, lambda _, answer=answer: answer):  # type: ignore[misc]
            decision = await client.decide(SUBJECT, "consumer", max_messages=3)
            assert decision.failed_open == "malformed"
            assert decision.pull is not None and decision.pull.max_messages == 3


async def test_unknown_fields_of_an_answer_are_ignored(client: BackpressureClient, nc: Client) -> None:
    async with FakeDecisionService(nc, lambda _: GATEWAY | {"added": 1, "failed_open": "from the wire"}):
        answer = await client.decide(SUBJECT)
        assert answer.action == "reject" and answer.failed_open is None


@pytest.mark.parametrize("subject", ["", ".", "a..b", "x" * 1025], ids=["nothing", "a dot", "a gap", "too long"])
async def test_an_unusable_subject_is_not_sent(client: BackpressureClient, nc: Client, subject: str) -> None:
    async with FakeDecisionService(nc) as service:
        assert (await client.decide(subject)).failed_open == "no_subject"
        assert not service.requests and client.stats.no_subject == 1


async def test_requests_and_callers_are_bounded_and_the_rest_continues_at_once(
    nc: Client,
) -> None:
    sender = RequestSender(nc, Names(), Stats(), OnceLogger(), max_requests=3, max_callers=6, max_cached=2)
    async with FakeDecisionService(nc, lambda _: GATEWAY | {"valid_for_ms": 5000}) as service:
        service.delay = 0.05
        answers = await asyncio.gather(
            *(sender.decide(f"s{n}", "gateway", {}, 10) for n in range(5)),
            *(sender.decide("s0", "gateway", {}, 10) for _ in "12345"),
        )
        assert [a.failed_open for a in answers] == [None] * 3 + ["busy"] * 2 + [None] * 3 + ["busy"] * 2
        assert len(service.requests) == 3 and len(sender._cache) == 2


async def until_answered(client: BackpressureClient) -> None:
    """Keep asking, as a gateway would, until there is an answer again."""
    async with asyncio.timeout(30):
        while (await client.decide(SUBJECT)).failed_open:
            await asyncio.sleep(0.01)
