"""Heartbeats come at their interval, and the last replica writes a last one."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from nats_backpressure.config.settings import Publish, Settings
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.schema import Guard
from nats_backpressure.runtime.heartbeat import ALONE_AFTER, LEAVE_WITHIN, Heartbeat
from nats_backpressure.runtime.subject_registry import SubjectRegistry
from nats_backpressure.runtime.tasks import cancel_and_wait
from tests.fakes.clock import FakeClock
from tests.fakes.stores import FakeStateStore
from tests.runtime.test_effect_runner import Counts

EVERY = 2.0


class World:
    def __init__(self) -> None:
        self.clock, self.store, self.counts = FakeClock(), FakeStateStore(), Counts()
        settings = Settings(publish=Publish(heartbeat_seconds=EVERY))
        policies = ActivePolicies((), Guard(), False)
        registry = SubjectRegistry(settings, self.clock, policies, "w", lambda effects: None)
        self.heartbeat = Heartbeat(
            self.store,
            self.clock,
            registry,
            lambda view, now, leaving: b"last" if leaving else b"heartbeat",
            self.counts,
        )

    async def run(self, seconds: float) -> None:
        task = asyncio.create_task(self.heartbeat.run())
        await self.clock.run(seconds)
        await cancel_and_wait([task])


async def test_they_come_at_their_interval() -> None:
    world = World()
    await world.run(5 * EVERY)
    assert world.store.beats == [b"heartbeat"] * 6


async def test_one_that_fails_is_counted_and_the_next_comes_all_the_same() -> None:
    world = World()
    world.store.faults.before = iter([True, False]).__next__
    await world.run(EVERY)
    assert world.counts.all == [("heartbeat",)] and world.store.beats == [b"heartbeat"]


@pytest.mark.parametrize(("alone", "last"), [(True, [b"last"]), (False, [])])
async def test_only_the_last_replica_writes_a_last_one(alone: bool, last: list[bytes]) -> None:
    world = World()
    world.store.newer_heartbeat = not alone
    await world.run(ALONE_AFTER * EVERY)
    world.store.beats.clear()
    await world.heartbeat.leave()
    assert world.store.beats == last


async def test_a_last_one_that_gets_no_answer_delays_the_end_only_for_a_while() -> None:
    world = World()
    await world.run(ALONE_AFTER * EVERY)

    async def hang(value: bytes) -> bool:
        await asyncio.Event().wait()
        return True

    world.store.write_last_heartbeat = hang  # type: ignore[method-assign]
    began = world.clock.now().mono
    with capture_logs() as logged:
        await world.clock.finish(world.heartbeat.leave())
    assert world.clock.now().mono == began + LEAVE_WITHIN
    assert [line["event"] for line in logged] == ["heartbeat.not_left"]
