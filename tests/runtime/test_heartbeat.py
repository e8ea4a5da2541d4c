"""Heartbeats come at their interval, and the last replica writes a last one."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest
from structlog.testing import capture_logs

from nats_backpressure.config.settings import Publish, Settings
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.schema import Guard
from nats_backpressure.runtime.heartbeat import LEAVE_WITHIN, OTHERS_LEAVE, Heartbeat
from nats_backpressure.runtime.replicas import Replicas
from nats_backpressure.runtime.subject_registry import SubjectRegistry
from nats_backpressure.runtime.tasks import cancel_and_wait
from tests.fakes.clock import FakeClock
from tests.fakes.replica_channel import FakeBus
from tests.fakes.stores import FakeStateStore
from tests.runtime.test_effect_runner import Counts

EVERY = 2.0


class World:
    def __init__(self) -> None:
        self.clock, self.store, self.counts = FakeClock(), FakeStateStore(), Counts()
        settings = Settings(publish=Publish(heartbeat_seconds=EVERY))
        policies = ActivePolicies((), Guard(), False)
        registry = SubjectRegistry(settings, self.clock, policies, "w", lambda effects: None)
        self.bus = FakeBus(self.clock)
        self.replicas = Replicas(self.bus.channel("a"), self.clock, "pod-a", "a", self.counts)
        self.heartbeat = Heartbeat(
            self.store,
            self.clock,
            registry,
            lambda view, now, leaving: b"last" if leaving else b"heartbeat",
            self.counts,
            self.replicas,
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


@pytest.mark.parametrize(
    ("other", "last"),
    [
        pytest.param(None, [b"last"], id="there never was another"),
        pytest.param("stays", [], id="another is there"),
        pytest.param("leaves", [b"last"], id="the other has left"),
        pytest.param("leaves at the same time", [b"last"], id="the other leaves at the same time"),
    ],
)
async def test_only_the_last_replica_writes_a_last_one(other: str | None, last: list[bytes]) -> None:
    world = World()
    if other is not None:
        channel = world.bus.channel("b")
        replica = Replicas(channel, world.clock, "pod-b", "b", world.counts)
        replica.publish()
        await world.clock.run(EVERY)
        if other == "leaves":
            replica.leave()
            await world.clock.run(EVERY)
    await world.run(EVERY)
    world.store.beats.clear()
    leaving = asyncio.create_task(world.heartbeat.leave())
    await asyncio.sleep(0)
    if other == "leaves at the same time":
        replica.leave()
    await world.clock.finish(leaving)
    assert world.store.beats == last


async def test_a_last_one_that_gets_no_answer_delays_the_end_only_for_a_while() -> None:
    world = World()

    async def hang(value: bytes, departed: Collection[str]) -> bool:
        await asyncio.Event().wait()
        return True

    world.store.write_last_heartbeat = hang  # type: ignore[method-assign]
    began = world.clock.now().mono
    with capture_logs() as logged:
        await world.clock.finish(world.heartbeat.leave())
    assert world.clock.now().mono == began + OTHERS_LEAVE + LEAVE_WITHIN
    assert [line["event"] for line in logged] == ["heartbeat.not_left"]
