"""Who writes heartbeats, and when; and the last one, of the last replica."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import pytest
from structlog.testing import capture_logs

from nats_backpressure.config.settings import Publish, Settings
from nats_backpressure.core.reading.sharing import ALL_STREAMS, LISTS, LOOKS
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.schema import Guard
from nats_backpressure.protocol import messages
from nats_backpressure.protocol.messages import SCHEMA
from nats_backpressure.protocol.timestamps import format_rfc3339
from nats_backpressure.runtime.heartbeat import APART, LEAVE_WITHIN, OTHERS_LEAVE, SILENT_INTERVALS, HeartbeatWriter
from nats_backpressure.runtime.replicas import Replicas
from nats_backpressure.runtime.shared_reading import SharedReading
from nats_backpressure.runtime.subject_registry import SubjectRegistry
from tests.fakes.clock import FakeClock
from tests.fakes.replica_channel import FakeBus
from tests.fakes.stores import FakeStateStore
from tests.runtime.test_effect_runner import Counts
from tests.support.background import meanwhile

EVERY = 2.0


class World:
    def __init__(self) -> None:
        self.clock, self.store, self.counts = FakeClock(), FakeStateStore(), Counts()
        settings = Settings(publish=Publish(heartbeat_seconds=EVERY))
        policies = ActivePolicies((), Guard(), False)
        registry = SubjectRegistry(settings, self.clock, policies, "w", lambda effects: None)
        self.bus = FakeBus(self.clock)
        self.replicas = Replicas(self.bus.channel("a"), self.clock, "pod-a", "a", self.counts)
        self.other = Replicas(self.bus.channel("b"), self.clock, "pod-b", "b", self.counts)
        """It is there while it runs."""
        self.shared = SharedReading(self.clock, "a", 0.6)
        self.shared.start(ALL_STREAMS, LOOKS, LISTS, 0.1)
        self.heartbeat = HeartbeatWriter(
            self.store,
            self.clock,
            registry,
            lambda view, now, leaving: b"last" if leaving else b"heartbeat",
            self.counts,
            self.replicas,
            self.shared,
        )

    async def run(self, seconds: float) -> None:
        async with meanwhile(self.heartbeat.run()):
            await self.clock.run(seconds)

    def receive(self, sampled_at: str | None = None, **fields: Any) -> None:
        """Another replica wrote one, of now."""
        sampled_at = sampled_at or format_rfc3339(self.clock.now().wall)
        self.store.on_heartbeat(
            messages.Heartbeat(**{"schema": SCHEMA, "instance": "pod-b", **fields}, sampled_at=sampled_at)
        )

    def stop_reading(self) -> None:
        self.shared.end(ALL_STREAMS, LISTS, failed=True)


async def test_they_come_at_their_interval() -> None:
    world = World()
    await world.run(5 * EVERY)
    assert world.store.beats == [b"heartbeat"] * 6


async def test_without_another_reading_it_shows_the_same_time_though_the_wall_clock_was_set() -> None:
    """Another `sampled_at` proves a reading to those that follow."""
    world = World()
    registry, times = world.heartbeat._registry, list[float]()
    registry.observing, registry.streams.newest_reading = True, world.clock.now().mono
    world.heartbeat._render = lambda view, now, leaving: (
        times.append(round(now.wall - now.mono + (view.newest_read_at or 0.0), 3)) or b"heartbeat"
    )
    async with meanwhile(world.heartbeat.run()):
        await world.clock.run(2 * EVERY)
        world.clock._offset += 3600
        await world.clock.run(2 * EVERY)
        assert len(times) == 5 and len(set(times)) == 1
        registry.streams.newest_reading = world.clock.now().mono
        await world.clock.run(EVERY)
        assert times[-1] == pytest.approx(times[0] + 3600 + 4 * EVERY)


async def test_one_that_fails_is_counted_and_the_next_comes_all_the_same() -> None:
    world = World()
    world.store.faults.before = iter([True, False]).__next__
    await world.run(EVERY)
    assert world.counts.all == [("heartbeat",)] and world.store.beats == [b"heartbeat"]


SILENCE = SILENT_INTERVALS * EVERY


async def test_one_that_reads_no_streams_writes_after_two_intervals_of_silence() -> None:
    world = World()
    world.stop_reading()
    async with meanwhile(world.heartbeat.run(), world.other.run()):
        world.store.beats.clear()
        for _ in range(10):
            world.receive()
            await world.clock.run(EVERY)
        assert world.store.beats == []
        await world.clock.run(SILENCE - EVERY - 0.1)
        assert world.store.beats == []
        await world.clock.run(APART * EVERY + 0.2)
        assert world.store.beats == [b"heartbeat"]
        world.shared.end(ALL_STREAMS, LISTS, failed=False)
        await world.clock.run(10 * EVERY)
        assert len(world.store.beats) == 11, "it is the reader now"


async def test_alone_they_come_at_their_interval_though_the_streams_cannot_be_listed() -> None:
    world = World()
    world.receive()  # from one that is gone since
    world.stop_reading()
    await world.run(30.0)
    assert len(world.store.beats) >= 14


async def test_where_nobody_lists_the_streams_the_last_one_that_wrote_goes_on_until_another_one_did() -> None:
    world = World()
    world.stop_reading()
    async with meanwhile(world.heartbeat.run(), world.other.run()):
        await world.clock.run(30.0)
        assert len(world.store.beats) == 14
        world.receive()
        await world.clock.run(SILENCE - 0.1)
        assert len(world.store.beats) == 14


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        pytest.param({"sampled_at": "2026-11-26T10:00:00.000Z"}, "that shows no newer reading", id="not moved"),
        pytest.param({"schema": SCHEMA - 1}, "of an older version, which proves nothing of ours", id="older"),
    ],
)
async def test_a_heartbeat_that_proves_nothing_silences_nobody(fields: dict[str, Any], kind: str) -> None:
    world = World()
    world.stop_reading()
    async with meanwhile(world.heartbeat.run(), world.other.run()):
        for _ in range(10):
            world.receive(**fields)
            await world.clock.run(EVERY)
    assert len(world.store.beats) >= 4, kind


async def test_one_that_was_written_elsewhere_at_the_same_time_is_left_alone_until_the_next_is_due() -> None:
    world, tries = World(), []

    async def overtaken(value: bytes) -> bool:
        tries.append(value)
        return False

    world.store.write_heartbeat = overtaken  # type: ignore[method-assign]
    await world.run(5 * EVERY)
    assert len(tries) == 6


async def test_a_replica_that_is_still_there_answers_a_last_heartbeat_of_another_one_at_once() -> None:
    world = World()
    world.stop_reading()
    async with meanwhile(world.heartbeat.run()):
        world.receive()
        await world.clock.run(0.1)
        world.store.beats.clear()
        world.receive(leaving=True)
        await world.clock.run(0.0)
        assert world.store.beats == [b"heartbeat"]


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
    replica = world.other
    if other is not None:
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
