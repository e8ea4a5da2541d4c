"""Questions: answered, shared, reused, or left unanswered at the cost of one timeout."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import nats
import pytest
from nats.aio.client import Client

from nats_backpressure.client import BackpressureClient
from nats_backpressure.client import requests as room
from tests.support.proxy import Proxy
from tests.support.servers import NatsServer
from tests.worlds.decision_service import GATEWAY, Answer, Service
from tests.worlds.state_bucket import SUBJECT, until


async def test_a_question_is_answered_with_what_the_sidecar_says(client: BackpressureClient, nc: Client) -> None:
    async with Service(nc) as service:
        found = await client.decide(SUBJECT, attempt=3, priority="low")
        assert (found.action, found.status, found.retry_after_seconds) == ("reject", "active", 30)
        assert found.failed_open is None
        await client.decide("orders.*", "consumer", max_messages=7, consumer="router")
    gateway, consumer = service.asked
    assert gateway == (f"gateway.{SUBJECT}", {"attempt": 3, "priority": "low"})
    assert consumer == ("consumer.orders.=2A", {"max_messages": 7, "stream": None, "consumer": "router"})


async def test_a_gateways_answer_is_reused_while_it_is_valid_and_only_for_the_same_question(
    client: BackpressureClient, nc: Client
) -> None:
    async with Service(nc, lambda _: GATEWAY | {"valid_for_ms": 300}) as service:
        for _ in range(10):
            await client.decide(SUBJECT)
        await client.decide(SUBJECT, priority="critical")
        assert len(service.asked) == 2 and client.stats.reused == 9
        kept_until = max(until for until, _ in client._asker._kept.values())
        await until(lambda: time.monotonic() > kept_until, "the answers' end")
        await client.decide(SUBJECT)
        assert len(service.asked) == 3


async def test_an_answer_is_valid_from_when_it_was_asked_and_never_for_long(
    client: BackpressureClient, nc: Client
) -> None:
    async with Service(nc, lambda _: GATEWAY | {"valid_for_ms": 1e12}):
        asked = time.monotonic()
        await client.decide(SUBJECT)
        [(kept_until, _)] = client._asker._kept.values()
        assert asked <= kept_until - room.LONGEST_VALID <= time.monotonic()


async def test_a_consumers_grant_is_never_reused_nor_shared(client: BackpressureClient, nc: Client) -> None:
    grant = {"subject": SUBJECT, "role": "consumer", "pull": {"max_messages": 5, "wait_ms": 0}, "valid_for_ms": 5000}
    async with Service(nc, lambda _: grant) as service:
        found = await asyncio.gather(*(client.decide(SUBJECT, "consumer") for _ in range(5)))
        assert [f.pull and f.pull.max_messages for f in found] == [5] * 5
        assert len(service.asked) == 5


async def test_the_same_question_under_way_is_asked_once(client: BackpressureClient, nc: Client) -> None:
    async with Service(nc) as service:
        found = await asyncio.gather(*(client.decide(SUBJECT) for _ in range(50)))
        assert len(service.asked) == 1 and {f.action for f in found} == {"reject"}


async def test_silence_costs_one_timeout_per_outage_and_is_said_once(
    client: BackpressureClient, nc: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "nats_backpressure.client")
    async with Service(nc, lambda _: None) as service:
        began = time.monotonic()
        first = await client.decide(SUBJECT, timeout=0.2)
        assert (first.action, first.failed_open) == ("continue", "timeout")
        assert 0.2 <= time.monotonic() - began < 2
        began = time.monotonic()
        for n in range(100):
            found = await client.decide(f"s{n}", "consumer", max_messages=9)
            assert found.failed_open == "outage" and found.pull is not None and found.pull.max_messages == 9
        assert time.monotonic() - began < 2  # not one timeout each
        assert (client.stats.failed_open, client.stats.outages) == (101, 1)
        service.answer = lambda _: GATEWAY
        await until_answered(client)
        await asyncio.gather(*client._asker._under_way)  # what was asked before the answer, and fails after it
    away, back = (record.message for record in caplog.records)
    assert "does not answer (timeout)" in away and "answers again" in back
    assert all(tail.startswith("gateway.") for tail, _ in service.asked), "a probe takes no grant"
    assert (await client.decide(SUBJECT)).failed_open == "no_responders"
    assert client.stats.outages == 2


async def test_an_answer_that_comes_late_ends_the_outage(client: BackpressureClient, nc: Client) -> None:
    async with Service(nc) as service:
        service.delay = 0.2
        assert (await client.decide(SUBJECT, timeout=0.05)).failed_open == "timeout"
        service.delay = 0.0
        await until(lambda: not client._asker._out, "the late answer")
        assert (await client.decide(SUBJECT)).action == "reject"
        assert len(service.asked) == 2


async def test_one_slow_question_is_no_outage_while_others_are_answered(client: BackpressureClient, nc: Client) -> None:
    async with Service(nc, lambda request: None if request["attempt"] == 9 else GATEWAY):
        slow = asyncio.create_task(client.decide(SUBJECT, attempt=9, timeout=0.2))
        await asyncio.sleep(0)
        assert (await client.decide(SUBJECT)).action == "reject"
        assert (await slow).failed_open == "timeout"
        assert client.stats.outages == 0


async def test_a_stalled_link_costs_one_timeout_and_the_answer_comes_back_with_it(server: NatsServer) -> None:
    async with Proxy(server.port or 0) as proxy:
        near = await nats.connect(proxy.url, reconnect_time_wait=0.1, max_reconnect_attempts=-1)
        far = await nats.connect(server.url)
        async with Service(far), BackpressureClient(near) as client:
            assert (await client.decide(SUBJECT)).action == "reject"
            proxy.black_hole()
            began = time.monotonic()
            found = [(await client.decide(SUBJECT)).failed_open for _ in range(20)]
            assert found == ["timeout"] + ["outage"] * 19 and time.monotonic() - began < 3
            proxy.forward()
            await until_answered(client)
        await near.close()
        await far.close()


async def test_a_restart_of_the_server_is_one_outage(
    client: BackpressureClient, server: NatsServer, nc: Client
) -> None:
    async with Service(nc):
        await client.decide(SUBJECT)
        await server.stop()
        await until(lambda: not nc.is_connected, "the disconnect")
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
        (GATEWAY | {"action": "explode"}, "malformed"),
        (GATEWAY | {"retry_after_seconds": -3}, "malformed"),
        (GATEWAY | {"valid_for_ms": "long"}, "malformed"),
        ("404", "unwatched"),
        ("400", "refused"),
        ("503", "unavailable"),
        ("teapot", "unavailable"),
    ],
    ids=str,
)
async def test_an_answer_that_cannot_be_used_means_go_on(
    client: BackpressureClient, nc: Client, caplog: pytest.LogCaptureFixture, answer: Answer, why: str
) -> None:
    async with Service(nc, lambda _: answer):
        found = [await client.decide(SUBJECT) for _ in range(3)]
    assert [f.action for f in found] == ["continue"] * 3 and found[0].failed_open == why
    assert found[0].valid_for_ms == 0 and client.stats.failed_open == 3
    assert len(caplog.records) == 1


async def test_an_answer_to_a_consumer_without_a_pull_is_none(client: BackpressureClient, nc: Client) -> None:
    for pull in (None, {"max_messages": -1}, {"max_messages": 1.5}, 5):
        answer: dict[str, Any] = GATEWAY | {"pull": pull}
        async with Service(nc, lambda _, answer=answer: answer):  # type: ignore[misc]
            found = await client.decide(SUBJECT, "consumer", max_messages=3)
            assert found.failed_open == "malformed" and found.pull is not None and found.pull.max_messages == 3


async def test_what_is_added_to_an_answer_later_does_no_harm(client: BackpressureClient, nc: Client) -> None:
    async with Service(nc, lambda _: GATEWAY | {"added": 1, "failed_open": "by the wire"}):
        found = await client.decide(SUBJECT)
        assert found.action == "reject" and found.failed_open is None


@pytest.mark.parametrize("subject", ["", ".", "a..b", "x" * 1025], ids=["nothing", "a dot", "a gap", "too long"])
async def test_a_subject_that_is_none_is_not_asked_about(client: BackpressureClient, nc: Client, subject: str) -> None:
    async with Service(nc) as service:
        assert (await client.decide(subject)).failed_open == "no_subject"
        assert not service.asked and client.stats.no_subject == 1


async def test_questions_and_callers_are_bounded_and_the_rest_goes_on_at_once(
    client: BackpressureClient, nc: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MOST_ASKS", 3)
    monkeypatch.setattr(room, "MOST_CALLERS", 6)
    monkeypatch.setattr(room, "MOST_KEPT", 2)
    async with Service(nc, lambda _: GATEWAY | {"valid_for_ms": 5000}) as service:
        service.delay = 0.05
        found = await asyncio.gather(
            *(client.decide(f"s{n}") for n in range(5)), *(client.decide("s0") for _ in "12345")
        )
        assert [f.failed_open for f in found] == [None] * 3 + ["busy"] * 2 + [None] * 3 + ["busy"] * 2
        assert len(service.asked) == 3 and len(client._asker._kept) == 2


async def until_answered(client: BackpressureClient) -> None:
    """Keep asking, as a gateway would, until there is an answer again."""
    async with asyncio.timeout(10):
        while (await client.decide(SUBJECT)).failed_open:
            await asyncio.sleep(0.01)
