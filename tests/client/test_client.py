"""The client on a real server: admit, what it counts and reports, and how it is closed."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import math
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from nats_backpressure.client import BackpressureClient, ThreadedClient, local_admission, startup
from nats_backpressure.protocol.values import ActionName
from tests.simulations.decision_service import GATEWAY, FakeDecisionService
from tests.simulations.state_bucket import SUBJECT, States, active, state, wait_until
from tests.support.servers import NatsServer
from tests.support.sidecar import eventually


async def test_a_dry_run_admits_and_counts_what_it_would_have_done(client: BackpressureClient, states: States) -> None:
    await states.put(state(status="active", would="reject", mode="observe"))
    await client.watch([SUBJECT])
    assert client.admit(SUBJECT).would == "reject" and client.admit(SUBJECT).admitted
    assert (client.stats.would, client.stats.admitted, client.stats.shed) == (2, 2, 0)


async def test_a_client_may_be_made_before_its_connection(server: NatsServer, states: States) -> None:
    await states.put(active())
    nc = Client()
    async with BackpressureClient(nc) as client:
        assert client.admit(SUBJECT)
        assert (await client.decide(SUBJECT)).failed_open == "disconnected"
        await nc.connect(server.url)
        assert await client.watch([SUBJECT])
        assert not client.admit(SUBJECT)
    await nc.close()


async def test_unusable_requests_are_admitted_counted_and_logged_once(
    client: BackpressureClient, states: States, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "QUIET_SECONDS", 0.0)
    await states.put(active("thin", action="throttle", admit_ratio=0.5))
    await client.watch()
    for _ in range(3):
        assert client.admit(None) and client.admit("") and client.admit("nobody.watches")
        assert (await client.decide("")).failed_open == "no_subject"
    assert [client.admit("thin", "urgent").admitted for _ in range(4)] == [True, False, True, False]
    stats = client.stats
    assert (stats.no_subject, stats.unwatched, stats.bad_priority, stats.failed_open) == (9, 3, 4, 3)
    assert [r.levelno for r in caplog.records] == [logging.WARNING] * 4


@pytest.mark.parametrize("action", ["continue", "reject"])
def test_an_unknown_priority_is_counted_and_named_once_also_in_calm(
    action: ActionName, caplog: pytest.LogCaptureFixture
) -> None:
    """It was noticed first in the overload."""
    client = BackpressureClient.fixed(action)
    given: list[Any] = ["hgih", "hgih", "x" * 1000, None, ["high"], "high"]
    for priority in given:
        assert client.admit(SUBJECT, priority).admitted is (action == "continue")
    assert client.stats.bad_priority == 5
    assert [r.levelno for r in caplog.records] == [logging.WARNING] * 4
    assert "'hgih'" in caplog.text and len(caplog.text) < 2000


@pytest.mark.parametrize("late", ["the connection", "the sidecar"])
async def test_a_start_beside_nats_or_the_sidecar_is_no_warning(
    late: str, server: NatsServer, nc: Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "QUIET_SECONDS", 60.0)  # a busy machine
    states, own = States(nc), Client()
    if late == "the connection":
        await states.make()
    else:
        await own.connect(server.url)
    async with BackpressureClient(own) as client:
        assert not await client.watch([SUBJECT], timeout=0.3)
        assert client.admit(SUBJECT)
        if late == "the connection":
            await own.connect(server.url)
        else:
            await states.make()
        assert await client.watch([SUBJECT], timeout=10)
        assert client.admit(SUBJECT), "its state is not there yet"
        await states.put(active())
        await wait_until(lambda: not client.admit(SUBJECT), "the state")
    await own.close()
    assert [record.getMessage() for record in caplog.records] == []


async def test_a_client_that_watches_nothing_says_so(
    client: BackpressureClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "QUIET_SECONDS", 0.0)
    assert client.admit(SUBJECT) and client.admit("another")
    (record,) = caplog.records
    assert "admit() without watch()" in record.getMessage()


BAD = [*(f"orders{end}" for end in (".*", ".>", ".a b", ". ", ".", "..", ".a\n", ".a*")), "*", ">", "a b", "x" * 5000]


@pytest.mark.parametrize("subject", BAD)
async def test_what_is_no_plain_subject_is_decided_by_the_strictest_that_it_could_mean(
    subject: str, client: BackpressureClient, states: States, caplog: pytest.LogCaptureFixture
) -> None:
    await states.put(state("orders.calm"), active("orders.acme"), active("payments.a.b"), active("stock"))
    await client.watch()
    assert not client.admit(subject) and not client.admit(subject)
    assert (client.stats.bad_subject, client.stats.shed, client.stats.unwatched) == (2, 2, 0)
    (record,) = caplog.records
    assert "no plain subject" in record.getMessage(), "once"
    await states.put(state("orders.acme"), state("payments.a.b"), state("stock"))
    await wait_until(lambda: bool(client.admit(subject)), "the calm states")


@pytest.mark.parametrize("subject", [7, b"orders", [], {}, "orders.\ud800", "\x00", "other.*"])
async def test_admit_and_decide_raise_nothing_whatever_the_subject_is(
    subject: Any, client: BackpressureClient, states: States
) -> None:
    await states.put(state("orders.calm"))
    await client.watch()
    assert client.admit(subject)
    await client.decide(subject, timeout=0.01)
    assert ThreadedClient.fixed().admit(subject)


async def test_a_pattern_that_is_watched_itself_is_decided_by_its_own_state(
    client: BackpressureClient, states: States
) -> None:
    await states.put(state("orders.*"), active("orders.acme"))
    await client.watch()
    assert client.admit("orders.*") and client.stats.bad_subject == 0
    await states.delete("orders.*")
    await wait_until(lambda: not client.admit("orders.*"), "the state of the pattern to be gone")


async def test_on_count_is_called_for_each_count(nc: Client, states: States) -> None:
    counts: list[tuple[str, str]] = []
    await states.put(active())
    async with BackpressureClient(nc, on_count=lambda *count: counts.append(count)) as client:
        await client.watch([SUBJECT])
        client.admit(SUBJECT)
        assert counts == [("snapshots", ""), ("shed", SUBJECT)]


async def count(name: str, subject: str) -> None: ...


def test_on_count_is_no_coroutine_function() -> None:
    with pytest.raises(TypeError, match="on_count is an `async def`"):
        BackpressureClient(Client(), on_count=count)  # type: ignore[arg-type]


async def test_offered_and_admitted_requests_are_reported_for_the_watched_subject(nc: Client, states: States) -> None:
    reports: dict[str, list[dict[str, float]]] = {}

    async def receive(message: Msg) -> None:
        reports.setdefault(message.subject.removeprefix("backpressure.v1.report.gateway."), []).append(
            json.loads(message.data)
        )

    def total(field: str, tail: str) -> float:
        return sum(report[field] for report in reports.get(tail, ()))

    await nc.subscribe("backpressure.v1.report.gateway.>", cb=receive)
    await states.put(state("orders.*", action="throttle", admit_ratio=0.5), state("calm"))
    async with BackpressureClient(nc, report_every=0.1) as client:
        await client.watch()
        for n in range(100):
            client.admit(f"orders.{n}")
        client.admit("calm", "low")
        await wait_until(lambda: total("offered", "orders.=2A") >= 100 and total("offered", "calm") >= 1, "the reports")
    assert (total("offered", "orders.=2A"), total("admitted", "orders.=2A"), total("admitted", "calm")) == (100, 50, 1)
    assert all(report["seconds"] > 0 for each in reports.values() for report in each)


async def test_the_cached_subjects_are_bounded_and_no_count_is_lost(nc: Client, states: States) -> None:
    await states.put(state("orders.*", action="throttle", admit_ratio=0.25))
    async with BackpressureClient(nc, report_every=None, max_subjects=2) as client:
        await client.watch()
        assert sum(client.admit(f"orders.{n}").admitted for n in range(100)) == 25
        assert len(client._cached) == 2
        watched = client._mirror.states["orders.*"]
        assert watched.offered == 98


async def test_a_closed_client_leaves_nothing_running(nc: Client, states: States) -> None:
    before = len(asyncio.all_tasks())
    async with BackpressureClient(nc) as client:
        await client.watch([SUBJECT])
        await client.decide(SUBJECT)
    await client.close()
    assert len(asyncio.all_tasks()) <= before + 1  # nats-py's own, for replies
    assert client.admit(SUBJECT)


@pytest.mark.parametrize("kind", ["async", "threaded"])
async def test_a_closed_client_opens_as_after_the_death_of_the_sidecar(
    server: NatsServer, nc: Client, states: States, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Nothing tells it of the end of an overload any more."""
    clock = SimpleNamespace(monotonic=time.monotonic)
    monkeypatch.setattr(local_admission, "time", clock)
    await states.put(active())
    await states.heartbeat()
    client: Any
    if kind == "async":
        async with BackpressureClient(nc) as client:
            await client.watch([SUBJECT])
    else:
        with ThreadedClient(server.url, [SUBJECT]) as client:
            await wait_until(lambda: not client.admit(SUBJECT), "the state to be read")
    closed, seen = time.monotonic(), []
    for after in (0, 9, 11.5, 14.5):
        clock.monotonic = partial(float, closed + after)
        answers = [client.admit(SUBJECT) for _ in range(20)]
        seen.append((sum(answer.admitted for answer in answers), answers[-1].freshness))
    shares, freshness = zip(*seen, strict=True)
    assert freshness == ("known", "known", "stale", "stale")
    assert shares[:2] == (0, 0) and 0 < shares[2] < 20 and shares[3] == 20
    if kind == "async":  # it may be used again
        clock.monotonic = time.monotonic
        await states.put(state())
        async with client:
            await client.watch([SUBJECT])
            await wait_until(lambda: client.admit(SUBJECT).admitted, "the new state")


async def test_on_event_may_be_called_before_the_connection_is_made(server: NatsServer) -> None:
    received: list[int] = []

    async def show(event: Any) -> None:
        received.append(event["seq"])

    nc = Client()
    async with BackpressureClient(nc) as client:
        await client.on_event(show)
        await nc.connect(server.url)
        publisher = await nats.connect(server.url)
        async with asyncio.timeout(10):
            for seq in itertools.count(1):
                event = {"subject": SUBJECT, "epoch": "a", "seq": seq}
                await publisher.publish(f"backpressure.v1.event.recovery.{SUBJECT}", json.dumps(event).encode())
                await publisher.flush()
                if received:
                    break
                await asyncio.sleep(0.02)
        await publisher.close()
    await nc.close()


@pytest.mark.parametrize("subject", ["a b", "", "orders.", ".orders", "a..b", "a.>.b", "or*ers", "x" * 2000])
async def test_watch_refuses_what_is_no_subject(client: BackpressureClient, subject: str) -> None:
    with pytest.raises(ValueError, match="to watch"):
        await client.watch(["orders", subject])


@pytest.mark.parametrize("name", ["", "a b", "a.b", "a*", "x" * 65])
def test_no_installation_has_such_a_name(name: str) -> None:
    with pytest.raises(ValueError, match="the name"):
        BackpressureClient(Client(), name=name)


@pytest.mark.parametrize(
    "wrong", [{"role": "gatewai"}, *({"role": "consumer", "max_messages": n} for n in (0, 2.5, math.nan, "3"))], ids=str
)
async def test_decide_refuses_what_is_a_mistake_of_the_caller(client: BackpressureClient, wrong: Any) -> None:
    """Sent, it would be no answer, and make the questions of others fail open."""
    with pytest.raises(ValueError):
        await client.decide(SUBJECT, **wrong)
    assert (client.stats.asked, client.stats.outages) == (0, 0)


async def test_decide_sends_only_what_the_sidecar_takes(client: BackpressureClient, nc: Client) -> None:
    async with FakeDecisionService(nc, lambda _: GATEWAY) as service:
        await client.decide(SUBJECT, priority="urgent", attempt=0)  # type: ignore[arg-type]  # from a header
        await client.decide(SUBJECT, attempt=10**9)
    assert [fields for _, fields in service.requests] == [
        {"attempt": 1, "priority": "normal"},
        {"attempt": 1000, "priority": "normal"},
    ]
    assert client.stats.bad_priority == 1


async def test_events_come_again_after_the_connection_was_closed_and_made_again(server: NatsServer, nc: Client) -> None:
    seen, own = [], await nats.connect(server.url)
    async with BackpressureClient(own) as client:
        await client.on_event(lambda event: seen.append(event["seq"]))
        await own.close()
        await own.connect(server.url)

        async def published() -> bool:
            event = {"subject": SUBJECT, "epoch": "e", "seq": len(seen), "type": "recovery"}
            await nc.publish(f"backpressure.v1.event.recovery.{SUBJECT}", json.dumps(event).encode())
            await nc.flush()
            return bool(seen)

        await eventually(published, "an event")
    assert not own._subs
    await own.close()


async def test_on_event_passes_on_the_events_of_one_subject_until_the_client_is_closed(
    client: BackpressureClient, nc: Client
) -> None:
    received: list[dict[str, object]] = []
    await client.on_event(received.append, SUBJECT)
    event = {"subject": SUBJECT, "epoch": "a", "seq": 1}
    for subject in ("another", SUBJECT, SUBJECT):
        await nc.publish(f"backpressure.v1.event.recovery.{subject}", json.dumps(event).encode())
    await wait_until(lambda: client.stats.events + client.stats.events_dropped == 2, "both")
    assert received == [event]
    await client.close()
    await nc.publish(f"backpressure.v1.event.recovery.{SUBJECT}", b"{}")
    await nc.request("$JS.API.INFO", timeout=10)
    assert client.stats.events_dropped == 1


@pytest.mark.parametrize("seconds", [0.0, 0.01, 61.0, -1.0, float("nan")])
def test_reports_that_the_sidecar_would_drop_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="report_every"):
        BackpressureClient(Client(), report_every=seconds)
