"""Policies that change: applied to every subject, and reported where they are rejected."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from nats_backpressure.config.settings import BadSettings, Settings
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.parse import PolicyEntry
from nats_backpressure.policy.schema import Guard
from nats_backpressure.policy.snapshot import PolicySnapshot, PolicyValue
from nats_backpressure.policy.validation import FieldProblem
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime import slices
from nats_backpressure.runtime.policy_updates import THE_FILE, PolicyUpdates
from nats_backpressure.runtime.subject_registry import SubjectRegistry
from nats_backpressure.runtime.tasks import cancel_and_wait
from tests.fakes.clock import FakeClock, settled
from tests.fakes.stores import FakeEventPublisher
from tests.runtime.test_effect_runner import Counts

KEY = ConsumerKey("S", "c")
OBSERVE = PolicyEntry((">",), ("*",), (("mode", "observe"),))


class World:
    def __init__(self) -> None:
        self.clock, self.publisher, self.counts = FakeClock(), FakeEventPublisher(), Counts()
        policies = ActivePolicies((), Guard(), False)
        self.registry = SubjectRegistry(Settings(), self.clock, policies, "w", lambda effects: None)
        self.registry.join("s", KEY)
        self.announced = 0
        self.updates = PolicyUpdates(self.registry, self.publisher, self.clock, self.counts, self.announce)

    def announce(self, sources: object) -> None:
        self.announced += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        loops = [asyncio.create_task(loop) for loop in (self.updates.put_in_force(), self.updates.run())]
        try:
            yield
        finally:
            await cancel_and_wait(loops)

    def mode(self) -> str:
        return self.registry.subjects["s"].members[KEY].policy.mode


def bucket(**values: bytes) -> PolicySnapshot:
    return PolicySnapshot("b", {key: PolicyValue(value, n) for n, (key, value) in enumerate(values.items(), start=1)})


async def test_a_new_policy_reaches_every_member() -> None:
    world = World()
    async with world.running():
        world.updates.reload(lambda: Settings(policies=(OBSERVE,)))
        await settled()
        assert (world.mode(), world.announced, world.updates.changed.is_set()) == ("observe", 1, False)
        world.updates.take_bucket(bucket(s=b'{"mode": "enforce"}'))
        await settled()
        assert (world.mode(), world.announced) == ("enforce", 2)


async def test_others_have_turns_while_many_subjects_are_evaluated_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE", 0.0)
    world = World()
    for n in range(100):
        world.registry.get_or_create(f"s{n}")
    async with world.running():
        world.updates.reload(lambda: Settings(policies=(OBSERVE,)))
        turns = 0
        while world.registry.subjects["s99"].policy.mode != "observe":
            await asyncio.sleep(0)
            turns += 1
    assert turns > 90


@pytest.mark.parametrize("what", ["bucket", "file"])
async def test_others_have_turns_while_many_policies_are_read(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr(slices, "SLICE", 0.0)
    world = World()
    many = bucket(**{f"s{n}": b'{"mode": "observe"}' for n in range(100)}, s=b'{"pending": {"warn": 7}}')
    async with world.running():
        if what == "file":
            world.updates.take_bucket(many)
            await settled()
            world.updates.reload(lambda: Settings(policies=(OBSERVE,)))
        else:
            world.updates.take_bucket(many)
        turns = 0
        while world.announced < (2 if what == "file" else 1):
            await asyncio.sleep(0)
            turns += 1
        assert turns > 90
        await settled()
        assert world.mode() == ("observe" if what == "file" else "enforce")
        assert world.registry.subjects["s"].members[KEY].policy.pending.warn == 7


async def test_of_several_files_and_buckets_that_come_at_once_the_newest_count() -> None:
    world = World()
    async with world.running():
        for n in (1, 2, 3):
            world.updates.take_bucket(bucket(s=b'{"pending": {"warn": %d}}' % n))
            world.updates.reload(lambda: Settings(policies=(OBSERVE,)))
        await settled()
        policy = world.registry.subjects["s"].members[KEY].policy
        assert (policy.mode, policy.pending.warn, world.announced) == ("observe", 3, 2)


async def test_a_bad_file_changes_nothing_and_is_reported_once() -> None:
    world = World()

    def bad() -> Settings:
        raise BadSettings([FieldProblem("policies", "is no list")], ["f: policies: is no list"])

    async with world.running():
        world.updates.reload(lambda: Settings(policies=(OBSERVE,)))
        with capture_logs() as logged:
            world.updates.reload(bad)
            world.updates.reload(bad)
            await settled()
        assert world.mode() == "observe"
        assert [event.subject for event in world.publisher.events] == [THE_FILE]
    assert "config.rejected" in {line["event"] for line in logged}


async def test_a_refusal_that_cannot_be_published_is_retried_alone() -> None:
    world = World()
    world.publisher.refusing.add("later")
    async with world.running():
        world.updates.take_bucket(bucket(later=b"{", bad=b"{"))
        await world.clock.run(10)
        assert [event.subject for event in world.publisher.events] == ["bad"]
        world.publisher.refusing.clear()
        await world.clock.run(10)
        assert [event.subject for event in world.publisher.events] == ["bad", "later"]


async def test_one_that_can_never_be_published_is_counted_and_dropped() -> None:
    world = World()
    world.publisher.impossible = lambda subject, kind: True
    async with world.running():
        world.updates.take_bucket(bucket(bad=b"{"))
        await world.clock.run(60)
    assert world.counts.all == [("policy_rejected",), ("event_unpublishable",)]
