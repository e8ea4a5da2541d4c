"""Readings that repeat the last ones move only the proof: the same states, events, writes and windows as if each were
evaluated like any other."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.config.settings import Settings
from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.model.samples import ConsumerConfig, Sample, StreamLook
from nats_backpressure.core.subject.inputs import (
    ConsumersRead,
    Effect,
    EventSent,
    Input,
    KeyRemoved,
    PublishEvent,
    RecordCreated,
    RecordLoaded,
    RemoveKey,
    WriteDone,
    WriteRecord,
)
from nats_backpressure.core.subject.membership import ReadState
from nats_backpressure.core.subject.record import Record
from nats_backpressure.core.watch_filter import WatchEntry
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.parse import PolicyEntry
from nats_backpressure.policy.schema import Guard
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Diagnosis
from nats_backpressure.runtime.followed_streams import FollowedStream
from nats_backpressure.runtime.intake import AT_ONCE, FEW_MEMBERS, Intake
from nats_backpressure.runtime.observations import AckSeen, Nak
from nats_backpressure.runtime.subject_registry import SubjectRegistry
from tests.fakes.clock import FakeClock
from tests.support.exploring import examples
from tests.support.policies import entry

pytestmark = pytest.mark.no_cover  # whole lives in memory: traced they take four times as long

LOOK = StreamLook("S", "then", 1, 10_000, 10_000, ("orders.>",))
POLICIES: dict[str, tuple[PolicyEntry, ...]] = {
    "defaults": (),
    "alerts": (entry(">", alerts=[{"name": "a", "when": {"pending_above": 5}, "for_seconds": 20}]),),
    "adaptive": (entry(">", admission={"mode": "adaptive"}),),
    "low marks": (entry(">", pending={"warn": 2, "critical": 4, "overload": 8}, active_signals=1),),
}


class PlainRegistry(SubjectRegistry):
    """Evaluates every reading."""

    def feed_readings(self, subject: str, readings: Sequence[tuple[Reading | None, Reading]]) -> None:
        self.feed(subject, ConsumersRead(tuple(reading for _, reading in readings)))


class World:
    """An intake over a registry; effects succeed at once, and writes and events are remembered."""

    def __init__(self, kind: type[SubjectRegistry], clock: FakeClock, policies: Sequence[PolicyEntry]) -> None:
        self.writes: list[Record] = []
        self.events: list[SubjectEvent] = []
        self.repeated = 0
        active = ActivePolicies(policies, Guard(), False)
        self.registry = kind(Settings(), clock, active, "w", self.perform)
        self.registry.observing, self.registry.streams.listed = True, True
        self.intake = Intake(self.registry, clock, (WatchEntry("*"),), (), lambda what, key, why: None)
        self.stream = FollowedStream(LOOK, 0.0, interval=1.0)
        self.registry.streams["S"] = self.stream

    def perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            self.registry.feed(effect.subject, self.outcome(effect))

    def outcome(self, effect: Effect) -> Input:
        match effect:
            case WriteRecord(subject, writing):
                self.writes.append(writing.record)
                return WriteDone(writing.nonce, self.registry.subjects[subject].revision + 1)
            case PublishEvent(_, event):
                self.events.append(event)
                return EventSent(event.id)
            case RemoveKey():
                return KeyRemoved()
            case _:
                return RecordCreated("epoch")

    def read(self, samples: Sequence[Sample], look: StreamLook, now: Now) -> None:
        self.stream.look = look
        self.registry.streams.newest_reading = now.mono
        members = self.registry.members.of_stream("S")
        under = {}
        for sample in samples:
            before = self.registry.subjects.get("orders.0")
            under[sample.key] = self.intake.sample(self.stream, sample, members.get(sample.key, ()))
            after = self.registry.subjects.get("orders.0")
            at_rest = self.registry._calm._subjects.get("orders.0")
            self.repeated += before is not after and at_rest is not None and at_rest.resting is after
        self.intake.remove_uncounted_members(self.stream, ReadState(under, (), len(samples) > 0))


class Worlds:
    """The same life for a registry that repeats readings and for one that evaluates all."""

    def __init__(self, policies: Sequence[PolicyEntry] = (), consumers: int = 2, subjects: int = 2) -> None:
        self.clock = FakeClock()
        self.both = [World(kind, self.clock, policies) for kind in (SubjectRegistry, PlainRegistry)]
        self.look = LOOK
        self.samples = {
            f"c{n}": Sample(
                ConsumerKey("S", f"c{n}"),
                "then",
                ConsumerConfig(filters=(f"orders.{n % subjects}",), max_ack_pending=100),
                *(Now(0, 0), 0, 0, 0, 1, 500, 50, 500, 50, 9.0, 8.0),
            )
            for n in range(consumers)
        }

    def change(self, name: str, **parts: Any) -> None:
        self.samples[name] = replace(self.samples[name], **parts)

    def read(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)
        now = self.clock.now()
        for world in self.both:
            world.read([replace(sample, at=now) for sample in self.samples.values()], self.look, now)
        self.check()

    def each(self, do: Callable[[World], object]) -> None:
        for world in self.both:
            do(world)
        self.check()

    def check(self) -> None:
        fast, plain = self.both
        assert fast.registry.subjects == plain.registry.subjects
        assert fast.events == plain.events and fast.writes == plain.writes

    def check_windows(self) -> None:
        fast, plain = self.both
        now = self.clock.now()
        for subject in fast.registry.subjects:
            for seconds in (60, 3600, 86_400):
                a, b = (world.registry.window(subject, now, seconds) for world in (fast, plain))
                assert a is not None and b is not None
                assert a.seconds == pytest.approx(b.seconds, abs=0.01)
                for name, measure in a.measures.items():
                    other = b.measures[name]
                    assert (measure.low, measure.high) == (other.low, other.high)
                    assert measure.mean == (None if other.mean is None else pytest.approx(other.mean, abs=0.01))
            assert fast.registry.time_in(subject, now) == plain.registry.time_in(subject, now)

    def live(self, dice: random.Random, stretches: int) -> None:
        """Long calm stretches, short busy ones, and now and then something else."""
        for _ in range(stretches):
            interval = dice.choice((0.1, 0.5, 1.0, 5.0))
            for _ in range(dice.choice((5, 20, 60))):
                self.read(interval)
                if dice.random() < 0.1:
                    self.each(lambda world: world.registry.tick())
                if dice.random() < 0.01:
                    self.clock.advance(dice.choice((9.0, 12.0, 35.0)))
            self.occur(dice)
        self.check_windows()

    def occur(self, dice: random.Random) -> None:
        name = dice.choice(list(self.samples))
        sample, now = self.samples[name], self.clock.now()
        match dice.randrange(8):
            case 0:
                self.each(lambda world: world.intake.hint(AckSeen(sample.key, 0.1, 1, now), now))
            case 1:
                self.each(lambda world: world.intake.hint(Nak(sample.key), now))
            case 2:
                self.change(name, waiting=dice.randrange(3))
            case 3:
                self.look = replace(self.look, last_seq=self.look.last_seq + 3, messages=self.look.messages + 3)
            case 4:
                record = self.both[0].registry.subjects[sample.config.filters[0]].record
                if record is not None:
                    stored = replace(record, latched=((sample.key, ("pending",)),), seq=record.seq)
                    self.each(lambda world: world.registry.feed(record.subject, RecordLoaded(stored, 999)))
            case _:
                self.work(dice, name)

    def work(self, dice: random.Random, name: str) -> None:
        for _ in range(dice.randrange(1, 12)):
            sample = self.samples[name]
            given = dice.randrange(sample.pending + 1)
            self.change(
                name,
                pending=sample.pending - given + dice.choice((0, 0, 5, 20, 5000)),
                inflight=given,
                delivered_stream=sample.delivered_stream + given,
                delivered_consumer=sample.delivered_consumer + given,
            )
            self.look = replace(self.look, last_seq=self.look.last_seq + 5000, messages=self.look.messages + 5000)
            self.read(dice.choice((0.1, 0.5)))
        sample = self.samples[name]
        self.change(
            name,
            pending=0,
            inflight=0,
            delivered_stream=sample.delivered_stream + sample.pending,
            delivered_consumer=sample.delivered_consumer + sample.pending,
        )


@pytest.mark.parametrize("policies", POLICIES.values(), ids=POLICIES.keys())
@settings(max_examples=examples(25, most=250, why="an example takes 0.3 s"))
@given(st.integers(0, 2**32))
def test_states_events_writes_and_windows_are_the_same(policies: Sequence[PolicyEntry], seed: int) -> None:
    Worlds(policies).live(random.Random(seed), 12)


def test_the_property_repeats_most_readings_and_writes_hardly_any() -> None:
    worlds = Worlds()
    worlds.live(random.Random(1), 30)
    fast, plain = worlds.both
    assert fast.repeated > 300 and plain.repeated == 0


def test_many_members_of_one_subject_are_fed_together() -> None:
    members = 3 * AT_ONCE
    worlds = Worlds(consumers=members, subjects=1)
    fed: list[int] = []
    registry = worlds.both[0].registry
    feed = registry.feed_readings

    def count(subject: str, readings: Sequence[tuple[Reading | None, Reading]]) -> None:
        fed.append(len(readings))
        feed(subject, readings)

    registry.feed_readings = count  # type: ignore[method-assign]
    worlds.read(0.1)
    assert fed[:FEW_MEMBERS] == [1] * FEW_MEMBERS and sum(fed) == members and max(fed) == AT_ONCE
    fed.clear()
    worlds.read(0.1)
    assert fed == [AT_ONCE] * 3


def test_one_that_is_overloaded_among_many_is_seen_in_the_same_reading() -> None:
    worlds = Worlds(POLICIES["low marks"], consumers=40, subjects=1)
    for _ in range(200):
        worlds.read(0.5)
    worlds.change("c39", pending=50)
    worlds.look = replace(worlds.look, last_seq=10_050, messages=10_050)
    worlds.read(0.5)
    assert worlds.both[0].events[0].type.value == "backpressure_active"


def test_a_proof_that_is_old_when_it_is_fed_is_evaluated() -> None:
    worlds = Worlds()
    for _ in range(200):
        worlds.read(0.5)
    assert worlds.both[0].repeated
    worlds.read(9.0)
    worlds.clock.advance(40.0)
    worlds.each(lambda world: world.registry.tick())
    assert worlds.both[0].registry.subjects["orders.0"].record.unknown  # type: ignore[union-attr]
    worlds.read(0.0)
    worlds.read(5.0)
    assert not worlds.both[0].registry.subjects["orders.0"].record.unknown  # type: ignore[union-attr]


def test_a_member_that_is_not_proved_any_more_makes_its_subject_stale() -> None:
    worlds = Worlds(consumers=2, subjects=1)
    for _ in range(200):
        worlds.read(0.5)
    del worlds.samples["c1"]
    for world in worlds.both:
        world.intake.remove_uncounted_members = lambda stream, shown: None  # type: ignore[method-assign, assignment]
    for _ in range(100):
        worlds.read(0.5)
    assert worlds.both[0].registry.subjects["orders.0"].record.stale  # type: ignore[union-attr]


def test_a_diagnosis_that_comes_and_goes_is_written_every_half_minute_and_answered_at_once() -> None:
    """A message every three seconds, done at once: idle, healthy, idle ..."""
    worlds = Worlds(consumers=1, subjects=1)
    diagnoses = set()
    for n in range(3000):
        ages = {"since_delivery": n % 30 / 10, "since_ack": n % 30 / 10}
        sample = worlds.samples["c0"]
        if n % 30 == 0:
            one_more = {
                "delivered_stream": sample.delivered_stream + 1,
                "delivered_consumer": sample.delivered_consumer + 1,
            }
            worlds.look = replace(worlds.look, last_seq=worlds.look.last_seq + 1, messages=worlds.look.messages + 1)
            worlds.change("c0", floor_stream=sample.floor_stream + 1, **one_more)
        worlds.change("c0", **ages)
        worlds.read(0.1)
        if n % 5 == 0:
            worlds.each(lambda world: world.registry.tick())
        worst = worlds.both[0].registry.subjects["orders.0"].worst
        diagnoses.add(worst.reading.diagnosis if worst and worst.reading else None)
    assert {Diagnosis.HEALTHY, Diagnosis.IDLE} <= diagnoses
    assert 2 <= len(worlds.both[0].writes) <= 1 + 300 / 30 + 1
    assert not worlds.both[0].events
