"""The misleading numbers listed in the product page, each caused on a real server: which are used, and how."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from nats_backpressure.core.model.member import Carried
from nats_backpressure.core.model.samples import Retention
from nats_backpressure.core.signals.incarnations import marks_match
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
        yield followed


async def test_a_redelivery_counter_that_never_falls_is_not_a_redelivery_now(at: Following) -> None:
    await at.world.add_stream("S", "s.>")
    await at.world.add_consumer(C, max_deliver=2)
    await at.world.publish("S", "s.a", 60)
    await at.read()
    for _ in range(2):
        assert await at.world.pull(C, 1) == [1]
        await at.world.nak(C, 1)
    assert await at.world.pull(C, 1) == [2]
    await at.received(MaxDeliveries)
    assert ((await at.read()).redelivery_ratio or 0) > 0
    for _ in range(15):
        await at.work(2)
        reading = await at.read()
    assert (await at.sample()).redelivered >= 1
    assert reading.redelivery_ratio == 0
    assert reading.capacity == pytest.approx(2.0, rel=0.2)


async def test_a_consumer_is_the_same_after_a_restart_of_the_server(at: Following, server: NatsServer) -> None:
    """Servers before 2.12 tell another creation time from their first restart on, and this goes on from there: in one
    that lived through it, and in one that starts later."""
    await at.world.add_stream("S", "s.>", storage="file", retention=Retention(max_age=3600.0))
    await at.world.add_consumer(C)
    await at.world.publish("S", "s.a", 60)
    for _ in range(10):
        await at.work(2)
        before = await at.read()
    created = (await at.sample()).created
    await server.restart()
    await at.until_connected()
    assert ((await at.sample()).created != created) is (server.version < (2, 12))
    assert (await at.read()).made == before.made
    at.track = ConsumerTracker(carried=Carried(capacity=50.0, made=before.made))
    started = await at.read()
    assert marks_match(before.made, started.made) and started.capacity == 50.0
    assert before.account and started.account and marks_match(before.account.kind, started.account.kind)


async def test_a_terminated_message_is_no_ack(at: Following) -> None:
    await at.world.add_stream("S", "s.>")
    await at.world.add_consumer(C)
    await at.world.publish("S", "s.a", 20)
    await at.world.pull(C, 10)
    await at.read()
    for seq in range(1, 5):
        at.hints.clear()
        await at.world.term(C, seq)
        await at.received(Terminated)
        reading = await at.read()
    assert (reading.inflight, reading.ack_rate) == (6, 0.0)


async def test_evicted_messages_are_a_loss_with_its_number_and_no_drain(at: Following) -> None:
    await at.world.add_stream("S", "s.>", max_msgs=10)
    await at.world.add_consumer(C)
    await at.world.publish("S", "s.a", 10)
    await at.world.pull(C, 2)
    await at.read()
    await at.world.publish("S", "s.a", 25)
    await shows(at.world, C, first=26, pending=10, inflight=0)
    readings = [await at.read() for _ in range(3)]
    assert readings[1].losing
    assert [reading.lost for reading in readings] == [0, 23, 0]  # 26 is the first; 1 and 2 were given
    assert not any(reading.purged for reading in readings)


async def test_a_purge_is_no_loss(at: Following) -> None:
    await at.world.add_stream("S", "s.>")
    await at.world.add_consumer(C)
    await at.world.publish("S", "s.a", 30)
    await at.world.pull(C, 3)
    await at.read()
    await at.read()
    await at.world.purge("S")
    await shows(at.world, C, pending=0, inflight=0)
    reading = await at.read()
    assert (reading.purged, reading.losing, reading.lost, reading.pending) == (True, False, 0, 0)
    assert reading.ack_rate == 0
    assert not (await at.read()).purged


@pytest.mark.parametrize("stream_too", [False, True], ids=["the consumer", "the stream"])
async def test_a_recreated_consumer_is_used_from_its_second_sample(at: Following, stream_too: bool) -> None:
    await at.world.add_stream("S", "s.>")
    await at.world.add_consumer(C)
    await at.world.publish("S", "s.a", 30)
    await at.work(20)
    before = await at.read()
    await at.world.delete_consumer(C)
    if stream_too:
        await at.world.delete_stream("S")
        await at.world.add_stream("S", "s.>")
        await at.world.publish("S", "s.a", 30)
    await at.world.add_consumer(C)
    assert await at.take() == f"another incarnation of {'the stream' if stream_too else 'the consumer'}"
    reading = await at.read()
    assert (before.pending, reading.pending) == (10, 30)
    assert (reading.lost, reading.purged, reading.diagnosis) == (0, False, None)
    assert reading.backfilling is not stream_too  # what a new stream holds is no history


@pytest.mark.parametrize(("seq", "pending"), [(0, 15), (1, 30), (29, 2)], ids=["to its floor", "back", "forward"])
async def test_a_reset_consumer_is_used_from_its_second_sample(at: Following, seq: int, pending: int) -> None:
    need_server(at.world.version, (2, 14), "CONSUMER.RESET")
    await at.world.add_stream("S", "s.>")
    await at.world.add_consumer(C)
    await at.world.publish("S", "s.a", 30)
    await at.work(15)
    await at.world.pull(C, 5)
    await at.read()
    await at.world.reset(C, seq)
    await shows(at.world, C, pending=pending, deliveries=0, inflight=0)
    assert await at.take() == "a sequence went backwards"
    reading = await at.read()
    assert (reading.pending, reading.lost, reading.purged, reading.backfilling) == (pending, 0, False, False)


async def test_the_empty_state_of_a_newly_assigned_member_is_ignored(at: Following) -> None:
    def empty(page: dict[str, Any]) -> None:
        page["consumers"][0] |= {
            "delivered": {"consumer_seq": 0, "stream_seq": 0},
            "ack_floor": {"consumer_seq": 0, "stream_seq": 0},
            "num_pending": 0,
            "num_ack_pending": 0,
        }

    await at.world.add_stream("S", "s.>")
    await at.world.add_consumer(C)
    await at.world.publish("S", "s.a", 30)
    await at.world.pull(C, 20)
    assert await at.says() is Diagnosis.NOBODY_PULLING
    at.line.change = empty
    assert await at.take() == "a sequence went backwards"
    at.line.change = None
    reading = await at.read()
    assert (reading.pending, reading.inflight, reading.diagnosis) == (10, 20, Diagnosis.NOBODY_PULLING)
    assert reading.diagnosed_for > 0


async def test_a_member_missing_from_the_list_is_read_by_itself_and_stays(at: Following) -> None:
    def missing(page: dict[str, Any]) -> None:
        page["missing"] = [consumer["name"] for consumer in page.pop("consumers")]

    await at.world.add_stream("S", "s.>")
    await at.world.add_consumer(C)
    await at.world.publish("S", "s.a", 30)
    before = [await at.read() for _ in range(6)][-1]
    at.line.change = missing
    at.clock.advance(1.0)
    consumers = await at.world.observer.consumers("S")
    assert (consumers.samples, consumers.missing, consumers.complete) == ((), ("c",), True)
    reading = at.track.add_sample(await at.world.observer.consumer(C), consumers.look)
    assert not isinstance(reading, str)
    assert (reading.pending, reading.diagnosis) == (30, Diagnosis.NOBODY_PULLING)
    assert reading.diagnosed_for == before.diagnosed_for + 1.0


async def test_a_new_consumer_of_a_full_stream_backfills_until_it_has_caught_up(at: Following) -> None:
    at.track = ConsumerTracker(held=31)
    await at.world.add_stream("S", "s.>")
    await at.world.publish("S", "s.a", 30)
    await at.world.publish("S", "s.b")
    await at.world.add_consumer(C, "s.a")
    assert (await at.read()).backfilling
    await at.work(29)
    assert (await at.read()).backfilling
    await at.work(1)
    await at.world.publish("S", "s.a", 5)
    await shows(at.world, C, pending=5)
    reading = await at.read()
    while reading.backfilling:  # as long as what it was last given is older than what was there before it
        await at.work(1)
        reading = await at.read()
    assert reading.pending == 4


async def test_a_consumer_of_new_messages_does_not_backfill(at: Following) -> None:
    at.track = ConsumerTracker(held=30)
    await at.world.add_stream("S", "s.>")
    await at.world.publish("S", "s.a", 30)
    await at.world.add_consumer(C, deliver_policy="new")
    assert not (await at.read()).backfilling
    await at.world.publish("S", "s.a", 30)
    await shows(at.world, C, pending=30)
    assert not (await at.read()).backfilling


async def test_the_age_of_the_oldest_waiting_message_is_by_the_servers_clock(at: Following) -> None:
    await at.world.add_stream("S", "s.>")
    await at.world.add_consumer(C)
    assert (await at.read()).oldest_age == 0.0
    await at.world.publish("S", "s.a", 30)
    age = (await at.read()).oldest_age
    assert age is not None and age < 30 if at.world.tells_time else age is None
    await at.work(5)
    assert (await at.read(7.0)).oldest_age == pytest.approx(7.0)  # stored between our first look and our second
