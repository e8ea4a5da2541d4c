"""The observer: the same tests on the fake and on a real server."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import nats
import pytest
from msgspec.structs import replace

from nats_backpressure.core.model.samples import ConsumerConfig, Retention
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.observations import ConsumerGone, StreamGone, Unavailable
from tests.simulations.both_servers import FakeWorld, RealWorld, World, picture, shows
from tests.support.parts import NOT_WITH_THIS_SERVER
from tests.support.servers import NatsServer

C = ConsumerKey("S", "c")


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.real_server)])
async def world(request: pytest.FixtureRequest, tmp_path) -> AsyncIterator[World]:
    if request.param == "fake":
        yield FakeWorld()
        return
    async with NatsServer(tmp_path / "nats") as server:
        client = await nats.connect(server.url)
        yield RealWorld(client, server.version)
        await client.close()


@pytest.fixture
async def stream(world: World) -> str:
    await world.add_stream("S", "s.>")
    return "S"


async def test_a_consumer_goes_from_pending_to_in_flight_to_acknowledged(world: World, stream: str) -> None:
    await world.add_consumer(C)
    await world.publish(stream, "s.a", 20)
    await shows(world, C, first=1, last=20, pending=20, inflight=0, delivered=0, floor=0)
    assert await world.pull(C, 5) == [1, 2, 3, 4, 5]
    await shows(world, C, pending=15, inflight=5, delivered=5, deliveries=5, floor=0, redelivered=0)
    await world.ack(C, 1)
    await shows(world, C, inflight=4, floor=1, acked=1)


async def test_the_ack_floor_waits_for_a_gap(world: World, stream: str) -> None:
    await world.add_consumer(C)
    await world.publish(stream, "s.a", 5)
    await world.pull(C, 4)
    await world.ack(C, 1, 3)
    await shows(world, C, inflight=2, floor=1, acked=1)
    await world.ack(C, 2)
    await shows(world, C, inflight=1, floor=3, acked=3)


async def test_a_nak_stays_in_flight_until_the_next_pull(world: World, stream: str) -> None:
    await world.add_consumer(C)
    await world.publish(stream, "s.a", 3)
    await world.pull(C, 2)
    before = await picture(world, C)
    await world.nak(C, 1)
    assert await picture(world, C) == before
    assert await world.pull(C, 1) == [1]
    await shows(world, C, pending=1, inflight=2, delivered=2, deliveries=3, redelivered=1)
    await world.ack(C, 1)
    await shows(world, C, inflight=1, redelivered=0, floor=1, acked=1)


async def test_a_term_counts_as_an_acknowledgement(world: World, stream: str) -> None:
    await world.add_consumer(C)
    await world.publish(stream, "s.a", 2)
    await world.pull(C, 2)
    await world.term(C, 1)
    await shows(world, C, inflight=1, floor=1, acked=1)


async def test_a_message_delivered_too_often_leaves_in_flight_at_the_next_pull(world: World, stream: str) -> None:
    await world.add_consumer(C, max_deliver=2)
    await world.publish(stream, "s.a", 2)
    for _ in range(2):
        assert await world.pull(C, 1) == [1]
        await world.nak(C, 1)
    assert await world.pull(C, 1) == [2]
    await world.ack(C, 2)
    await shows(world, C, inflight=0, pending=0, redelivered=1)


async def test_a_deleted_message_leaves_pending_or_flight(world: World, stream: str) -> None:
    await world.add_consumer(C)
    await world.publish(stream, "s.a", 6)
    await world.pull(C, 2)
    await world.delete_message(stream, 4)
    await shows(world, C, pending=3, inflight=2, delivered=2, first=1, floor=0)
    await world.delete_message(stream, 1)
    await shows(world, C, pending=3, inflight=1, delivered=2, first=2, floor=1)


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (0, {"first": 11, "pending": 0, "inflight": 0, "delivered": 10, "deliveries": 3, "floor": 10, "acked": 3}),
        (2, {"first": 9, "pending": 2, "inflight": 0, "delivered": 8, "deliveries": 3, "floor": 8, "acked": 3}),
        (9, {"first": 2, "pending": 7, "inflight": 2, "delivered": 3, "deliveries": 3, "floor": 1, "acked": 1}),
    ],
    ids=["all", "of what is not delivered a part stays", "of what is in flight a part stays"],
)
async def test_a_purge_moves_delivered_without_deliveries(
    world: World, stream: str, keep: int, expected: dict[str, int]
) -> None:
    if keep == 9 and not world.tells_time:
        pytest.skip(f"{NOT_WITH_THIS_SERVER}: 2.9 forgets all that is in flight, also what it keeps")
    await world.add_consumer(C)
    await world.publish(stream, "s.a", 10)
    await world.pull(C, 3)
    await world.purge(stream, keep=keep)
    await shows(world, C, last=10, messages=keep, **expected)


async def test_a_purge_of_a_subject_moves_only_its_consumers(world: World, stream: str) -> None:
    other = ConsumerKey("S", "other")
    await world.add_consumer(C, "s.a")
    await world.add_consumer(other, "s.b")
    for _ in range(3):
        await world.publish(stream, "s.a")
        await world.publish(stream, "s.b")
    await world.purge(stream, subject="s.a")
    await shows(world, C, first=2, pending=0, deliveries=0)
    await shows(world, other, pending=3, delivered=0, floor=0)


async def test_eviction_without_pulls_shows_only_in_the_first_sequence(world: World) -> None:
    await world.add_stream("S", "s.>", max_msgs=10)
    await world.add_consumer(C)
    await world.publish("S", "s.a", 5)
    assert (await world.observer.consumers("S")).look.fill == 0.5
    await world.publish("S", "s.a", 30)
    await shows(world, C, first=26, last=35, pending=10, delivered=0, deliveries=0, floor=0)
    look = (await world.observer.consumers("S")).look
    assert (look.at_limit, look.fill) == (True, 1.0)


async def test_eviction_with_pulls_removes_messages_in_flight(world: World) -> None:
    await world.add_stream("S", "s.>", max_msgs=10)
    await world.add_consumer(C)
    await world.publish("S", "s.a", 10)
    await world.pull(C, 3)
    await world.publish("S", "s.a", 5)
    await shows(world, C, first=6, last=15, pending=10, inflight=0, delivered=3, deliveries=3, floor=3, acked=3)
    assert await world.pull(C, 1) == [6]
    await shows(world, C, pending=9, inflight=1, delivered=6, deliveries=4)


async def test_a_filtered_consumer_counts_only_its_subjects(world: World, stream: str) -> None:
    await world.add_consumer(C, "s.*.x")
    await world.publish(stream, "s.a", 3)
    await world.publish(stream, "s.a.x", 2)
    await shows(world, C, pending=2, last=5)
    assert (await world.observer.consumer(C)).config == ConsumerConfig(
        filters=("s.*.x",), max_ack_pending=1000, ack_wait=(await world.observer.consumer(C)).config.ack_wait
    )


async def test_several_filters_are_all_shown(world: World, stream: str) -> None:
    if not world.tells_time:
        pytest.skip(f"{NOT_WITH_THIS_SERVER}: several filters came with 2.10")
    await world.add_consumer(C, "s.a", "s.b")
    await world.publish(stream, "s.a")
    await world.publish(stream, "s.c")
    assert (await world.observer.consumer(C)).config.filters == ("s.a", "s.b")
    await shows(world, C, pending=1)


async def test_the_cap_keeps_the_rest_pending(world: World, stream: str) -> None:
    await world.add_consumer(C, cap=2)
    await world.publish(stream, "s.a", 5)
    assert await world.pull(C, 2) == [1, 2]
    assert await world.pull(C, 2) == []
    await shows(world, C, pending=3, inflight=2)


async def test_times_are_the_servers_own(world: World, stream: str) -> None:
    await world.add_consumer(C)
    await world.publish(stream, "s.a")
    sample = await world.observer.consumer(C)
    assert (sample.since_delivery, sample.since_ack) == (None, None)
    await world.pull(C, 1)
    await world.ack(C, 1)
    sample = await world.observer.consumer(C)
    for since in (sample.since_delivery, sample.since_ack):
        assert since is not None and 0 <= since < 30 if world.tells_time else since is None


async def test_three_hundred_consumers_come_in_two_pages(world: World, stream: str) -> None:
    names = [f"c{i:03}" for i in range(300)]
    for name in names:
        await world.add_consumer(ConsumerKey(stream, name))
    reading = await world.observer.consumers(stream)
    assert [sample.key.consumer for sample in reading.samples] == names
    assert reading.complete and not reading.missing and not reading.malformed
    if isinstance(world, RealWorld):
        assert world.requests == ["CONSUMER.LIST ok", "CONSUMER.LIST ok", "STREAM.INFO ok"]


async def test_streams_have_their_subjects_and_sequences(world: World, stream: str) -> None:
    await world.add_stream("T", "t.a", "t.b")
    await world.publish("T", "t.b", 2)
    reading = await world.observer.streams()
    assert (reading.server_time is None) is (isinstance(world, RealWorld) and world.version < (2, 10))
    assert {look.name: look.subjects for look in reading.looks} == {"S": ("s.>",), "T": ("t.a", "t.b")}
    assert {look.name: (look.first_seq, look.last_seq, look.messages) for look in reading.looks}["T"] == (1, 2, 2)
    assert reading.complete


async def test_a_recreated_consumer_has_another_creation_time(world: World, stream: str) -> None:
    await world.add_consumer(C)
    before = await world.observer.consumers(stream)
    await world.delete_stream(stream)
    await world.add_stream("S", "s.>")
    await world.add_consumer(C)
    after = await world.observer.consumers(stream)
    assert after.look.created != before.look.created
    assert after.samples[0].created != before.samples[0].created


async def test_a_missing_stream_or_consumer_is_gone(world: World, stream: str) -> None:
    with pytest.raises(ConsumerGone):
        await world.observer.consumer(C)
    await world.add_consumer(C)
    await world.delete_consumer(C)
    assert (await world.observer.consumers(stream)).samples == ()
    await world.delete_stream(stream)
    for reading in (world.observer.consumers(stream), world.observer.consumer(C)):
        with pytest.raises(StreamGone):
            await reading
    assert (await world.observer.streams()).looks == ()


@pytest.mark.parametrize("name", ["a b", "a.b", "*", ">", "", "a\nb", "x" * 300])
async def test_a_name_that_is_not_valid_sends_no_request(server: NatsServer, name: str) -> None:
    client = await nats.connect(server.url)
    world = RealWorld(client, server.version)
    with pytest.raises(Unavailable):
        await world.observer.consumers(name)
    assert world.requests == []
    await client.close()


KINDS = {
    "no limits": Retention(),
    "max_msgs": Retention(max_msgs=12),
    "max_msgs, discard new": Retention(max_msgs=12, discards_old=False),
    "per subject": Retention(per_subject=3),
    "rollup": Retention(rollup=True),
    "work queue": Retention("workqueue"),
    "work queue with max_msgs": Retention("workqueue", max_msgs=12),
    "interest": Retention("interest"),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
async def test_the_fake_and_the_server_agree_after_random_moves(server: NatsServer, kind: str, seed: int) -> None:
    """Sixty random moves on both at once, and the same numbers after each."""
    if server.version < (2, 10):
        pytest.skip(f"{NOT_WITH_THIS_SERVER}: 2.9 counts what was purged as redelivered for ever")
    dice = random.Random(seed)
    client = await nats.connect(server.url)
    fake, real = FakeWorld(), RealWorld(client, server.version)
    retention = KINDS[kind]
    alone = retention.policy == "workqueue"  # where no two consumers may take the same message
    keys = [ConsumerKey("S", "only-b" if alone else "all"), ConsumerKey("S", "only-a")]
    for world in (fake, real):
        await world.add_stream("S", "s.>", retention=retention)
        await world.add_consumer(keys[0], *(("s.b",) if alone else ()), cap=6)
        await world.add_consumer(keys[1], "s.a")
    for _ in range(60):
        move = random_move(dice, fake)
        for world in (fake, real):
            await getattr(world, move[0])(*move[1:])
        for key in keys:
            await shows(real, key, **await certain(fake, key))
        assert (await real.observer.consumers("S")).look.retention == fake.fake.look("S").retention
    await client.close()


async def test_a_stream_drops_undelivered_messages_by_age(world: World) -> None:
    await world.add_stream("S", "s.>", retention=Retention(max_age=1.0))
    await world.add_consumer(C, "s.a")
    await world.publish("S", "s.a", 5)
    assert await world.pull(C, 2) == [1, 2]
    if isinstance(world, FakeWorld):
        world.fake.clock.advance(1.0)
    await shows(world, C, first=6, last=5, messages=0, pending=0, delivered=2, deliveries=2)
    look = (await world.observer.consumers("S")).look
    assert (look.retention, look.oldest_age) == (Retention(max_age=1.0), None)


async def test_the_age_of_the_oldest_message_is_the_servers(world: World, stream: str) -> None:
    await world.publish(stream, "s.a", 5)
    if isinstance(world, FakeWorld):
        world.fake.clock.advance(0.01)
    age = (await world.observer.consumers(stream)).look.oldest_age
    assert age is not None and 0 < age < 30 if world.tells_time else age is None


async def certain(fake: FakeWorld, key: ConsumerKey) -> dict[str, int]:
    """What is no matter of chance on a server: several messages taken out of flight at once settle in any order, and
    a filtered consumer that finds nothing to deliver may skip to the end."""
    numbers = await picture(fake, key)
    del numbers["acked"]
    if key.consumer != "all" or fake.fake.look("S").retention != Retention():
        del numbers["delivered"], numbers["floor"]
    return numbers


def random_move(dice: random.Random, fake: FakeWorld) -> tuple[object, ...]:
    stream = fake.fake.all["S"]
    retention = stream.retention
    consumer = stream.consumers[dice.choice(sorted(stream.consumers))]
    key = ConsumerKey("S", consumer.name)
    held = sorted(set(consumer.inflight) - set(consumer.again))
    moves = [
        ("publish", "S", dice.choice(["s.a", "s.b", "s.c"]), dice.randint(1, 4)),
        ("pull", key, dice.randint(1, 4)),
    ]
    if retention.rollup and dice.random() < 0.2:
        moves += [("publish", "S", dice.choice(["s.a", "s.b"]), 1, True)]
    if retention.max_msgs and dice.random() < 0.1:
        moves = [("update_stream", "S", replace(retention, max_msgs=dice.choice([5, 12, 30])))]
        return moves[0]
    if held:
        moves += [(verb, key, dice.choice(held)) for verb in ("ack", "ack", "nak", "term")]
    if len(stream.messages) > 1 and dice.random() < 0.2:
        moves += [("delete_message", "S", dice.choice(sorted(stream.messages)[:-1]))]
    if dice.random() < 0.1:
        moves = [("purge", "S")]
        # NAKed messages that stay may have to wait for its ack wait; up to 2.12 holes count like messages.
        whole = len(stream.messages) == stream.last_seq - stream.first_seq + 1
        if whole and not any(c.again for c in stream.consumers.values()):
            moves += [("purge", "S", dice.randint(1, 5))]
    return dice.choice(moves)
