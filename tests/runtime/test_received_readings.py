"""Readings of other replicas as they may come: late, in another order, of less than is watched here, too fast."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from nats_backpressure.config.settings import Observe, Settings
from nats_backpressure.core.model.samples import ConsumerConfig, Sample, StreamLook
from nats_backpressure.core.reading.budget import Budget, Level
from nats_backpressure.core.reading.sharing import ALL_STREAMS, Position
from nats_backpressure.core.watch_filter import WatchEntry
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.schema import Guard
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.intake import Intake
from nats_backpressure.runtime.observations import PROMPT, ConsumersReading, Received, StreamsReading, answer_time
from nats_backpressure.runtime.poller import Poller
from nats_backpressure.runtime.received_readings import MOST_RECEIVED
from nats_backpressure.runtime.shared_reading import SharedReading
from nats_backpressure.runtime.stream_looks import LATE
from nats_backpressure.runtime.subject_registry import SubjectRegistry
from nats_backpressure.runtime.tasks import cancel_and_wait
from tests.fakes.clock import FakeClock, settled
from tests.fakes.observer import FakeJetStream

FIRST = Position(True, True, -1.0)
"""One that stands before this replica."""
BUDGET = Budget(0.1, 5.0, 1000, 1)
CONSUMERS = [f"c{n}" for n in range(12)]


class World:
    """A poller beside another replica, whose readings the test makes up."""

    def __init__(self) -> None:
        self.clock, self.lists = FakeClock(), list[tuple[list[int], float]]()
        self.js = FakeJetStream(self.clock)
        for stream in ("S", "T"):
            self.js.add_stream(stream, (stream.lower(),))
        for name in CONSUMERS:
            self.js.add_consumer(ConsumerKey("S", name), ConsumerConfig())
        self.js.add_consumer(ConsumerKey("T", "t"), ConsumerConfig())
        settings = Settings(observe=Observe(min_interval_ms=100))
        policies = ActivePolicies((), Guard(), False)
        registry = SubjectRegistry(settings, self.clock, policies, "w", lambda effects: None)
        registry.observing = True
        self.shared = SharedReading(self.clock, "own", 0.6)
        self.poller = Poller(
            self.js,
            self.clock,
            Intake(registry, self.clock, (WatchEntry("*"),), (), lambda what, key, why: None),
            BUDGET,
            stale_after=10.0,
            count=lambda what: None,
            on_streams=lambda reading: None,
            on_read=lambda seconds: None,
            on_list=lambda looks, asked_at: self.lists.append(([look.last_seq for look in looks], asked_at)),
            shared=self.shared,
        )

    @property
    def now(self) -> float:
        return self.clock.now().mono

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.poller.run())
        await settled()
        await self.clock.run(2.05)
        self.lists.clear()
        try:
            yield
        finally:
            await cancel_and_wait([task])

    def receive(
        self, stream: str, shown: ConsumersReading | StreamsReading | Sample, asked_at: float, level: Level = Level.ALL
    ) -> bool:
        position = Position(True, True, -1.0, level)
        received = Received(stream, "another", position, self.now, asked_at, shown, self.look(stream))
        return self.poller.receive(received)

    def look(self, stream: str, last: int | None = None) -> StreamLook | None:
        poll = self.poller.polls.get(stream)
        if poll is None or poll.plan.crossings.look is None:
            return None
        look = poll.plan.crossings.look
        return look if last is None else StreamLook(stream, look.created, 1, last, last, look.subjects, consumers=12)

    def list(self, last: int, asked_at: float) -> bool:
        looks = tuple(look for name in "ST" if (look := self.look(name, last)) is not None)
        return self.receive(ALL_STREAMS, StreamsReading(looks, True, 0.001, 0), asked_at, Level.HOT)

    def consumers(self, names: Sequence[str], asked_at: float, *, partial: bool = True) -> bool:
        look = self.look("S")
        assert look is not None
        samples = tuple(sample(name, asked_at) for name in names)
        reading = ConsumersReading(look, samples, (), not partial, (), 0.001, 0, 0, partial)
        return self.receive("S", reading, asked_at)


def sample(name: str, at: float) -> Sample:
    return Sample(ConsumerKey("S", name), "t", ConsumerConfig(), Now(at, at), 1, 0, 0, 0, 0, 0, 0, 0)


async def test_a_list_that_was_asked_for_before_the_newest_one_is_neither_used_nor_silences() -> None:
    world = World()
    async with world.running():
        asked = world.now
        assert world.list(20, asked)
        await world.clock.run(0.05)
        starts = world.poller.looks.next()
        assert not world.list(10, asked - 0.02), "it came out of order"
        assert not world.list(20, asked), "it came twice"
        assert world.lists == [([20, 20], asked - LATE)]
        assert world.poller.looks.next() == starts


async def test_an_own_list_that_hangs_is_not_used_after_one_that_was_asked_for_later() -> None:
    world = World()
    async with world.running():
        streams = world.js.streams

        async def hangs() -> StreamsReading:
            reading = await streams()
            await world.clock.sleep(2.0)
            return reading

        world.js.streams = hangs  # type: ignore[method-assign]
        await world.clock.run(0.5)
        asked = world.now
        assert world.list(20, asked)
        world.js.streams = streams  # type: ignore[method-assign]
        await world.clock.run(0.5)
        assert world.list(30, world.now)
        await world.clock.run(2.0)
        times = [asked_at for _, asked_at in world.lists]
        assert times == sorted(times) and len(times) >= 2


async def test_a_whole_reading_that_was_asked_for_before_the_newest_one_is_neither_used_nor_silences() -> None:
    world = World()
    async with world.running():
        poll, asked = world.poller.polls["S"], world.now
        assert world.consumers(CONSUMERS, asked, partial=False)
        due = poll.due
        assert not world.consumers(CONSUMERS[:3], asked - 0.02, partial=False)
        assert not world.consumers(CONSUMERS[:3], asked, partial=False)
        assert poll.due is due
        await world.clock.run(0.1)
        assert len(poll.stream.under) == len(CONSUMERS)


async def test_who_is_slower_than_the_reader_uses_what_is_newest_and_stays_silent() -> None:
    world = World()
    async with world.running():
        poll, asked = world.poller.polls["S"], world.now
        for n in range(20):
            assert world.consumers(CONSUMERS, asked + n / 10, partial=False)
        assert [one.asked_at for one in poll.received] == [asked + 1.9]
        for n in range(20):
            assert world.consumers(CONSUMERS[:2], asked + 2 + n / 10)
        assert [one.asked_at for one in poll.received] == [asked + 1.9, asked + 3.9]
        for name in CONSUMERS:
            assert world.consumers([name], asked + 4)
        assert len(poll.received) == MOST_RECEIVED
        starts = poll.due.at
        assert world.consumers(CONSUMERS, asked + 5, partial=False)
        assert poll.due.at > starts
        assert [one.asked_at for one in poll.received] == [asked + 5]


async def test_one_consumer_that_was_read_alone_postpones_nothing_and_leaves_what_lists_take() -> None:
    world = World()
    async with world.running():
        poll = world.poller.polls["S"]
        poll.plan.took_list, before = 4.0, (list(poll.plan.read_at), poll.due.at)
        assert world.receive("S", sample("c1", world.now), world.now)
        assert poll.plan.took_list == 4.0
        assert (list(poll.plan.read_at), poll.due.at) == before


async def test_looks_at_fewer_streams_than_are_watched_here_postpone_nothing() -> None:
    world = World()
    async with world.running():
        assert world.list(20, world.now)

        def show(*names: str) -> float:
            for name in names:
                look = world.look(name)
                assert look is not None
                world.receive(ALL_STREAMS, StreamsReading((look,), False, 0.001, 0, True), world.now, Level.HOT)
            return world.poller.looks.next()

        before = world.poller.looks.next()
        await world.clock.run(0.1)
        assert show("S") == before
        await world.clock.run(0.1)
        assert show("S") == before
        assert show("T") > before, "now all of them were shown"


@pytest.mark.parametrize(
    ("asked", "came", "took", "answered"),
    [
        pytest.param(10.0, 10.05, 0.05, 10.05, id="prompt"),
        pytest.param(10.0, 15.0, 5.0, 10.0 + PROMPT, id="it waited in the socket of a process that was suspended"),
        pytest.param(10.0, 10.5, 3.0, 10.0, id="several requests at once took longer than it took"),
    ],
)
def test_when_a_reading_counts_as_answered(asked: float, came: float, took: float, answered: float) -> None:
    assert answer_time(asked, came, took) == pytest.approx(answered)


async def test_a_look_that_took_long_is_as_old_as_its_request() -> None:
    world = World()
    async with world.running():
        look = world.look("T")
        assert look is not None
        plan = world.poller.polls["T"].plan
        await world.clock.run(3.0)
        before = plan.crossings.looked_at
        reading = StreamsReading((look,), True, 4.0, 0)
        world.poller.receive(Received(ALL_STREAMS, "another", FIRST, world.now + 9.0, world.now + 5.0, reading))
        assert before < plan.crossings.looked_at == pytest.approx(world.now + 5.0 + PROMPT)
