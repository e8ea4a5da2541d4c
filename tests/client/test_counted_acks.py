"""A pull gate, and a server that is slow to count acks or to answer pulls: it does each beside the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription
from nats.errors import OutboundBufferLimitError
from nats.errors import TimeoutError as NatsTimeoutError

from nats_backpressure.client import BackpressureClient, PullGate
from tests.client.test_pull_gate import Subscription, always_early, grants, publish, subscription
from tests.simulations.decision_service import FakeDecisionService
from tests.simulations.state_bucket import SUBJECT, wait_until

__all__ = ["always_early", "subscription"]


@pytest.fixture(autouse=True)
def any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow; nothing is asked early, except with `always_early`."""
    monkeypatch.setattr("nats_backpressure.client.counted_acks.WAIT", 30.0)
    monkeypatch.setattr("nats_backpressure.client.pull_gate.EARLY_BELOW", -1.0)
    monkeypatch.setattr("nats_backpressure.client.pull_gate.EARLY_BY", -600.0)


async def slow_acks(nc: Client, message: Msg) -> NatsSubscription:
    """What is sent about this message comes here, and not to the server."""
    message.reply = "slow.acks"
    return await nc.subscribe("slow.acks")


async def hold_one(gate: PullGate) -> Msg:
    """A message of a gate whose first one the server has counted."""
    await (await gate.fetch(1))[0].ack()
    return (await gate.fetch(1))[0]


@pytest.fixture
async def gate(client: BackpressureClient, nc: Client, subscription: Subscription) -> PullGate:
    """A gate with 20 messages to pull."""
    await publish(nc, 20)
    return PullGate(client, subscription, SUBJECT, batch_wait=30)


class Slow(NamedTuple):
    gate: PullGate
    message: Msg
    acks: NatsSubscription
    service: FakeDecisionService


@pytest.fixture
async def slow(nc: Client, gate: PullGate) -> AsyncIterator[Slow]:
    """A gate of whose first message the server has counted the ack; it holds a second one, whose ack comes here."""
    async with FakeDecisionService(nc, grants(1)) as service:
        acks = await slow_acks(nc, message := await hold_one(gate))
        yield Slow(gate, message, acks, service)


@pytest.mark.parametrize("end", ["ack", "term", "nak"])
async def test_nothing_is_pulled_before_the_server_has_counted_the_acks_and_the_sidecar_knows_of_it(
    nc: Client, subscription: Subscription, slow: Slow, end: str
) -> None:
    """Else the server may serve the pull first, or that of another worker which is granted the room."""
    await getattr(slow.message, end)()
    pulls, requests = await nc.subscribe(subscription._nms), slow.service.requests
    asked = len(requests)
    fetching = asyncio.create_task(slow.gate.fetch(1))
    while not (question := await slow.acks.next_msg(timeout=30)).reply:
        pass
    assert question.data in (b"", b"+WPI"), "anything else would end a message that comes again"
    await wait_until(lambda: len(requests) > asked, "a question meanwhile")
    assert [requests[-1][1][each] for each in ("held", "ahead")] == [1, 1]
    with pytest.raises(NatsTimeoutError):
        await pulls.next_msg(timeout=0.3)
    await question.respond(b"")
    assert len(await fetching) == 1
    assert len(requests) == asked + 1


async def test_where_nothing_is_granted_because_of_acks_it_asks_again_once_these_are_counted(
    nc: Client, gate: PullGate
) -> None:
    """Where there are more workers than the mark, what a worker acknowledges may be for another."""
    async with FakeDecisionService(nc, grants(1, 0, 1, wait_ms=30_000)) as service:
        await (await gate.fetch(1))[0].ack()
        assert len(await gate.fetch(1, timeout=20)) == 1
    assert [(each["held"], each["ahead"]) for _, each in service.requests] == [(0, 0), (1, 1), (0, 0)]


async def test_while_acks_are_not_counted_nothing_is_pulled_until_the_answer_must_be_lost(
    client: BackpressureClient, nc: Client, subscription: Subscription, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    await slow.message.ack()
    monkeypatch.setattr("nats_backpressure.client.counted_acks.WAIT", 0.02)
    monkeypatch.setattr("nats_backpressure.client.counted_acks.LOST", 30.0)
    pulls, held_back = await nc.subscribe(subscription._nms), client.stats.held_back
    with pytest.raises(NatsTimeoutError):
        await slow.gate.fetch(1, timeout=0.5)
    assert not pulls.pending_msgs and slow.acks.pending_msgs == 1
    assert client.stats.held_back > held_back
    assert slow.service.requests[-1][1]["unused"] == 1
    monkeypatch.setattr("nats_backpressure.client.counted_acks.LOST", 0.0)
    assert len(await slow.gate.fetch(1, timeout=30)) == 1
    assert [slow.service.requests[-1][1][each] for each in ("held", "ahead")] == [1, 1], "it is not counted"


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("ever_answered", [False, True])
async def test_a_fetch_waits_for_the_count_of_acks_no_longer_than_its_timeout(
    nc: Client, gate: PullGate, n: int, ever_answered: bool, early: bool
) -> None:
    """Nor does it take a server for one that never answers, because it waited for less."""
    async with FakeDecisionService(nc, grants(1, *[1] * ever_answered, n)), asyncio.timeout(25):
        message = await hold_one(gate) if ever_answered else (await gate.fetch(1))[0]
        await slow_acks(nc, message)
        if early:
            gate._ask_early()
        await message.ack()
        for _ in range(2):
            with pytest.raises(NatsTimeoutError):
                await gate.fetch(1, timeout=0.1)
        assert gate._held.acks.answers and gate._held.acks.uncounted == 1


async def test_no_question_begins_after_the_timeout_of_its_fetch(
    nc: Client, gate: PullGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may take its whole time. This one is answered 0 late, and then the count of acks is given up."""
    async with FakeDecisionService(nc, grants(1, 1, 0)) as service, asyncio.timeout(25):
        await slow_acks(nc, message := await hold_one(gate))
        await message.ack()
        monkeypatch.setattr("nats_backpressure.client.counted_acks.LOST", 0.0)
        asked, service.delay = len(service.requests), 0.3
        with pytest.raises(NatsTimeoutError):
            await gate.fetch(1, timeout=0.05)
        assert len(service.requests) == asked + 1


@pytest.mark.parametrize("worker_acks", [False, True])
async def test_an_answer_that_always_takes_longer_than_one_wait_is_an_answer(
    slow: Slow, monkeypatch: pytest.MonkeyPatch, worker_acks: bool
) -> None:
    """Another worker that shares the gate acknowledges meanwhile: its question makes the first one no lost one."""
    async with asyncio.timeout(60):
        others = [(await slow.gate.fetch(1))[0] for _ in range(3)]
        for other in others:
            other.reply = slow.message.reply
        monkeypatch.setattr("nats_backpressure.client.counted_acks.WAIT", 0.05)
        monkeypatch.setattr("nats_backpressure.client.counted_acks.LOST", 30.0)
        await slow.message.ack()
        fetching = asyncio.create_task(slow.gate.fetch(1))
        questions = [await slow.acks.next_msg(timeout=30)]
        for other in others if worker_acks else ():
            await other.ack()
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.12)
        assert not fetching.done()
        while slow.acks.pending_msgs:
            questions.append(await slow.acks.next_msg(timeout=30))
        for question in questions:
            if question.reply:
                await question.respond(b"")
        assert len(await fetching) == 1


@pytest.mark.usefixtures("always_early")
async def test_where_the_server_never_answers_acks_are_taken_for_counted(
    nc: Client, gate: PullGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As JetStream of another account: each wait would be one for nothing."""
    async with FakeDecisionService(nc, grants(2)) as service:
        messages = await gate.fetch(2)
        await slow_acks(nc, messages[1])
        monkeypatch.setattr("nats_backpressure.client.counted_acks.WAIT", 0.02)
        for message in messages:
            await message.ack()
        more, asked = await gate.fetch(2), len(service.requests)
        acks = await nc.subscribe("$JS.ACK.>")
        for message in more:
            await message.ack()
        await gate.fetch(2)
        assert [(await acks.next_msg(timeout=30)).reply for _ in range(2)] == ["", ""]
        assert not acks.pending_msgs
        assert [(each["held"], each["ahead"]) for _, each in service.requests[asked:]] == [(0, 0)], "none is early"


async def test_an_ack_that_was_confirmed_to_the_worker_is_not_asked_about(nc: Client, gate: PullGate) -> None:
    acks = await nc.subscribe("$JS.ACK.>")
    async with FakeDecisionService(nc, grants(2)):
        first, last = await gate.fetch(2)
        await first.ack()
        await last.ack_sync()
        await gate.fetch(2)
        await nc.flush()
        assert acks.pending_msgs == 2


async def test_while_nothing_is_answered_acks_are_counted_too(
    client: BackpressureClient, nc: Client, gate: PullGate
) -> None:
    """The first question after an outage would report to hold all of them."""
    async with FakeDecisionService(nc, grants(1)) as service:
        await (await gate.fetch(1))[0].ack()
    for _ in range(10):
        await (await gate.fetch(1))[0].ack()
    assert client.stats.failed_open >= 10
    async with FakeDecisionService(nc, grants(1)) as service, asyncio.timeout(30):
        while not (questions := [asked for subject, asked in service.requests if subject.startswith("consumer.")]):
            await (await gate.fetch(1))[0].ack()
            await publish(nc, 1)
    assert questions[0]["held"] <= 1


async def slow_pulls(nc: Client, subscription: Subscription) -> NatsSubscription:
    """Its pulls come here, and not to the server."""
    subscription._nms = "slow.pulls"
    return await nc.subscribe("slow.pulls")


async def test_a_pull_that_the_server_is_slow_to_answer_is_not_sent_twice(
    client: BackpressureClient, nc: Client, subscription: Subscription
) -> None:
    """Each would be served in the end: more than was granted."""
    await publish(nc, 9)
    gate, server = PullGate(client, subscription, SUBJECT, batch_wait=0.01), subscription._nms
    async with FakeDecisionService(nc, grants(2)):
        for message in await gate.fetch(2):
            await message.ack()
        pulls = await slow_pulls(nc, subscription)
        fetching = asyncio.create_task(gate.fetch(2))
        pull = await pulls.next_msg(timeout=30)
        with pytest.raises(NatsTimeoutError):
            await pulls.next_msg(timeout=0.3)
        await nc.publish(server, pull.data, pull.reply)
        assert len(await fetching) == 2


async def test_what_the_server_may_still_send_is_reported_as_held_and_not_given_back(
    client: BackpressureClient, nc: Client, subscription: Subscription
) -> None:
    await publish(nc, 9)
    gate, server = PullGate(client, subscription, SUBJECT, batch_wait=0.01), subscription._nms
    async with FakeDecisionService(nc, grants(2)) as service:
        for message in await gate.fetch(2):
            await message.ack()
        pulls = await slow_pulls(nc, subscription)
        with pytest.raises(NatsTimeoutError):
            await gate.fetch(2, timeout=0.2)
        with pytest.raises(NatsTimeoutError):
            await gate.fetch(2, timeout=0.2)
        assert [service.requests[-1][1][each] for each in ("held", "unused")] == [2, 0]
        pull = await pulls.next_msg(timeout=30)
        await nc.publish(server, pull.data, pull.reply)
        assert len(await gate.fetch(2)) == 2, "late"


async def test_a_gate_that_leaves_waits_until_its_acks_are_counted(slow: Slow) -> None:
    """Its part goes to others at once."""
    await slow.message.ack()
    leaving = asyncio.create_task(slow.gate.leave())
    question = await slow.acks.next_msg(timeout=30)
    await asyncio.sleep(0.1)
    assert not any(asked.get("leaving") for _, asked in slow.service.requests)
    await question.respond(b"")
    await leaving
    assert [slow.service.requests[-1][1][each] for each in ("leaving", "held")] == [True, 0]


async def test_an_ack_that_could_not_be_sent_is_asked_about_later(
    nc: Client, gate: PullGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeDecisionService(nc, grants(1)):
        message, acks = await hold_one(gate), gate._held.acks

        async def full(subject: str, payload: bytes = b"") -> asyncio.Future[Msg]:
            raise OutboundBufferLimitError

        with monkeypatch.context() as broken:
            broken.setattr(gate._inbox, "send", full)
            with pytest.raises(OutboundBufferLimitError):
                await message.ack()
        assert acks.uncounted and await acks.are_counted() and not acks.uncounted


async def test_a_message_that_is_here_is_returned_though_the_next_pull_meets_an_error(
    nc: Client, subscription: Subscription, gate: PullGate
) -> None:
    async with FakeDecisionService(nc, grants(3)):
        server, pulls = subscription._nms, gate._pulls

        async def answer(pull: Msg) -> None:
            if b"no_wait" in pull.data:
                await nc.publish(pull.reply, headers={"Status": "503"})
            else:
                await nc.publish(server, pull.data, pull.reply)

        await nc.subscribe("broken.pulls", cb=answer)
        subscription._nms = "broken.pulls"
        pulls._more = False
        assert len(await gate.fetch(3)) == 1
