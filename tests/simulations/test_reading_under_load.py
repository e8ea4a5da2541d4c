"""The whole service on a server that is slow, or where the budget of requests is too small: no event is invented."""

from __future__ import annotations

from collections import Counter

import pytest
from structlog.testing import capture_logs

from nats_backpressure.config.settings import Observe, Settings
from nats_backpressure.core.model.samples import ConsumerConfig
from nats_backpressure.core.reading.budget import RequestBudget
from nats_backpressure.core.status.freshness import status_proof
from nats_backpressure.protocol.values import ConsumerKey, EventType, Freshness
from nats_backpressure.runtime.service import Service
from tests.simulations.busy_server import BusyServer
from tests.simulations.running_service import KEY, SUBJECT, World

DEFAULTS = Settings(instance="here", observe=Observe())
LISTED = 4.0
"""Seconds of every list while one node of three is down."""


class Loaded(World):
    """A router, and many other streams, on a server that is busy."""

    def __init__(self) -> None:
        super().__init__()
        self.js: BusyServer = BusyServer(self.clock)
        self.js.add_stream(KEY.stream, (SUBJECT,))
        self.js.add_consumer(KEY, ConsumerConfig(max_ack_pending=1000))

    def others(self, n: int, *consumers: str) -> None:
        for i in range(n):
            self.js.add_stream(f"T{i}", (f"t{i}",))
            for consumer in consumers:
                self.js.add_consumer(ConsumerKey(f"T{i}", consumer), ConsumerConfig(max_ack_pending=1000))

    def age(self, service: Service, subject: str = SUBJECT) -> float:
        """Seconds since the newest proof of a subject."""
        proof = status_proof(service.registry.subjects[subject].members.values(), service.registry.proofs(subject))
        assert proof is not None, subject
        return self.clock.now().mono - proof

    def known(self, service: Service) -> Counter[Freshness]:  # type: ignore[override]
        """How many subjects have each freshness, by their own limits."""
        counts: Counter[Freshness] = Counter()
        for subject in service.registry.subjects:
            bounds, age = service.registry.limits(subject), self.age(service, subject)
            fresh = Freshness.KNOWN if age < bounds.stale_after else Freshness.STALE
            counts[Freshness.UNKNOWN if age >= bounds.unknown_after else fresh] += 1
        return counts

    def events(self) -> Counter[EventType]:
        """How many events of each type were published."""
        return Counter(event.type for event in self.publisher.events)


async def test_a_dead_node_makes_no_healthy_subject_unknown() -> None:
    world = Loaded()
    world.others(60, "c")
    away = [ConsumerKey(KEY.stream, f"away{n}") for n in range(12)]
    for key in away:
        world.js.add_consumer(key, ConsumerConfig(filters=(f"away.{key.consumer}",)))
    async with world.living(DEFAULTS, requests=world.js.requests) as service:
        await world.clock.run(20)
        assert world.events() == {}
        world.js.list_seconds = LISTED
        world.js.hidden = world.js.silent = set(away)
        oldest = 0.0
        for n in range(45):
            world.js.publish(f"T{n}", f"t{n}", 1)
            world.js.ack(KEY, *world.js.pull(KEY, 10))
            world.js.publish(KEY.stream, SUBJECT, 1)
            await world.clock.run(1)
            oldest = max(oldest, world.age(service))
            healthy = [SUBJECT, *(f"t{n}" for n in range(60))]
            late = {subject: world.age(service, subject) for subject in healthy}
            assert all(age < service.registry.limits(subject).stale_after for subject, age in late.items()), late
        assert oldest < 10.0
        lost = {event.subject for event in world.publisher.events}  # these were not read for over 30 s
        assert lost == {f"away.{key.consumer}" for key in away}


async def test_streams_that_nobody_consumes_hold_back_no_reading_of_the_watched_one() -> None:
    world = Loaded()
    world.others(600)
    with capture_logs() as logged:
        async with world.living(DEFAULTS, requests=world.js.requests) as service:
            await world.clock.run(60)
            ages = []
            for _ in range(60):
                world.js.publish(KEY.stream, SUBJECT, 1)
                world.js.ack(KEY, *world.js.pull(KEY, 10))
                await world.clock.run(1)
                ages.append(world.age(service))
                assert world.known(service) == {Freshness.KNOWN: 1}
            assert max(ages) < 5.0 and service.registry.stretch < 2
            assert world.events() == {}
    assert "reading.stretched" not in [line["event"] for line in logged]


@pytest.mark.slow
async def test_more_streams_than_the_budget_allows_are_read_more_rarely_and_lose_nothing() -> None:
    """After a restart too, where the first reading of the last stream comes later than `unknown_after_seconds`."""
    world = Loaded()
    world.others(800, "c")
    for seconds in (45, 75):
        with capture_logs() as logged:
            async with world.living(DEFAULTS, requests=world.js.requests) as service:
                for n in range(seconds):
                    await world.clock.run(1)
                    for i in range(n % 8, 800, 8):
                        key = ConsumerKey(f"T{i}", "c")
                        world.js.publish(key.stream, f"t{i}", 1)
                        world.js.ack(key, *world.js.pull(key, 10))
                    assert world.events() == {}
                assert world.known(service) == {Freshness.KNOWN: 801}
                assert service.registry.stretch > 2
    assert [line["event"] for line in logged].count("reading.stretched") == 1


async def test_a_new_overload_is_seen_where_the_budget_is_too_small() -> None:
    world = Loaded()
    world.others(200, "c")
    world.js.requests = RequestBudget(20)
    settings = Settings(instance="here", observe=Observe(api_requests_per_second=20))
    async with world.living(settings, requests=world.js.requests) as service:
        await world.clock.until(lambda: len(service.registry.subjects) == 201, "the first readings")
        await world.clock.run(30)
        began = world.clock.now().mono
        for i in range(200):  # all are in use, and overdue
            world.js.publish(f"T{i}", f"t{i}", 1)
        world.load()
        await world.clock.until(world.events, "the overload to be published")
        assert world.clock.now().mono - began < 2.0
        assert {event.subject for event in world.publisher.events} == {SUBJECT}


async def test_first_readings_are_soon_complete_beside_many_overloaded_streams() -> None:
    world = Loaded()
    world.others(60, "c")
    for i in range(60):
        world.js.publish(f"T{i}", f"t{i}", 20_000)
    async with world.living(DEFAULTS, requests=world.js.requests) as service:
        began, streams = world.clock.now().mono, service.registry.streams
        await world.clock.until(lambda: sum(stream.seen for stream in streams.values()) == 61, "all first readings")
        # 61 readings of two requests each, at 40 requests a second beside the looks, and as many of those already read.
        assert world.clock.now().mono - began < 2 * 61 * 2 / 40 + 1


async def test_a_list_that_hangs_does_not_keep_the_loop_busy() -> None:
    world = Loaded()
    async with world.living(DEFAULTS, requests=world.js.requests) as service:
        await world.clock.run(5)
        world.js.list_seconds = 30.0
        await world.clock.run(2)
        turns, next_look = 0, service.poller.looks.next_single

        def counted() -> float:
            nonlocal turns
            turns += 1
            return next_look()

        service.poller.looks.next_single = counted  # type: ignore[method-assign]
        await world.clock.run(20)
        assert turns < 500, turns
        assert world.age(service) < 1.0
        world.js.list_seconds = 0.001
        world.js.add_stream("NEW", ("new",))
        await world.clock.until(lambda: "NEW" in service.registry.streams, "the next list")
