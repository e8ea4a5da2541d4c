"""SubjectWriters: the reader of the first of a subject's streams writes it, and another one only where that cannot."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Mapping

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace

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
from tests.support.exploring import examples


class World:
    """A replica ("a" of three), as it knows the others."""

    def __init__(self, id_: str = "a", *, sharing: bool = True) -> None:
        self.clock = FakeClock()
        bus = FakeBus(self.clock)
        self.channel = bus.channel(id_)
        self.replicas = Replicas(self.channel, self.clock, f"pod-{id_}", id_, Quiet())
        self.replicas.policies = "mark"
        self.shared = SharedReading(self.clock, id_, 0.6, listening_time=self.channel.listening_time)
        self.writers = SubjectWriters(self.clock, self.replicas, self.shared, sharing=sharing)

    async def start(self, **others: Presence) -> None:
        await self.run(FIRST_ANSWERS)
        for id_, presence in others.items():
            self.replicas.others[id_] = Replica(presence, self.clock.now().mono)
        self.replicas._changed()

    async def run(self, seconds: float) -> None:
        """The loop runs, and time passes."""
        for _ in range(round(seconds * 10)):
            await self.clock.run(0.1)
            self.shared.pulse()

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
    await world.run(0.5)
    world.receive("S", "b")
    assert world.writer("S") == world.clock.now().mono and world.writer("T") == present


async def test_one_that_reads_writes_once_nobody_else_turned_out_to_read() -> None:
    world = World()
    await world.start(b=one("b"))
    world.shared.start("S", Level.HOT, Level.ALL, 0.1)
    assert world.writer("S") == -math.inf
    for _ in range(10):
        await world.run(0.1)
        world.shared.start("S", Level.HOT, Level.ALL, 0.1)
    assert world.writer("S") is None


async def test_the_next_in_line_writes_from_its_first_reading() -> None:
    world = World()
    await world.start(b=one("b"))
    world.receive("S", "b")
    await world.run(1.0)
    world.shared.start("S", Level.HOT, Level.ALL, 0.1)
    assert world.writer("S") is None


async def test_one_that_was_away_itself_is_not_the_next_in_line() -> None:
    world = World()
    await world.start(b=one("b"))
    world.receive("S", "b")
    world.channel.connected = False
    await world.run(1.0)
    world.channel.connected = True
    for _ in range(6):
        world.shared.start("S", Level.HOT, Level.ALL, 0.1)
        assert world.writer("S") == -math.inf
        await world.run(0.1)


async def test_one_that_stood_still_is_not_sure_that_it_is_the_writer() -> None:
    world = World()
    await world.start(b=one("b"))
    for _ in range(20):
        await world.run(0.1)
        world.shared.start("S", Level.HOT, Level.ALL, 0.1)
    assert world.writer("S") is None
    world.clock.advance(2.0)
    world.shared.start("S", Level.HOT, Level.ALL, 0.1)
    assert world.writer("S") == -math.inf


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


@pytest.mark.parametrize("ours", [False, True])
async def test_where_one_shares_nothing_one_of_those_that_read_is_the_writer(ours: bool) -> None:
    world = World(sharing=ours)
    await world.start(b=replace(one("b"), shares=not ours))
    for stream in ("S1", "S2", "S3", "S4", "S5", "S6"):
        world.shared.start(stream, Level.HOT, Level.ALL, 0.1)
        await world.run(1.0)
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
    at = world.clock.now().mono
    await world.run(1.0)
    assert world.writers.reported_at("mark", ["S"]) == at
    await world.run(PRESENT_FOR - 0.9)  # no report comes, nor a sign that it should have
    assert world.writers.reported_at("mark", ["S"]) == -math.inf


STREAMS = ("S1", "S2", "S3")
IDS = "abcd"
some_streams = st.frozensets(st.sampled_from(STREAMS))
mostly = st.sampled_from([True, True, True, False])


class Known(Struct, frozen=True):
    """What one replica reports."""

    unread: frozenset[str]
    writes: bool
    shares: bool

    def presence(self, id_: str) -> Presence:
        return replace(one(id_, writes=self.writes, unread=tuple(sorted(self.unread))), shares=self.shares)


async def leaves_to(id_: str, known: Mapping[str, Known], readers: Mapping[str, str], named: Collection[str]) -> str:
    """To which replica this one leaves the changes of a subject whose record names these streams."""
    world = World(id_, sharing=known[id_].shares)
    world.replicas.unread = lambda: tuple(sorted(known[id_].unread))
    await world.start(**{other: one.presence(other) for other, one in known.items() if other != id_})
    for _ in range(20):
        for stream, reader in readers.items():
            if reader == id_:
                world.shared.start(stream, Level.HOT, Level.ALL, 0.1)
            elif known[id_].shares:
                world.receive(stream, reader)
        await world.run(0.1)
    later = {id_: world.clock.now().mono + 1.0 + IDS.index(id_) for id_ in IDS}
    for other, replica in world.replicas.others.items():
        world.replicas.others[other] = replace(replica, received_at=later[other])
    seen_at = world.writer(*named)
    return id_ if seen_at is None else next(other for other, at in later.items() if at == seen_at)


@settings(max_examples=examples(60))
@given(
    unread=st.lists(st.just(frozenset[str]()) | some_streams | st.just(frozenset("*")), min_size=2, max_size=4),
    named=some_streams,
    readers=st.dictionaries(st.sampled_from(STREAMS), st.sampled_from(IDS)),
    flags=st.lists(st.tuples(mostly, mostly), min_size=4, max_size=4),
)
@example(
    unread=[frozenset(("S2", "S3")), frozenset(("S1",))],
    named=frozenset(STREAMS),
    readers={},
    flags=[(True, True)] * 4,
)
def test_whatever_each_of_them_can_read_somebody_writes_who_sees_what_those_see_that_leave_it(
    unread: list[frozenset[str]], named: frozenset[str], readers: dict[str, str], flags: list[tuple[bool, bool]]
) -> None:
    known = {id_: Known(names, *more) for id_, names, more in zip(IDS, unread, flags, strict=False)}
    read = {s: r for s, r in readers.items() if r in known and known[r].writes and not known[r].unread & {s, "*"}}
    targets = {id_: asyncio.run(leaves_to(id_, known, read, named)) for id_ in known}
    for id_, target in targets.items():
        assert targets[target] == target, f"{id_} leaves it to {target}, which leaves it to {targets[target]}"
        assert id_ == target or known[target].writes
        blind, of_target = (named if known[x].unread == {"*"} else named & known[x].unread for x in (id_, target))
        assert of_target <= blind
    if all(one.writes and not one.unread for one in known.values()):
        assert len(set(targets.values())) == 1
