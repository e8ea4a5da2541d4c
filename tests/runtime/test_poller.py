"""The polling loops: which streams are followed, how often each is read, and when all count as read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from structlog.testing import capture_logs

from nats_backpressure.config.settings import Observe, Settings
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.model.samples import ConsumerConfig
from nats_backpressure.core.reading.budget import LOOKS_PER_READING, QUIET_INTERVAL, Budget, RequestBudget
from nats_backpressure.core.reading.crossings import SETTLE_SECONDS
from nats_backpressure.core.reading.load import EMPTY_INTERVAL
from nats_backpressure.core.reading.sharing import Position
from nats_backpressure.core.status.freshness import status_proof
from nats_backpressure.core.watch_filter import SUBJECTS_LIMIT, WatchEntry
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.schema import Guard
from nats_backpressure.protocol.values import ConsumerKey, Diagnosis
from nats_backpressure.runtime.intake import Intake
from nats_backpressure.runtime.observations import ConsumerChanged, Received, StreamChanged, Terminated, Unavailable
from nats_backpressure.runtime.poller import Poller
from nats_backpressure.runtime.reading_rounds import ROUND_WITHIN
from nats_backpressure.runtime.service import Service
from nats_backpressure.runtime.stream_looks import DISCOVER_EVERY
from nats_backpressure.runtime.stream_readings import MAX_SINGLE_READS
from nats_backpressure.runtime.subject_registry import SubjectRegistry
from nats_backpressure.runtime.tasks import cancel_and_wait
from tests.fakes.clock import FakeClock, settled
from tests.fakes.observer import FakeJetStream
from tests.simulations import running_service
from tests.simulations.running_service import KEY, SUBJECT

OTHER = ConsumerKey(KEY.stream, "other")
LEAST, MOST = 1.0, 8.0
BUDGET = Budget(LEAST, MOST, 1000, 1)


class World:
    """A poller on a fake JetStream and a fake clock, with nothing behind the registry."""

    def __init__(self, *watch: WatchEntry, budget: Budget = BUDGET, limited: bool = False) -> None:
        self.clock = FakeClock()
        self.requests = RequestBudget(budget.requests_per_second) if limited else None
        self.js = FakeJetStream(self.clock)
        self.counted: list[str] = []
        settings = Settings(observe=Observe(min_interval_ms=round(1000 * LEAST), stale_after_seconds=10))
        policies = ActivePolicies((), Guard(), False)
        self.registry = SubjectRegistry(settings, self.clock, policies, "w", lambda effects: None)
        self.registry.observing = True
        self.poller = Poller(
            self.js,
            self.clock,
            Intake(self.registry, self.clock, watch or (WatchEntry("*"),), (), lambda what, key, why: None),
            budget,
            stale_after=10.0,
            count=self.counted.append,
            on_streams=lambda reading: None,
            on_read=lambda seconds: None,
            requests=self.requests,
        )

    def stream(self, name: str, *consumers: str) -> None:
        self.js.add_stream(name, (name.lower(),))
        for consumer in consumers:
            self.js.add_consumer(ConsumerKey(name, consumer), ConsumerConfig())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.poller.run())
        await settled()
        try:
            yield
        finally:
            await cancel_and_wait([task])

    def reads(self, what: str) -> int:
        """How often it was asked for, since the last time this was asked."""
        n = self.js.asked.count(what)
        self.js.asked = [other for other in self.js.asked if other != what]
        return n

    def unreadable(self, *streams: str) -> set[str]:
        """The streams that cannot be read from now on; take some out."""
        consumers, away = self.js.consumers, set(streams)

        async def some(name: str, names: Any = ()) -> Any:
            if name in away:
                self.js.asked.append(f"consumers {name}")
                raise Unavailable("no right")
            return await consumers(name, names)

        self.js.consumers = some  # type: ignore[method-assign]
        return away


class TestDiscovery:
    async def test_a_new_stream_is_found_within_a_second_and_soon_after_an_advisory(self) -> None:
        world = World(budget=Budget(LEAST / 10, MOST, 1000, 1))
        async with world.running():
            world.stream("S", "c")
            await world.clock.run(DISCOVER_EVERY)
            assert list(world.registry.streams) == ["S"]
            world.stream("T", "c")
            world.poller.hint(StreamChanged("T", "created"))
            await world.clock.run(LEAST)
            assert list(world.registry.streams) == ["S", "T"]

    async def test_a_stream_that_the_watch_names_and_nobody_made_is_logged_once(self) -> None:
        world = World(WatchEntry("MISSING"))
        with capture_logs() as logged:
            async with world.running():
                await world.clock.run(10)
        assert [line["stream"] for line in logged if line["event"] == "watch.stream_missing"] == ["MISSING"]

    async def test_a_stream_that_is_deleted_is_followed_until_that_is_certain(self) -> None:
        world = World()
        world.stream("S", "c")
        async with world.running():
            world.js.delete_stream("S")
            await world.clock.run(LEAST)
            assert list(world.registry.streams) == ["S"] and world.registry.members.of_stream("S")
            await world.clock.run(5)
            assert not world.registry.streams and not world.registry.members.of_stream("S")

    async def test_members_that_only_the_store_knows_are_looked_for_and_taken_out(self) -> None:
        world = World(WatchEntry("S"))
        world.registry.join("old", ConsumerKey("GONE", "c"))
        async with world.running():
            assert "consumers GONE" in world.js.asked
            assert not world.registry.streams and not world.registry.members.of_stream("GONE")


class TestPace:
    async def test_an_idle_stream_is_read_at_the_longest_interval_and_looked_at_in_between(self) -> None:
        world = World()
        world.stream("S", "c")
        async with world.running():
            await world.clock.run(SETTLE_SECONDS + MOST)
            world.js.asked.clear()
            await world.clock.run(10 * MOST)
            assert 10 <= world.reads("consumers S") <= 12 and world.reads("consumer S c") == 0
            assert (
                int(0.95 * LOOKS_PER_READING * 10 * MOST / LEAST)
                <= world.reads("stream S") + world.reads("streams")
                <= 170
            )
            assert world.registry.streams["S"].interval <= 2 * LEAST

    async def test_one_with_messages_is_read_once_a_second_and_one_above_a_mark_as_often_as_may_be(self) -> None:
        world = World(budget=Budget(LEAST / 10, MOST, 1000, 1))
        world.stream("S", "c")
        async with world.running():
            world.js.publish("S", "s", 5)
            await world.clock.run(2 * QUIET_INTERVAL)
            world.js.asked.clear()
            await world.clock.run(10 * QUIET_INTERVAL)
            assert 9 <= world.reads("consumers S") + world.reads("consumer S c") <= 12
            world.js.publish("S", "s", 5000)
            await world.clock.run(LEAST / 5)
            world.js.asked.clear()
            await world.clock.run(LEAST)
            assert 9 <= world.reads("consumers S") + world.reads("consumer S c") <= 11

    async def test_a_crossing_is_read_after_the_look_that_shows_it_may_be_one(self) -> None:
        world = World(budget=Budget(LEAST / 10, MOST, 1000, 1))
        world.stream("S", "c")
        async with world.running():
            await world.clock.run(SETTLE_SECONDS + MOST)
            world.js.publish("S", "s", 5000)
            await world.clock.run(2 * LEAST / 10)
            (member,) = world.registry.subjects["s"].members.values()
            assert member.reading is not None and member.reading.pending == 5000

    @pytest.mark.no_cover  # traced, it takes four times as long
    async def test_few_above_a_mark_are_read_singly_and_many_by_a_list(self) -> None:
        world = World(budget=Budget(LEAST / 10, MOST, 50, 0.05))
        world.js.add_stream("S", tuple(f"s.{n}" for n in range(60)))
        for n in range(60):
            world.js.add_consumer(ConsumerKey("S", f"c{n}"), ConsumerConfig(filters=(f"s.{n}",)))
        world.js.took = 0.004
        async with world.running():
            await world.clock.run(MOST)
            world.js.publish("S", "s.7", 200)
            await world.clock.run(LEAST)
            world.js.asked.clear()
            await world.clock.run(LEAST)
            assert world.reads("consumer S c7") >= 5 and world.reads("consumers S") <= 2
            for n in range(20, 50):
                world.js.publish("S", f"s.{n}", 110)
            await world.clock.run(LEAST)
            world.js.asked.clear()
            await world.clock.run(LEAST)
            assert world.reads("consumers S") >= 5 and world.reads("consumer S c7") == 0

    async def test_one_without_consumers_that_count_is_read_seldom(self) -> None:
        world = World()
        world.stream("S")
        async with world.running():
            await world.clock.run(2 * MOST)
            assert world.reads("consumers S") == 1
            await world.clock.run(EMPTY_INTERVAL)
            assert world.reads("consumers S") == 1
            world.js.add_consumer(ConsumerKey("S", "c"), ConsumerConfig())  # a look shows how many there are
            await world.clock.run(2 * LEAST)
            assert world.reads("consumers S") == 1

    async def test_advisories_hasten_the_next_reading_to_the_shortest_interval_and_no_further(self) -> None:
        world = World(WatchEntry("*", ("c*",)))
        world.stream("S")
        async with world.running():
            await world.clock.run(MOST)
            world.reads("consumers S")
            for _ in range(100):
                world.poller.hint(ConsumerChanged(ConsumerKey("S", "c"), "created"))
                await world.clock.run(LEAST / 10)
            assert 9 <= world.reads("consumers S") <= 11

    async def test_an_advisory_about_a_name_that_is_not_watched_hastens_nothing(self) -> None:
        world = World(WatchEntry("*", ("c*",)))
        world.stream("S")
        async with world.running():
            await world.clock.run(MOST)
            world.reads("consumers S")
            for what in ("created", "deleted"):
                world.poller.hint(ConsumerChanged(ConsumerKey("S", "other"), what))
            world.poller.hint(ConsumerChanged(ConsumerKey("S", "c"), "deleted"))  # it was not there
            await world.clock.run(MOST)
            assert world.reads("consumers S") == 0

    async def test_one_that_cannot_be_read_is_tried_less_and_less_often_and_keeps_its_interval(self) -> None:
        world = World()
        world.stream("S", "c")
        async with world.running():
            await world.clock.run(LEAST)
            interval = world.registry.streams["S"].interval
            away = world.unreadable("S")
            world.reads("consumers S")
            await world.clock.run(LEAST * (1 + 1 + 2 + 4 + 8 + 8))
            tries = world.counted.count("sweep_unavailable")
            assert 4 <= tries <= 7 and world.registry.streams["S"].interval <= 2 * interval
            away.clear()
            world.js.asked.clear()
            await world.clock.run(2 * MOST)
            assert world.reads("consumers S") >= 1


class TestBudget:
    """Findings: the request budget was first come, first served, and freshness limits did not notice."""

    @staticmethod
    def limited(world: World) -> None:
        """Each request of the fake takes its turn in the budget."""
        js, budget = world.js, world.requests
        assert budget is not None

        async def take(n: int) -> None:
            for _ in range(n):
                await world.clock.sleep(budget.take(world.clock.now().mono))

        streams, stream, consumers = js.streams, js.stream, js.consumers

        async def paid_streams() -> Any:
            await take(1)
            return await streams()

        async def paid_stream(name: str) -> Any:
            await take(1)
            return await stream(name)

        async def paid_consumers(name: str, names: Any = ()) -> Any:
            await take(max(1, len(names)) + 1)
            return await consumers(name, names)

        js.streams, js.stream, js.consumers = paid_streams, paid_stream, paid_consumers  # type: ignore[method-assign, assignment]

    @pytest.mark.no_cover  # traced, it takes four times as long
    async def test_streams_without_consumers_do_not_starve_the_one_that_is_watched(self) -> None:
        world = World(budget=Budget(0.1, 5.0, 20, 0.05), limited=True)
        world.stream("S", "c")
        for n in range(200):
            world.stream(f"E{n}")
        self.limited(world)
        async with world.running():
            await world.clock.run(30)
            ages = []
            for _ in range(60):
                world.js.publish("S", "s", 1)
                await world.clock.run(0.5)
                members = world.registry.subjects["s"].members.values()
                proof = status_proof(members, world.registry.proofs("s"))
                ages.append(world.clock.now().mono - (proof or 0.0))
            assert max(ages[:20]) < 12.0 and max(ages[40:]) < 3.0

    @pytest.mark.no_cover  # traced, it takes four times as long
    async def test_more_than_the_budget_stretches_intervals_and_limits_and_is_logged_once(self) -> None:
        world = World(budget=Budget(0.1, 5.0, 20, 0.05), limited=True)
        for n in range(150):
            world.stream(f"S{n}", "c")
        self.limited(world)
        with capture_logs() as logged:
            async with world.running():
                for _ in range(120):
                    await world.clock.run(1.0)
                    for n in range(150):
                        world.js.publish(f"S{n}", f"s{n}", 1)
                    now = world.clock.now().mono
                    for subject, state in world.registry.subjects.items():
                        proof = status_proof(state.members.values(), world.registry.proofs(subject))
                        assert proof is None or now - proof < world.registry.limits(subject).stale_after
        assert [line["event"] for line in logged if line["event"].startswith("reading.")] == ["reading.stretched"]
        assert world.registry.stretch > 2


class TestRounds:
    async def test_the_first_round_is_complete_once_each_stream_was_read_or_tried(self) -> None:
        world = World()
        world.stream("S", "c")
        world.stream("DARK", "c")
        world.unreadable("DARK")
        async with world.running():
            assert world.poller.complete.is_set() and world.registry.newest_read_at == world.clock.now().mono

    async def test_a_stream_that_does_not_answer_delays_it_only_for_a_while(self) -> None:
        world = World()
        world.stream("S", "c")
        consumers = world.js.consumers

        async def slow(name: str, names: Any = ()) -> Any:
            await world.clock.sleep(60)
            return await consumers(name, names)

        world.js.consumers = slow  # type: ignore[method-assign]
        async with world.running():
            await world.clock.run(ROUND_WITHIN - 0.1)
            assert not world.poller.complete.is_set()
            await world.clock.run(0.1)
            assert world.poller.complete.is_set() and not world.registry.streams["S"].seen

    async def test_without_any_stream_the_list_is_all_there_is(self) -> None:
        world = World()
        async with world.running():
            await world.clock.run(20)
            newest = world.registry.newest_read_at
            assert newest is not None and newest > world.clock.now().mono - BUDGET.look_interval(1, 0.0)

    async def test_after_an_outage_the_newest_reading_waits_for_every_stream(self) -> None:
        world = World()
        for name in ("S", "T"):
            world.stream(name, "c")
        async with world.running():
            world.js.down = "NATS is away"
            await world.clock.run(20)
            before = world.registry.newest_read_at
            consumers = world.js.consumers

            async def slow(name: str, names: Any = ()) -> Any:
                if name == "T":
                    await world.clock.sleep(2)
                return await consumers(name, names)

            world.js.consumers = slow  # type: ignore[method-assign]
            world.js.down = None
            await world.clock.until(lambda: world.registry.streams["S"].next > world.clock.now().mono + 0.5, "S")
            seen: set[float | None] = set()
            while world.registry.newest_read_at == before:
                seen.add(world.registry.newest_read_at)
                await world.clock.run(0.1)
            members = world.registry.subjects["t"].members
            (proof,) = (member.proof for member in members.values())
            assert proof is not None and before is not None and proof > before


class TestSingly:
    async def test_members_that_a_list_leaves_out_are_read_one_by_one_in_turns(self) -> None:
        world = World()
        keys = [ConsumerKey("S", f"c{n:03}") for n in range(MAX_SINGLE_READS + 10)]
        world.stream("S", *(key.consumer for key in keys))
        async with world.running():
            world.js.hidden |= set(keys)
            await world.clock.run(LEAST)
            asked = [what for what in world.js.asked if what.startswith("consumer ")]
            assert asked == [f"consumer S {key.consumer}" for key in keys[:MAX_SINGLE_READS]]
            await world.clock.run(MOST)
            asked = [what for what in world.js.asked if what.startswith("consumer ")][MAX_SINGLE_READS:]
            assert asked[:10] == [f"consumer S {key.consumer}" for key in keys[MAX_SINGLE_READS:]]

    async def test_one_that_the_server_does_not_know_any_more_is_gone(self) -> None:
        world = World()
        world.stream("S", "a", "b")
        async with world.running():
            world.js.incomplete = True  # so that the list alone proves nothing
            world.js.delete_consumer(ConsumerKey("S", "a"))
            await world.clock.run(3 * MOST)
            assert set(world.registry.members.of_stream("S")) == {ConsumerKey("S", "b")}

    async def test_one_that_a_list_lacks_is_looked_for_again_soon_though_all_others_rest(self) -> None:
        world = World()
        world.stream("S", "a", "b")
        async with world.running():
            await world.clock.run(SETTLE_SECONDS + 3 * MOST)
            world.js.delete_consumer(ConsumerKey("S", "a"))  # a look shows that there are fewer
            await world.clock.run(2 * LEAST + 2 * QUIET_INTERVAL)
            assert set(world.registry.members.of_stream("S")) == {ConsumerKey("S", "b")}


async def reading_of(world: running_service.World, service: Service, key: ConsumerKey) -> Reading:
    def read() -> Reading | None:
        member = service.registry.subjects[SUBJECT].members.get(key)
        return member.reading if member else None

    reading = await world.clock.until(read, f"a reading of {key.consumer}")
    assert isinstance(reading, Reading)
    return reading


async def test_only_who_was_not_there_before_has_appeared() -> None:
    world = running_service.World()
    world.load()
    async with world.living() as service:
        await world.known(service)
        assert not (await reading_of(world, service, KEY)).backfilling
        world.js.add_consumer(OTHER, ConsumerConfig())
        assert (await reading_of(world, service, OTHER)).backfilling


@pytest.mark.no_cover  # traced, it takes four times as long
async def test_who_was_missing_from_a_list_has_not_appeared() -> None:
    world = running_service.World()
    world.load()
    world.js.add_consumer(OTHER, ConsumerConfig())
    world.js.hidden.add(OTHER)
    async with world.living() as service:
        await world.known(service)
        world.js.hidden.clear()
        assert not (await reading_of(world, service, OTHER)).backfilling


async def test_messages_that_came_after_a_consumer_was_made_are_no_history_though_nobody_looked() -> None:
    world = running_service.World()
    world.load()
    async with world.living() as service:
        await world.known(service)
        world.js.down = "away"
        await world.clock.run(60.0)
        world.js.add_consumer(OTHER, ConsumerConfig())
        world.js.of(OTHER).delivered_stream = world.js.look(OTHER.stream).last_seq  # made to deliver new ones only
        world.js.publish(OTHER.stream, SUBJECT, 12_000)
        world.js.down = None
        assert not (await reading_of(world, service, OTHER)).backfilling


@pytest.mark.no_cover  # traced, it takes four times as long
async def test_a_consumer_that_did_not_count_before_has_no_history() -> None:
    world = running_service.World()
    world.load()
    world.js.add_consumer(OTHER, ConsumerConfig(filters=tuple(f"{SUBJECT}.{n}" for n in range(SUBJECTS_LIMIT + 1))))
    async with world.living() as service:
        await world.known(service)
        world.js.of(OTHER).config = ConsumerConfig(filters=(SUBJECT,))
        assert not (await reading_of(world, service, OTHER)).backfilling


async def test_a_terminated_message_changes_the_diagnosis() -> None:
    world = running_service.World()
    async with world.living() as service:
        await world.known(service)
        await reading_of(world, service, KEY)
        service.poller.hint(Terminated(KEY))

        def poison() -> bool:
            reading = service.registry.subjects[SUBJECT].members[KEY].reading
            return reading is not None and reading.diagnosis is Diagnosis.POISON

        await world.clock.until(poison, "the diagnosis")


async def test_what_is_received_while_it_ends_starts_nothing() -> None:
    """Another replica goes on sending while the last reading is cancelled."""
    world = running_service.World()
    async with world.living() as service:
        await world.known(service)
        shown = await world.js.consumers(KEY.stream)
    poller, taken = service.poller, list[bool]()
    running = asyncio.create_task(poller.run())
    await world.clock.run(1.0)

    async def receive() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            now = world.clock.now().mono
            position = Position(writes=True, settled=True, share=0.5)
            taken.append(poller.receive(Received(KEY.stream, "other", position, now, now, shown)))

    assert poller.readings.tasks is not None
    poller.readings.tasks.create_task(receive())
    await asyncio.sleep(0)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert taken == [False]
