"""A pull gate and a real pull consumer: with several workers, on several connections, and without a sidecar."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from decimal import Decimal
from fractions import Fraction
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import BadSubscriptionError, ConnectionClosedError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy
from nats.js.errors import APIError, FetchTimeoutError

from nats_backpressure.client import BackpressureClient, PullGate
from nats_backpressure.client.inbox import Inbox
from nats_backpressure.client.requests import TIMEOUT
from nats_backpressure.protocol.requests import MOST_MESSAGES
from nats_backpressure.runtime.tasks import cancel_and_wait
from tests.simulations.decision_service import Answer, FakeDecisionService
from tests.simulations.state_bucket import SUBJECT, wait_until
from tests.support.servers import NatsServer

Subscription = JetStreamContext.PullSubscription


@pytest.fixture
async def subscription(nc: Client) -> Subscription:
    await nc.jetstream().add_stream(name="ORDERS", subjects=[SUBJECT])
    return await nc.jetstream().pull_subscribe(SUBJECT, "router")


async def publish(nc: Client, n: int) -> None:
    for i in range(n):
        await nc.jetstream().publish(SUBJECT, str(i).encode())


def grants(*numbers: int, wait_ms: float = 20) -> Callable[[dict[str, Any]], Answer]:
    """These numbers in turn; then the last one for ever."""
    left = list(numbers)

    def answer(_: dict[str, Any]) -> Answer:
        n = left.pop(0) if len(left) > 1 else left[0]
        return {"subject": SUBJECT, "role": "consumer", "pull": {"max_messages": n, "wait_ms": wait_ms}}

    return answer


async def test_it_pulls_what_is_granted_and_no_more(
    client: BackpressureClient, nc: Client, subscription: Subscription
) -> None:
    await publish(nc, 30)
    gate = PullGate(client, subscription, SUBJECT, stream="ORDERS", consumer="router", batch_wait=30)
    async with FakeDecisionService(nc, grants(3, 50, 10)) as service:
        assert [len(await gate.fetch(10)) for _ in range(3)] == [3, 10, 10]
    assert service.requests[0] == (
        f"consumer.{SUBJECT}",
        {"max_messages": 10, "stream": "ORDERS", "consumer": "router", "unused": 0, "held": 0, "lost": 0, "ahead": 0},
    )
    assert client.stats.pulled == 23


async def test_what_is_there_is_returned_at_once_and_no_more_is_waited_for(
    client: BackpressureClient, nc: Client, subscription: Subscription
) -> None:
    """Also behind a message that is delivered again, which does not say how many are behind it."""
    gate = PullGate(client, subscription, SUBJECT, batch_wait=2)
    async with FakeDecisionService(nc, grants(10)), asyncio.timeout(30):
        for there in (1, 3):
            await publish(nc, there)
            began = time.monotonic()
            messages = await gate.fetch(10)
            for message in messages[: there - 1]:
                await message.ack_sync()
            await messages[-1].nak()
            again = await gate.fetch(10)
            assert (len(messages), len(again)) == (there, 1) and time.monotonic() - began < 1.9
            await again[0].ack_sync()


async def test_each_pull_of_a_backlog_costs_one_request_to_the_server(
    client: BackpressureClient, nc: Client, subscription: Subscription
) -> None:
    """Two round trips, with the question, are what a worker waits."""
    await publish(nc, 30)
    gate, pulls = PullGate(client, subscription, SUBJECT, batch_wait=30), await nc.subscribe(subscription._nms)
    async with FakeDecisionService(nc, grants(5)):
        assert len(await gate.fetch(5)) == 5
        await nc.flush()
        before = pulls.pending_msgs
        assert [len(await gate.fetch(5)) for _ in range(4)] == [5] * 4
        await wait_until(lambda: pulls.pending_msgs >= before + 4, "a request for each pull")
        assert pulls.pending_msgs == before + 4


@pytest.mark.parametrize("others", [0, 2], ids=["none", "some"])
async def test_where_others_took_the_backlog_it_waits_for_what_comes_and_pulls_no_more_than_granted(
    client: BackpressureClient, nc: Client, subscription: Subscription, others: int
) -> None:
    await publish(nc, 10)
    gate, taking = PullGate(client, subscription, SUBJECT), await nc.jetstream().pull_subscribe(SUBJECT, "router")
    async with FakeDecisionService(nc, grants(4)), asyncio.timeout(30):
        assert len(await gate.fetch(4)) == 4
        assert len(await taking.fetch(6 - others)) == 6 - others
        assert others == 0 or len(await gate.fetch(4)) == others
        fetching = asyncio.create_task(gate.fetch(4, timeout=20))
        while not (await subscription.consumer_info()).num_waiting:
            await asyncio.sleep(0.01)
        await publish(nc, 8)
        assert 1 <= len(await fetching) <= 4
        assert (await subscription.consumer_info()).num_ack_pending <= 14


async def test_it_waits_while_nothing_is_granted_and_asks_again(
    client: BackpressureClient, nc: Client, subscription: Subscription
) -> None:
    await publish(nc, 5)
    gate = PullGate(client, subscription, SUBJECT, batch_wait=30)
    async with FakeDecisionService(nc, grants(0, 0, 0, 2, wait_ms=50)) as service:
        began = time.monotonic()
        assert len(await gate.fetch(5)) == 2
        assert time.monotonic() - began >= 0.15
        assert len(service.requests) == 4 and client.stats.held_back == 3


@pytest.mark.parametrize("n", [0, 5], ids=["nothing is granted", "there is nothing"])
async def test_it_gives_up_in_time_as_the_subscription_does(
    client: BackpressureClient, nc: Client, subscription: Subscription, n: int
) -> None:
    gate = PullGate(client, subscription, SUBJECT)
    async with FakeDecisionService(nc, grants(n, wait_ms=1e9)):
        began = time.monotonic()
        with pytest.raises(NatsTimeoutError):
            await gate.fetch(5, timeout=0.3)
        assert time.monotonic() - began >= 0.25
        with pytest.raises(FetchTimeoutError):
            await gate.fetch(5, timeout=0.3, heartbeat=0.1)
    if n:
        await publish(nc, 1)
        assert len(await subscription.fetch(5, timeout=2)) == 1, "no pull is left behind to take it"


async def test_an_absurd_wait_and_a_hasty_one_are_bounded(
    client: BackpressureClient, nc: Client, subscription: Subscription
) -> None:
    await publish(nc, 1)
    gate = PullGate(client, subscription, SUBJECT)
    async with FakeDecisionService(nc, grants(0, 1, wait_ms=1e9)):
        assert len(await gate.fetch(5, timeout=5)) == 1
    async with FakeDecisionService(nc, grants(0, wait_ms=0)) as service:
        with pytest.raises(NatsTimeoutError):
            await gate.fetch(5, timeout=0.2)
        assert len(service.requests) <= 21


async def test_a_grant_is_used_while_it_counts_and_then_asked_for_again(
    client: BackpressureClient, nc: Client, subscription: Subscription
) -> None:
    gate = PullGate(client, subscription, SUBJECT)
    async with FakeDecisionService(nc, grants(4)) as service:
        fetching = asyncio.create_task(gate.fetch(4, timeout=10))
        async with asyncio.timeout(30):
            while len(service.requests) < 2:
                await asyncio.sleep(0.01)
        await publish(nc, 1)
        assert len(await fetching) == 1


async def test_the_first_message_is_returned_at_once_though_more_were_asked_for(
    client: BackpressureClient, nc: Client, subscription: Subscription
) -> None:
    gate = PullGate(client, subscription, SUBJECT, grant_seconds=60)
    async with FakeDecisionService(nc, grants(50)), asyncio.timeout(30):
        fetching = asyncio.create_task(gate.fetch(50, timeout=60))
        while not (await subscription.consumer_info()).num_waiting:
            await asyncio.sleep(0.01)
        await publish(nc, 1)
        assert len(await fetching) == 1
        await publish(nc, 3)
        left = 3
        while left:  # a fetch returns what is there: one message may be there before the others
            left -= len(await gate.fetch(50, timeout=60))


async def test_it_reports_what_it_holds_what_it_lost_and_what_it_did_not_pull(
    client: BackpressureClient, nc: Client, subscription: Subscription
) -> None:
    gate = PullGate(client, subscription, SUBJECT, batch_wait=5)

    async def ask() -> None:
        with pytest.raises(NatsTimeoutError):
            await gate.fetch(4, timeout=0.2)

    async with FakeDecisionService(nc, grants(2, 4, 0)) as service:
        await publish(nc, 5)
        messages = await gate.fetch(2)
        await messages[0].ack()
        messages += await gate.fetch(4)
        await ask()
        assert len(messages) == 5
        await messages.pop().nak(delay=60)
        await messages.pop().nak(delay=1)
        messages[-1]._metadata = dataclasses.replace(messages[-1].metadata, num_delivered=3)
        del messages[-1]  # dropped
        await ask()
        await messages[1].nak(delay=60)
        await ask()
    reported = [(each["held"] - each["ahead"], each["lost"], each["unused"]) for _, each in service.requests]
    changes = [one for one, before in zip(reported, [None, *reported], strict=False) if one != before]
    assert changes == [(0, 0, 0), (1, 0, 0), (4, 0, 1), (4, 0, 0), (1, 3, 0), (1, 0, 0), (0, 1, 0), (0, 0, 0)]
    first, *_, last = [each for _, each in service.requests if each["lost"]]
    dropped, soon, late = first["due"]
    assert dropped == {"n": 1, "deliveries": 3}
    assert [each["n"] for each in (soon, late)] == [each["deliveries"] for each in (soon, late)] == [1, 1]
    assert 0 < soon["delay_ms"] <= 1_050 < 50_000 < late["delay_ms"] <= 61_000
    assert first["earlier"] == []
    assert last["due"][0]["delay_ms"] > 50_000 and last["earlier"][-1]["delay_ms"] > 50_000


@pytest.fixture
def always_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is."""
    monkeypatch.setattr("nats_backpressure.client.pull_gate.EARLY_BELOW", 60.0)


async def early_question(gate: PullGate, service: FakeDecisionService, messages: list[Msg]) -> None:
    """Acknowledge all messages but one, then wait for the question that comes meanwhile."""
    before = len(service.requests)
    for message in messages[:-1]:
        await message.ack()
    await wait_until(lambda: len(service.requests) > before, "a question while it works on the last message")
    assert [service.requests[-1][1][each] for each in ("held", "ahead")] == [1, 1]
    await asyncio.wait_for(asyncio.shield(gate._questions._early), 30)


@asynccontextmanager
async def asked_early(
    client: BackpressureClient, nc: Client, subscription: Subscription
) -> AsyncIterator[tuple[PullGate, FakeDecisionService, list[Msg]]]:
    """A gate that has an early grant of two, and works on the last of its messages."""
    await publish(nc, 9)
    gate = PullGate(client, subscription, SUBJECT, batch_wait=30, grant_seconds=60)
    async with FakeDecisionService(nc, grants(2)) as service:
        for message in await gate.fetch(5):
            await message.ack()
        messages = await gate.fetch(5)
        await early_question(gate, service, messages)
        yield gate, service, messages


@pytest.mark.usefixtures("always_early")
async def test_it_asks_while_the_last_message_is_worked_on_and_pulls_at_once_when_that_is_done(
    client: BackpressureClient, nc: Client, subscription: Subscription
) -> None:
    async with asked_early(client, nc, subscription) as (gate, service, messages):
        await messages[-1].ack()
        asked = len(service.requests)
        assert len(await gate.fetch(5)) == 2 and len(service.requests) == asked


@pytest.mark.usefixtures("always_early")
@pytest.mark.parametrize("end", ["ack", "ack_sync", "term", "nak"])
async def test_an_early_grant_is_pulled_once_the_server_has_counted_the_last_ack(
    client: BackpressureClient, nc: Client, subscription: Subscription, end: str
) -> None:
    """A pull that is sent after an ack may overtake it, and then one more is in flight."""
    async with asked_early(client, nc, subscription) as (gate, service, messages):
        await getattr(messages[-1], end)()
        asked = len(service.requests)
        assert len(await gate.fetch(5)) == 2
        assert len(service.requests) == asked
        assert not gate._inbox._waiting


@pytest.mark.usefixtures("always_early")
@pytest.mark.parametrize("end", ["hold", "drop", "delay"])
async def test_what_is_not_acknowledged_before_the_next_fetch_is_taken_off_an_early_grant(
    client: BackpressureClient, nc: Client, subscription: Subscription, end: str
) -> None:
    async with asked_early(client, nc, subscription) as (gate, service, messages):
        if end == "delay":
            await messages[-1].nak(delay=60)
        elif end == "drop":
            del messages[-1]
        assert len(await gate.fetch(5)) == 1
        before = len(service.requests)
        await gate.fetch(5)
        assert service.requests[before][1]["ahead"] == 0, "it may do so each time"


@pytest.mark.usefixtures("always_early")
async def test_an_early_grant_that_is_over_is_given_back(
    client: BackpressureClient, nc: Client, subscription: Subscription
) -> None:
    async with asked_early(client, nc, subscription) as (gate, service, messages):
        await messages[-1].ack()
        gate._questions._seconds = 0.1
        with suppress(NatsTimeoutError):
            await gate.fetch(5, timeout=0.5)
    reported = [(each["held"], each["ahead"], each["unused"]) for _, each in service.requests]
    assert (0, 0, 2) in reported, "the sidecar counts it otherwise"


async def with_long_work(gate: PullGate, *seconds: float) -> Msg:
    """A message of a gate whose earlier ones took so long."""
    await (await gate.fetch(1))[0].ack()
    gate._returned = 0
    gate._per_message.extend(seconds)
    return (await gate.fetch(1))[0]


async def test_with_longer_work_it_asks_shortly_before_that_should_be_done(
    client: BackpressureClient, nc: Client, subscription: Subscription, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grant keeps its room until it is pulled. Work of uneven length takes as long as the longest of it."""
    monkeypatch.setattr("nats_backpressure.client.pull_gate.EARLY_BELOW", 0.0)
    await publish(nc, 3)
    gate = PullGate(client, subscription, SUBJECT, batch_wait=30, grant_seconds=60)
    async with FakeDecisionService(nc, grants(1)) as service:
        message = await with_long_work(gate, 0.1, 0.5, 0.2)
        began, asked = time.monotonic(), len(service.requests)
        await wait_until(lambda: len(service.requests) > asked, "a question while it works")
        assert time.monotonic() - began >= 0.4
        assert [service.requests[-1][1][each] for each in ("held", "ahead")] == [1, 1]
        await message.ack()
        assert len(await gate.fetch(1)) == 1 and len(service.requests) == asked + 1


async def test_where_work_is_uneven_it_asks_at_once_after_the_short(
    client: BackpressureClient, nc: Client, subscription: Subscription, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nats_backpressure.client.pull_gate.EARLY_BELOW", 1.0)
    await publish(nc, 3)
    gate = PullGate(client, subscription, SUBJECT, batch_wait=30, grant_seconds=60)
    async with FakeDecisionService(nc, grants(1)) as service:
        message = await with_long_work(gate, 600.0, 0.5)
        asked = len(service.requests)
        await wait_until(lambda: len(service.requests) > asked, "a question while it works")
        assert not message._ackd


@pytest.mark.parametrize("work", [0.0, 0.3])
async def test_a_gate_that_left_asks_nothing_early(
    client: BackpressureClient, nc: Client, subscription: Subscription, monkeypatch: pytest.MonkeyPatch, work: float
) -> None:
    """Neither when the work it had then should be done, nor because of an ack after that."""
    monkeypatch.setattr("nats_backpressure.client.pull_gate.EARLY_BELOW", 0.0)
    await publish(nc, 2)
    gate = PullGate(client, subscription, SUBJECT, batch_wait=30, grant_seconds=60)
    async with FakeDecisionService(nc, grants(1)) as service:
        held = [await with_long_work(gate, work or 0.3)]
        await gate.leave()
        gate._per_message.clear()
        gate._per_message.append(work)
        gate._held._tell()
        asked = len(service.requests)
        await asyncio.sleep(0.5)
        assert len(service.requests) == asked and held


@pytest.mark.usefixtures("always_early")
@pytest.mark.parametrize("end", ["unsubscribe", "leave", "client"])
async def test_a_gate_that_ends_while_the_connection_is_down_asks_nothing_early(
    server: NatsServer, nc: Client, subscription: Subscription, end: str
) -> None:
    """It cannot say that it leaves. A question would subscribe again, and nobody would end that."""
    await publish(nc, 3)
    async with FakeDecisionService(nc, grants(2)), BackpressureClient(nc, report_every=None) as client:
        gate = PullGate(client, subscription, SUBJECT, batch_wait=30, grant_seconds=60)
        await (await gate.fetch(1))[0].ack_sync()
        first, last = await gate.fetch(2)
        await server.kill()
        await wait_until(lambda: nc.is_reconnecting, "the loss")
        await (client.close() if end == "client" else getattr(gate, end)())
        subscribed = len(nc._subs)
        await first.ack()
        await asyncio.sleep(0)
        assert gate._questions._early is None and len(nc._subs) == subscribed and not last._ackd


@pytest.mark.usefixtures("always_early")
async def test_a_gate_that_ends_while_a_worker_pulls_asks_nothing_early_for_what_that_gets(
    client: BackpressureClient, nc: Client, subscription: Subscription
) -> None:
    await publish(nc, 1)
    gate = PullGate(client, subscription, SUBJECT, batch_wait=30, grant_seconds=60)
    async with FakeDecisionService(nc, grants(1)) as service, asyncio.timeout(30):
        await (await gate.fetch(1))[0].ack_sync()
        fetching = asyncio.create_task(gate.fetch(1))
        while not (await subscription.consumer_info()).num_waiting:
            await asyncio.sleep(0.01)
        await gate.leave()
        asked = len(service.requests)
        await publish(nc, 1)
        messages = await fetching
        assert gate._questions._early is None and len(service.requests) == asked
        await messages[0].ack_sync()
        await publish(nc, 1)
        held = await gate.fetch(1)
        assert gate._questions._early is not None, "it is used again"
        del held


@pytest.mark.usefixtures("always_early")
async def test_who_pulls_side_by_side_asks_nothing_early(
    client: BackpressureClient, nc: Client, subscription: Subscription
) -> None:
    """A fetch that comes while messages are worked on does not wait until one is left."""
    await publish(nc, 20)
    gate, held = PullGate(client, subscription, SUBJECT, batch_wait=30), []
    async with FakeDecisionService(nc, grants(3)) as service:
        for _ in range(4):
            held += await gate.fetch(3)
        for message in held[:6]:
            await message.ack()
        await gate.fetch(3)
        assert len(service.requests) == 5


async def test_each_gate_asks_as_an_asker_of_its_own(
    client: BackpressureClient, nc: Client, subscription: Subscription
) -> None:
    """Where several share a connection, too: the asker is the reply subject without its last token."""
    gates = [PullGate(client, subscription, SUBJECT) for _ in range(2)]
    askers: list[str] = []

    async def answer(message: Msg) -> None:
        askers.append(message.reply.rpartition(".")[0])
        await message.respond(json.dumps(grants(1)({})).encode())

    await publish(nc, 4)
    await nc.subscribe("backpressure.v1.decide.consumer.>", cb=answer)
    for gate in gates * 2:
        await gate.fetch(1)
    assert len(askers) >= 4 and len(set(askers)) == 2


async def test_first_requests_at_one_moment_share_one_subscription(nc: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    subscribe = nc.subscribe

    async def slowly(*args: Any, **more: Any) -> Any:  # as while much waits to be sent
        await asyncio.sleep(0)
        return await subscribe(*args, **more)

    monkeypatch.setattr(nc, "subscribe", slowly)
    inbox, before = Inbox(nc), len(nc._subs)
    async with FakeDecisionService(nc, grants(1)):
        serving = len(nc._subs) - before
        subject = "backpressure.v1.decide.consumer.s"
        await asyncio.gather(*(inbox.request(subject, b"{}", 30) for _ in range(5)))
        assert len(nc._subs) - before - serving == 1
        await inbox.close()


async def test_without_responders_and_after_a_reconnect_its_inbox_still_works(
    client: BackpressureClient, nc: Client, subscription: Subscription
) -> None:
    gate = PullGate(client, subscription, SUBJECT)
    await publish(nc, 3)
    assert len(await gate.fetch(1)) == 1
    assert client.stats.outages == 1, "no responders, at once"
    async with FakeDecisionService(nc, grants(1)) as service, asyncio.timeout(30):
        while not service.requests:
            await asyncio.sleep(0.05)
            await client.decide(SUBJECT, "consumer")
        reconnects = nc.stats["reconnects"]
        await nc._process_op_err(ConnectionError())  # as when the connection breaks
        while nc.stats["reconnects"] == reconnects:
            await asyncio.sleep(0.05)
        asked = len(service.requests)
        assert len(await gate.fetch(1)) == 1
        assert len(service.requests) > asked


async def test_while_it_connects_again_no_pull_is_kept_for_the_next_connection(
    server: NatsServer, nc: Client, client: BackpressureClient, subscription: Subscription
) -> None:
    """An outage of ten minutes would have a message served for each second of it, whatever is granted then."""
    await publish(nc, 5)
    gate, other = PullGate(client, subscription, SUBJECT), PullGate(client, subscription, SUBJECT)
    async with FakeDecisionService(nc, grants(1)):
        await (await gate.fetch(1))[0].ack_sync()
        await (await other.fetch(1))[0].ack_sync()
        await server.kill()
        await wait_until(lambda: nc.is_reconnecting, "the loss")
        sent, subscribed = nc.stats["out_msgs"], len(nc._subs)
        for _ in range(2):
            with pytest.raises(NatsTimeoutError):
                await gate.fetch(1, timeout=0.3)
        assert nc.stats["out_msgs"] == sent
        await other.unsubscribe()
        assert len(nc._subs) == subscribed - 2, "the next connection has neither its inbox"


async def test_what_a_cancelled_fetch_pulls_is_returned_by_the_next_one(
    client: BackpressureClient, nc: Client, subscription: Subscription
) -> None:
    gate = PullGate(client, subscription, SUBJECT)
    async with FakeDecisionService(nc, grants(5)), asyncio.timeout(30):
        fetching = asyncio.create_task(gate.fetch(5, timeout=60))
        while not (await subscription.consumer_info()).num_waiting:
            await asyncio.sleep(0.01)
        await cancel_and_wait([fetching])
        await publish(nc, 1)
        assert [message.data for message in await gate.fetch(5)] == [b"0"]


@pytest.mark.parametrize("end", ["unsubscribe", "client", "connection"])
async def test_the_pull_of_a_cancelled_fetch_ends_with_its_worker_and_without_an_error(
    server: NatsServer, nc: Client, subscription: Subscription, end: str
) -> None:
    own, problems = await nats.connect(server.url), list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    async with FakeDecisionService(nc, grants(5)), asyncio.timeout(30):
        async with BackpressureClient(own, report_every=None) as client:
            bound = await own.jetstream().pull_subscribe_bind("router", "ORDERS")
            gate = PullGate(client, bound, SUBJECT, grant_seconds=60)
            fetching = asyncio.create_task(gate.fetch(5, timeout=60))
            while not (await subscription.consumer_info()).num_waiting:
                await asyncio.sleep(0.01)
            (pull,) = (task for task in asyncio.all_tasks() if task.get_name().startswith("pull "))
            await cancel_and_wait([fetching])
            assert not pull.done(), "it may have messages already"
            if end == "unsubscribe":
                await gate.unsubscribe()
            if end == "connection":
                await own.close()
                await asyncio.wait({pull})
        assert pull.done() and (pull.cancelled() or pull.exception() is None)
    await own.close()
    assert not problems


async def test_a_pull_that_is_waited_for_goes_on_and_raises(server: NatsServer, nc: Client, subscription: Any) -> None:
    own = await nats.connect(server.url)
    bound = await own.jetstream().pull_subscribe_bind("router", "ORDERS")
    async with FakeDecisionService(nc, grants(5)), asyncio.timeout(30):
        async with BackpressureClient(own, report_every=None) as client:
            fetching = asyncio.create_task(PullGate(client, bound, SUBJECT, grant_seconds=60).fetch(5, timeout=60))
            while not (await subscription.consumer_info()).num_waiting:
                await asyncio.sleep(0.01)
        assert not fetching.done()
        await own.close()
        with pytest.raises(ConnectionClosedError):
            await fetching


async def test_no_cancelled_fetch_loses_a_message(
    client: BackpressureClient, nc: Client, subscription: Subscription
) -> None:
    """Whatever it was doing: waiting for its turn, asking, pulling, or returning."""
    gate, total, received, cancelled = PullGate(client, subscription, SUBJECT), 600, list[bytes](), 0

    async def work(seed: int) -> None:
        nonlocal cancelled
        times = random.Random(seed)
        while len(received) < total:
            try:
                messages = await asyncio.wait_for(gate.fetch(4, timeout=5), times.choice([0.0005, 0.002, 0.005, 0.02]))
            except TimeoutError:
                cancelled += 1
            else:
                received.extend(message.data for message in messages)
                for message in messages:
                    await message.ack()

    async with FakeDecisionService(nc, grants(4)), asyncio.timeout(60):
        await asyncio.gather(publish(nc, total), *(work(seed) for seed in range(3)))
    assert sorted(map(int, received)) == list(range(total)), "each once"
    assert cancelled > 20


REFUSED: list[dict[str, Any]] = [
    *({"batch": batch} for batch in (0, -1, -math.inf, 0.5, False, 2.0, 2.5, math.nan, math.inf)),
    *({"batch": batch} for batch in (None, "2", [1], 1j, Decimal(2), Fraction(5, 2))),
    *({"timeout": timeout} for timeout in (0, -1.0, -math.inf, math.nan, math.inf, 1e12, "1", [1], 1j)),
    *({"heartbeat": heartbeat} for heartbeat in (0.5, 0.51, 1, 5.0, math.nan, math.inf, 1e12, 1j)),
    *({"timeout": None, "heartbeat": heartbeat} for heartbeat in (1e-6, 1.0)),
    {"batch": 0, "timeout": 0},
]
"""What `fetch` of a subscription refuses, at once or as the server does; its timeout is 1 s."""


async def refusal(fetching: Awaitable[object]) -> tuple[type[Exception], object]:
    """What it raises: with its text, where that is not the server's."""
    with pytest.raises((ValueError, TypeError, OverflowError, APIError)) as error:
        await fetching
    return error.type, error.value.code if isinstance(error.value, APIError) else str(error.value)


@pytest.mark.parametrize("batch", [1, 3])
async def test_it_refuses_what_the_subscription_refuses_before_it_asks_or_pulls(
    client: BackpressureClient, nc: Client, subscription: Subscription, batch: int
) -> None:
    """With its error, word for word where the error says anything; `messages` does it for the batch."""
    gate, pulls = PullGate(client, subscription, SUBJECT), await nc.subscribe(subscription._nms)
    for wrong in REFUSED:
        arguments = {"batch": batch, "timeout": 1.0, **wrong}
        theirs = await refusal(subscription.fetch(**arguments))
        await nc.flush()
        before = pulls.pending_msgs
        ours = [await refusal(gate.fetch(**arguments))]
        if "batch" in wrong:
            ours.append(await refusal(anext(gate.messages(arguments["batch"]))))
        if theirs[0] is TypeError:
            assert {each for each, _ in ours} == {TypeError}, wrong
        else:
            assert ours == [theirs] * len(ours), wrong
        await nc.flush()
        assert client.stats.asked == 0 and pulls.pending_msgs == before, wrong
    for worse in ({"heartbeat": [1]}, {"timeout": Decimal(1)}):  # nats-py fills the memory first, or pulls
        assert (await refusal(gate.fetch(**worse)))[0] is TypeError
    assert client.stats.asked == 0


ALLOWED: list[dict[str, Any]] = [
    *({"batch": batch} for batch in (1, 1.0, True, Decimal(1), 3, 100_000)),
    *({"timeout": timeout} for timeout in (True, 1, Fraction(3, 2), 9e9)),
    *({"heartbeat": heartbeat} for heartbeat in (0, -1.0, 1e-10, 0.4, Fraction(1, 4))),
    {"timeout": None, "heartbeat": -1.0},
]


@pytest.mark.parametrize("arguments", ALLOWED, ids=str)
async def test_it_takes_what_the_subscription_takes(
    client: BackpressureClient, nc: Client, subscription: Subscription, arguments: dict[str, Any]
) -> None:
    gate = PullGate(client, subscription, SUBJECT)
    async with FakeDecisionService(nc, grants(1)) as service:
        for fetch in (subscription.fetch, gate.fetch):
            await publish(nc, 1)
            (message,) = await fetch(**{"timeout": 1.0, **arguments})
            await message.ack_sync()
    asked = [each["max_messages"] for _, each in service.requests]
    assert asked and set(map(type, asked)) == {int}


@pytest.mark.parametrize("heartbeat", [None, 0, -1.0, 1e-10, 0.1, True])
async def test_where_nothing_comes_it_raises_what_the_subscription_raises(
    client: BackpressureClient, nc: Client, subscription: Subscription, heartbeat: float | None
) -> None:
    errors, timeout = [], 2.1 if heartbeat is True else 0.3
    async with FakeDecisionService(nc, grants(1)):
        for fetch in (subscription.fetch, PullGate(client, subscription, SUBJECT).fetch):
            with pytest.raises(NatsTimeoutError) as error:
                await fetch(1, timeout, heartbeat)
            errors.append(error.type)
    assert errors[0] is errors[1]


async def test_only_a_pull_subscription_can_be_used(client: BackpressureClient, nc: Client) -> None:
    js = nc.jetstream()
    await js.add_stream(name="ORDERS", subjects=[SUBJECT])
    for subscription in (await js.subscribe(SUBJECT), await js.subscribe(SUBJECT, ordered_consumer=True)):
        with pytest.raises(TypeError, match="pull_subscribe"):
            PullGate(client, subscription, SUBJECT)  # type: ignore[arg-type]  # that is the mistake


async def test_what_else_a_subscription_has_the_gate_has_too(
    client: BackpressureClient, nc: Client, subscription: Subscription
) -> None:
    await publish(nc, 3)
    gate = PullGate(client, subscription, SUBJECT)
    async with FakeDecisionService(nc, grants(1)) as service:
        (message,) = await gate.fetch(20_000, timeout=None)
    ((_, question),) = service.requests
    assert question["max_messages"] == MOST_MESSAGES == 10_000
    await message.ack()
    assert (await gate.consumer_info()).name == "router"
    assert (gate.pending_msgs, gate.pending_bytes, gate.delivered) == (0, 0, subscription.delivered)
    await gate.unsubscribe()
    with pytest.raises(BadSubscriptionError):
        await gate.unsubscribe()


async def test_messages_come_one_after_another_and_none_is_lost_where_the_loop_ends(
    client: BackpressureClient, nc: Client, subscription: Subscription
) -> None:
    await publish(nc, 10)
    gate, received = PullGate(client, subscription, SUBJECT, batch_wait=5), []
    async with FakeDecisionService(nc, grants(4)), asyncio.timeout(30):
        async with aclosing(gate.messages(batch=4)) as messages:
            async for message in messages:
                received.append(message.data)
                if len(received) == 6:
                    break
        assert gate.pending_msgs == 2
        assert not {*map(id, gate._held._messages)} & {*map(id, gate._pulls._kept)}, "none counts as held twice"
        while len(received) < 10:
            received += [message.data for message in await gate.fetch(4)]
    assert received == [str(n).encode() for n in range(10)]


async def test_without_answers_it_pulls_as_many_as_it_was_granted_last_for_a_while(
    client: BackpressureClient, nc: Client, subscription: Subscription, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(nc, 23)
    gate = PullGate(client, subscription, SUBJECT, batch_wait=30)
    async with FakeDecisionService(nc, grants(3)):
        assert len(await gate.fetch(10)) == 3
    assert [len(await gate.fetch(10)) for _ in range(3)] == [3, 3, 3]
    monkeypatch.setattr("nats_backpressure.client.grant_questions.KEEPS_SIZE", 0.0)
    assert len(await gate.fetch(10)) == 10
    gate._pulls._batch_wait = 0.1
    assert len(await gate.fetch(10)) == 1
    assert gate._questions._unused == 0, "what was never granted is not given back"


async def test_without_a_sidecar_it_pulls_everything_and_waits_for_one_answer_only(
    client: BackpressureClient, nc: Client, subscription: Subscription, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BackpressureClient.decide.__kwdefaults__, "timeout", TIMEOUT)
    await publish(nc, 50)
    gate = PullGate(client, subscription, SUBJECT, batch_wait=30)
    async with FakeDecisionService(nc, lambda _: None) as service:
        assert [len(await gate.fetch(5)) for _ in range(10)] == [5] * 10
        asked = [tail.partition(".")[0] for tail, _ in service.requests]
        assert asked.count("consumer") == 1, "only probes, which nobody waits for, ask on"
        assert client.stats.outages == 1


async def test_workers_that_share_a_gate_get_every_message_once(
    client: BackpressureClient, nc: Client, subscription: Subscription
) -> None:
    gate, got = PullGate(client, subscription, SUBJECT), []
    await publish(nc, 300)

    async def work() -> None:
        while len(got) < 300:
            try:
                messages = await gate.fetch(10, timeout=0.5)
            except NatsTimeoutError:
                continue
            got.extend(message.data for message in messages)
            for message in messages:
                await message.ack()

    async with FakeDecisionService(nc, grants(7)), asyncio.timeout(30):
        await asyncio.gather(*(work() for _ in range(6)))
    assert sorted(got, key=int) == [str(i).encode() for i in range(300)]
    assert client.stats.pulled == 300


async def test_workers_that_share_a_gate_never_get_more_than_they_asked_for(
    client: BackpressureClient, nc: Client, subscription: Subscription
) -> None:
    """Side by side, nats-py gives one fetch the status of another, which leaves a pull behind; the next overflows."""
    gate, sizes = PullGate(client, subscription, SUBJECT), []

    async def work(timeout: float) -> None:
        while sum(sizes) < 60:
            with suppress(NatsTimeoutError):
                messages = await gate.fetch(5, timeout=timeout)
                sizes.append(len(messages))
                for message in messages:
                    await message.ack()

    async with FakeDecisionService(nc, grants(2)), asyncio.timeout(30):
        working = asyncio.gather(*(work(seconds) for seconds in (0.05, 0.11, 0.17, 0.9)))
        for _ in range(6):
            await asyncio.sleep(0.25)  # a lull, in which some fetches end and others do not
            await publish(nc, 10)
        await working
    assert sum(sizes) == 60 and max(sizes) <= 5


async def leave_a_pull_behind(nc: Client, subscription: Subscription, n: int, *, expires: float | None = None) -> None:
    """As a fetch does that nats-py ended on an older one's status."""
    pull = {"batch": n, "no_wait": True} if expires is None else {"batch": n, "expires": int(expires * 1e9)}
    await nc.publish(subscription._nms, json.dumps(pull).encode(), subscription._deliver)


async def test_late_messages_are_returned_before_anything_is_asked(
    client: BackpressureClient, nc: Client, subscription: Subscription
) -> None:
    gate = PullGate(client, subscription, SUBJECT)
    await publish(nc, 12)
    await leave_a_pull_behind(nc, subscription, 7)
    await wait_until(lambda: subscription.pending_msgs == 7, "its messages")
    async with FakeDecisionService(nc, grants(2)) as service:
        assert [len(await gate.fetch(5)) for _ in range(2)] == [5, 2] and not service.requests
        sizes = []
        while client.stats.pulled < 12:
            sizes.append(len(await gate.fetch(5)))
        assert sum(sizes) == 5 and max(sizes) <= 2


async def test_a_late_message_is_returned_at_once_while_nothing_is_granted(
    client: BackpressureClient, nc: Client, subscription: Subscription
) -> None:
    """Otherwise it would stay in flight, and with nothing acknowledged nothing would be granted."""
    gate = PullGate(client, subscription, SUBJECT)
    await leave_a_pull_behind(nc, subscription, 1, expires=20)
    async with FakeDecisionService(nc, grants(0, wait_ms=1000)) as service:
        fetching = asyncio.create_task(gate.fetch(5, timeout=20))
        await wait_until(lambda: bool(service.requests), "the question")
        await publish(nc, 1)
        async with asyncio.timeout(30):
            assert len(await fetching) == 1


async def test_workers_on_separate_connections_never_take_more_than_the_room(
    server: NatsServer, nc: Client, subscription: Subscription
) -> None:
    """The service grants the room that is left, as the sidecar does; each worker stands for a process."""
    await publish(nc, 200)
    room, out, most, done = 20, 0, 0, 0

    def answer(request: dict[str, Any]) -> Answer:
        nonlocal out, most
        out -= request["unused"]
        n = min(request["max_messages"], room - out)
        out += n
        most = max(most, out)
        return {"subject": SUBJECT, "role": "consumer", "pull": {"max_messages": n, "wait_ms": 10}}

    async def work() -> None:
        nonlocal out, done
        own = await nats.connect(server.url)
        async with BackpressureClient(own) as client:
            bound = await own.jetstream().pull_subscribe_bind("router", "ORDERS")
            gate = PullGate(client, bound, SUBJECT)
            while done < 200:
                before = out
                try:
                    messages: list[Msg] = await gate.fetch(8, timeout=0.5)
                except NatsTimeoutError:
                    out = min(out, before) if done >= 200 else out
                    continue
                for message in messages:
                    await message.ack_sync()
                out -= len(messages)
                done += len(messages)
        await own.close()

    async with FakeDecisionService(nc, answer), asyncio.timeout(30):
        await asyncio.gather(*(work() for _ in range(4)))
    assert done == 200 and most <= room


@pytest.mark.parametrize("end", ["unsubscribe", "leave", "client"])
async def test_a_gate_that_ends_says_so_and_gives_back_what_it_did_not_pull(
    nc: Client, subscription: Subscription, end: str
) -> None:
    await publish(nc, 3)
    async with FakeDecisionService(nc, grants(5)) as service, BackpressureClient(nc, report_every=None) as client:
        PullGate(client, subscription, SUBJECT)  # has nothing to give back
        gate = PullGate(client, subscription, SUBJECT, batch_wait=30)
        first, *others = await gate.fetch(5)
        await first.ack()
        if end == "client":
            await client.close()
        else:
            await getattr(gate, end)()
    asked = [question for _, question in service.requests]
    assert [question.get("leaving", False) for question in asked] == [False, True]
    assert (asked[1]["unused"], asked[1]["held"]) == (2, len(others)) == (2, 2)


async def test_a_gate_that_pulls_while_its_client_closes_does_not_leave(nc: Client, subscription: Subscription) -> None:
    async with FakeDecisionService(nc, grants(5)) as service, asyncio.timeout(30):
        async with BackpressureClient(nc, report_every=None) as client:
            fetching = asyncio.create_task(PullGate(client, subscription, SUBJECT, grant_seconds=60).fetch(5))
            while not (await subscription.consumer_info()).num_waiting:
                await asyncio.sleep(0.01)
        await publish(nc, 1)
        assert len(await fetching) == 1
    assert not any(question.get("leaving") for _, question in service.requests)


async def test_where_the_consumer_is_at_its_cap_no_pull_stays_at_the_server(
    client: BackpressureClient, nc: Client
) -> None:
    """It would be served once there is room, without a grant, and to a worker that may be busy."""
    js = nc.jetstream()
    await js.add_stream(name="ORDERS", subjects=[SUBJECT])
    await js.add_consumer("ORDERS", durable_name="router", ack_policy=AckPolicy.EXPLICIT, max_ack_pending=3)
    await publish(nc, 10)
    subscription = await js.pull_subscribe_bind("router", "ORDERS")
    gate = PullGate(client, subscription, SUBJECT)
    async with FakeDecisionService(nc, grants(5)), asyncio.timeout(30):
        messages: list[Msg] = []
        while len(messages) < 3:
            messages += await gate.fetch(5, timeout=1)
        with pytest.raises(NatsTimeoutError):
            await gate.fetch(5, timeout=0.3)
        for message in messages:
            await message.ack_sync()
    info = await subscription.consumer_info()
    assert (info.num_ack_pending, info.num_waiting) == (0, 0)
