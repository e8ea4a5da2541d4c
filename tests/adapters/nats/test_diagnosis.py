"""Each diagnosis, caused on a real server by real pulls and acks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import nats
import pytest

from nats_backpressure.core.signals.tracker import ConsumerTracker
from nats_backpressure.protocol.values import Diagnosis
from nats_backpressure.runtime.observations import MaxDeliveries, Terminated
from tests.simulations.both_servers import shows
from tests.simulations.followed_consumer import C, Following, following
from tests.support.parts import need_server
from tests.support.servers import NatsServer


@pytest.fixture
async def at(server: NatsServer) -> AsyncIterator[Following]:
    async with following(server) as followed:
        await followed.world.add_stream("S", "s.>")
        yield followed


def a_pull_waits(page: dict[str, Any]) -> None:
    """What a server says that forgot its pull requests: none could be brought to do so."""
    for consumer in page["consumers"]:
        consumer["num_waiting"] = 1


async def test_pulls_and_messages_wait_and_the_server_delivers_nothing(at: Following) -> None:
    await at.world.add_consumer(C)
    await at.world.publish("S", "s.a", 30)
    at.line.change = a_pull_waits
    assert await at.says() is Diagnosis.SERVER_STUCK
    at.line.change = None
    await at.work(30)
    assert await at.says() is Diagnosis.IDLE


async def test_pulls_of_a_priority_group_wait_on_purpose(at: Following) -> None:
    need_server(at.world.version, (2, 11), "a priority group")
    await at.world.add_consumer(C, priority_policy="overflow", priority_groups=["A"])
    await at.world.publish("S", "s.a", 30)
    await at.world.ask(C, 1, group="A", min_pending=1000)
    await at.until(lambda sample: sample.waiting == 1)
    assert await at.says() is Diagnosis.HEALTHY


async def test_in_flight_at_the_cap_while_messages_wait(at: Following) -> None:
    await at.world.add_consumer(C, cap=20)
    await at.world.publish("S", "s.a", 50)
    taken = await at.world.pull(C, 20)
    assert await at.says() is Diagnosis.CAP_REACHED
    await at.world.ask(C, 1)
    await at.until(lambda sample: sample.waiting == 1)
    assert await at.says() is Diagnosis.CAP_REACHED
    await at.world.ack(C, *taken)
    await at.work(50)
    assert (await at.says()) is not Diagnosis.CAP_REACHED


async def test_a_small_cap_is_full_whenever_the_worker_works(at: Following) -> None:
    await at.world.add_consumer(C, cap=1)
    await at.world.publish("S", "s.a", 50)
    taken = await at.world.pull(C, 1)
    for _ in range(10):
        await at.world.ack(C, *taken)
        taken = await at.world.pull(C, 1)
        reading = await at.read()
        assert reading.inflight == 1 and reading.diagnosis is not Diagnosis.CAP_REACHED
    assert await at.says() is Diagnosis.CAP_REACHED


async def test_no_worker_pulls_until_one_starts(at: Following) -> None:
    await at.world.add_consumer(C)
    await at.world.publish("S", "s.a", 50)
    assert await at.says() is Diagnosis.NOBODY_PULLING
    for _ in range(4):
        await at.work(5)
        reading = await at.read()
    assert reading.diagnosis is Diagnosis.DRAINING


async def test_a_push_consumer_has_no_subscriber(at: Following, server: NatsServer) -> None:
    await at.world.add_consumer(C, deliver_subject="to.me")
    await at.world.publish("S", "s.a", 50)
    assert await at.says() is Diagnosis.NOBODY_PULLING
    worker = await nats.connect(server.url)

    async def work(message: Any) -> None:
        await message.ack()

    await worker.subscribe("to.me", cb=work)
    await at.until(lambda sample: sample.bound and sample.pending == 0 and sample.inflight == 0)
    assert await at.says() is Diagnosis.IDLE
    await worker.close()


async def test_a_message_that_no_worker_can_process_is_poison(at: Following) -> None:
    await at.world.add_consumer(C, max_deliver=1)
    await at.world.publish("S", "s.a", 2)
    await at.world.pull(C, 1)
    await at.world.nak(C, 1)
    await at.work(1)
    await at.received(MaxDeliveries)
    assert await at.says() is Diagnosis.POISON
    assert await at.says(within=60) is Diagnosis.IDLE


async def test_a_terminated_message_is_poison(at: Following) -> None:
    await at.world.add_consumer(C)
    await at.world.publish("S", "s.a")
    await at.world.pull(C, 1)
    await at.world.term(C, 1)
    await at.received(Terminated)
    assert await at.says() is Diagnosis.POISON


async def test_a_stream_that_refuses_new_messages_is_full(at: Following) -> None:
    await at.world.delete_stream("S")
    await at.world.add_stream("S", "s.>", max_msgs=10, discard="new")
    await at.world.add_consumer(C)
    await at.world.publish("S", "s.a", 9)
    await at.work(9)
    assert await at.says() is Diagnosis.IDLE
    await at.world.publish("S", "s.a")
    await at.work(1)
    assert await at.says() is Diagnosis.STREAM_FULL
    assert (await at.read()).stream_fill == 1.0


async def test_a_stream_that_drops_old_messages_is_full_for_a_consumer_with_a_backlog(at: Following) -> None:
    await at.world.delete_stream("S")
    await at.world.add_stream("S", "s.>", max_msgs=20)
    await at.world.add_consumer(C)
    await at.world.publish("S", "s.a", 20)
    for _ in range(6):
        await at.work(5)
        await at.world.publish("S", "s.a", 5)
        reading = await at.read()
    assert reading.diagnosis is Diagnosis.STREAM_FULL
    await at.work(20)
    assert await at.says() is Diagnosis.IDLE


async def test_arrivals_exceed_acks_and_then_fall_below_them(at: Following) -> None:
    await at.world.add_consumer(C)
    for _ in range(6):
        await at.world.publish("S", "s.a", 30)
        await at.work(10)
        reading = await at.read()
    assert reading.diagnosis is Diagnosis.FALLING_BEHIND
    assert (reading.arrival_rate, reading.ack_rate) == (pytest.approx(30.0), pytest.approx(10.0))
    for _ in range(6):
        await at.world.publish("S", "s.a", 5)
        await at.work(20)
        reading = await at.read()
    assert reading.diagnosis is Diagnosis.DRAINING


async def test_a_paused_consumer_is_paused_whatever_waits(at: Following) -> None:
    need_server(at.world.version, (2, 11), "a pause")
    await at.world.add_consumer(C, pause_until="2200-01-01T00:00:00Z")
    await at.world.publish("S", "s.a", 30)
    assert await at.says() is Diagnosis.PAUSED
    await at.world.ask(C, 1)
    await at.until(lambda sample: sample.waiting == 1)
    assert await at.says() is Diagnosis.PAUSED


async def test_reading_history_is_not_an_overload(at: Following) -> None:
    at.track = ConsumerTracker(held=100)
    await at.world.publish("S", "s.a", 100)
    await at.world.add_consumer(C)
    reading = await at.read()
    for _ in range(5):
        await at.work(10)
        reading = await at.read()
    assert reading.diagnosis is Diagnosis.BACKFILLING
    await at.work(50)
    assert await at.says() is Diagnosis.IDLE


async def test_a_worker_that_keeps_up_is_healthy_with_gaps_between_its_pulls(at: Following) -> None:
    await at.world.add_consumer(C)
    diagnoses = []
    for n in range(60):
        await at.world.publish("S", "s.a", 2)
        if n % 5 == 4:  # every 1.5 s, all there is
            await at.work(10)
        diagnoses.append((await at.read(0.3)).diagnosis)
    await shows(at.world, C, pending=0, inflight=0)
    assert set(diagnoses[8:]) <= {Diagnosis.HEALTHY, Diagnosis.DRAINING, Diagnosis.FALLING_BEHIND}
    assert diagnoses[-1] is Diagnosis.HEALTHY
