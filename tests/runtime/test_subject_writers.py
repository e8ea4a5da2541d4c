"""SubjectWriters: the reader of the first of a subject's streams writes it, and another one only where that cannot."""

from __future__ import annotations

import math

import pytest

from nats_backpressure.core.reading.budget import Level
from nats_backpressure.core.reading.sharing import Position, share_of
from nats_backpressure.protocol.between_replicas import SCHEMA, Presence
from nats_backpressure.runtime.observations import Received
from nats_backpressure.runtime.replicas import FIRST_ANSWERS, PRESENT_FOR, Replica, Replicas
from nats_backpressure.runtime.shared_reading import SharedReading
from nats_backpressure.runtime.subject_writers import SubjectWriters
from tests.fakes.clock import FakeClock
from tests.fakes.replica_channel import FakeBus
from tests.simulations.running_service import Quiet


class World:
    """Replica "a" of three, as it knows the others."""

    def __init__(self, *, sharing: bool = True) -> None:
        self.clock = FakeClock()
        bus = FakeBus(self.clock)
        self.replicas = Replicas(bus.channel("a"), self.clock, "pod-a", "a", Quiet())
        self.replicas.policies = "mark"
        self.shared = SharedReading(self.clock, "a", 0.6)
        self.writers = SubjectWriters(self.clock, self.replicas, self.shared, sharing=sharing)

    async def start(self, **others: Presence) -> None:
        await self.clock.run(FIRST_ANSWERS)
        for id_, presence in others.items():
            self.replicas.others[id_] = Replica(presence, self.clock.now().mono)
        self.replicas._changed()

    def receive(self, stream: str, sender: str) -> None:
        """A settled replica read the stream."""
        now, position = self.clock.now().mono, Position(True, True, share_of(stream, sender))
        self.shared.receive(Received(stream, sender, position, now, now, None, None), tuple(Level))  # type: ignore[arg-type]

    def writer(self, *streams: str, any_policies: bool = False) -> float | None:
        """When the writer of a subject with members in these streams was seen last."""
        return self.writers.seen_at("s", streams, any_policies)


def one(id_: str, policies: str = "mark", *, writes: bool = True, unread: tuple[str, ...] = ()) -> Presence:
    return Presence(SCHEMA, id_, policies=policies, writes=writes, unread=unread)


async def test_too_early_alone_and_beside_others_with_other_policies() -> None:
    world = World()
    assert world.writer("S") == -math.inf
    await world.start()
    assert world.writer("S") is None
    await world.start(b=one("b", "other"), c=one("c", writes=False))
    assert world.writer("S") is None


async def test_the_reader_of_the_first_stream_writes_and_each_of_its_readings_is_a_sign() -> None:
    world = World()
    await world.start(b=one("b"), c=one("c"))
    world.receive("S", "b")
    world.receive("T", "c")
    present = world.clock.now().mono
    assert world.writer("T", "S") == present
    await world.clock.run(0.5)
    world.receive("S", "b")
    assert world.writer("S") == world.clock.now().mono and world.writer("T") == present


async def test_one_that_reads_writes_once_nobody_else_turned_out_to_read() -> None:
    world = World()
    await world.start(b=one("b"))
    world.shared.start("S", Level.HOT, Level.ALL, 0.1)
    assert world.writer("S") == -math.inf
    for _ in range(10):
        await world.clock.run(0.1)
        world.shared.start("S", Level.HOT, Level.ALL, 0.1)
    assert world.writer("S") is None


async def test_the_next_in_line_writes_from_its_first_reading() -> None:
    world = World()
    await world.start(b=one("b"))
    world.receive("S", "b")
    await world.clock.run(1.0)
    world.shared.start("S", Level.HOT, Level.ALL, 0.1)
    assert world.writer("S") is None


@pytest.mark.parametrize("reader", [one("b", "other"), one("b", writes=False), one("b", unread=("*",))])
async def test_where_the_reader_cannot_read_or_write_exactly_one_of_those_that_can_is_the_writer(
    reader: Presence,
) -> None:
    world = World()
    for stream in ("S1", "S2", "S3", "S4", "S5", "S6"):
        await world.start(b=reader, c=one("c"))
        world.receive(stream, "b")
        first = min("ac", key=lambda id_: share_of(stream, id_))
        assert (world.writer(stream) is None) == (first == "a")


async def test_without_sharing_one_of_those_that_read_is_the_writer() -> None:
    world = World(sharing=False)
    await world.start(b=one("b"))
    for stream in ("S1", "S2", "S3", "S4", "S5", "S6"):
        world.shared.start(stream, Level.HOT, Level.ALL, 0.1)
        await world.clock.run(1.0)
        first = min("ab", key=lambda id_: share_of(stream, id_))
        assert (world.writer(stream) is None) == (first == "a")


async def test_one_without_readings_of_a_stream_is_no_writer_beside_one_that_has_some() -> None:
    world = World()
    world.replicas.unread = lambda: ("S1", "S3")
    for stream in ("S1", "S2", "S3", "S4"):
        await world.start(b=one("b", unread=("S2",)))
        assert (world.writer(stream) is None) == (
            stream == "S2" or (stream == "S4" and min("ab", key=lambda id_: share_of(stream, id_)) == "a")
        )
    await world.start(b=one("b"))
    assert world.writer() is not None, "a subject without members may be one of a stream that is not read here"
    await world.start(b=one("b", unread=("*",)))
    assert world.writer("S2") is None
    first = min("ab", key=lambda id_: share_of("S1", id_))
    assert (world.writer("S1") is None) == (first == "a"), "none has any"


async def test_of_a_subject_that_others_judged_one_with_any_policies_is_the_writer() -> None:
    world = World()
    await world.start(b=one("b", "other"))
    world.replicas.unread = lambda: ("*",)
    assert world.writer() is None
    assert world.writer(any_policies=True) is not None


async def test_one_that_has_asked_for_its_first_reading_is_no_writer_beside_one_that_has_some() -> None:
    world = World()
    world.replicas.unread = lambda: ("S",)
    await world.start(b=one("b"))
    world.shared.start("S", Level.HOT, Level.ALL, 0.1)
    assert world.writer("S") == world.clock.now().mono
    world.replicas.unread = tuple
    assert world.writer("S") == -math.inf


async def test_what_a_replica_proves_holds_no_longer_than_its_last_report() -> None:
    world = World()
    await world.start(b=one("b"))
    assert world.writers.proves("mark", ["S"])
    await world.clock.run(PRESENT_FOR + 0.1)  # no report comes, nor a sign that it should have
    assert not world.writers.proves("mark", ["S"])
