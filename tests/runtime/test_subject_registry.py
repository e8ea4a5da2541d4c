"""The registry: states change by inputs only, and it knows how fresh they can be."""

from __future__ import annotations

import pytest

from nats_backpressure.config.settings import Observe, Settings
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.subject.inputs import (
    ConsumerLeft,
    ConsumerRead,
    Effect,
    LoadRecord,
    RecordLoaded,
    Tick,
    WriteDone,
)
from nats_backpressure.core.subject.record import Record
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.schema import Guard
from nats_backpressure.protocol.values import ConsumerKey, Status
from nats_backpressure.runtime.followed_streams import FollowedStream
from nats_backpressure.runtime.subject_registry import TICK, SubjectRegistry
from tests.fakes.clock import FakeClock

KEY, OTHER = ConsumerKey("S", "a"), ConsumerKey("T", "a")


class World:
    """A registry, and the effects it asked for."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.performed: list[list[Effect]] = []
        settings = Settings(observe=Observe(min_interval_ms=100, stale_after_seconds=10, unknown_after_seconds=30))
        policies = ActivePolicies((), Guard(), False)
        self.registry = SubjectRegistry(
            settings, self.clock, policies, "w", lambda effects: self.performed.append(list(effects))
        )

    def follow(self, name: str, *subjects: str, interval: float = 1.0, in_seconds: float = 1.0) -> FollowedStream:
        stream = FollowedStream(look(name, *subjects), self.clock.now().mono + in_seconds, interval=interval, seen=True)
        self.registry.streams[name] = stream
        return stream


def look(name: str, *subjects: str) -> StreamLook:
    return StreamLook(name, "t", 0, 0, 0, subjects)


def test_an_input_of_an_unknown_subject_changes_nothing() -> None:
    world = World()
    world.registry.feed("nobody", Tick())
    assert not world.registry.subjects and not world.performed


def test_the_first_member_opens_a_subject_and_loads_its_record() -> None:
    world = World()
    world.registry.join("s", KEY)
    assert list(world.registry.subjects["s"].members) == [KEY]
    assert world.performed == [[LoadRecord("s")]]


def test_the_outcome_of_an_effect_moves_the_state_on() -> None:
    world = World()
    world.registry.join("s", KEY)
    record = Record("s", "e", 1, Status.INACTIVE, Status.INACTIVE, since=0.0)
    world.registry.feed("s", RecordLoaded(record, 4))
    state = world.registry.subjects["s"]
    assert (state.record, state.revision) == (record, 4)


def test_it_counts_how_often_other_subjects_are_watched() -> None:
    registry = World().registry
    counted = [registry.watched_changes]
    for change in (registry.get_or_create, registry.forget):
        change("s")
        counted.append(registry.watched_changes)
        change("s")
        assert registry.watched_changes == counted[-1]
    registry.join("s", KEY)
    registry.feed("s", Tick())
    assert [*counted, registry.watched_changes] == [0, 1, 2, 3]


def test_patterns_are_known_until_they_are_forgotten() -> None:
    world = World()
    for subject in ("a.*", "a.>", "a.b"):
        world.registry.get_or_create(subject)
    assert set(world.registry.covering("a.b")) == {"a.*", "a.>"}
    world.registry.forget("a.>")
    world.registry.forget("a.>")
    assert list(world.registry.covering("a.b")) == ["a.*"] and "a.>" not in world.registry.subjects


def test_a_subject_is_read_as_often_as_the_slowest_of_its_streams() -> None:
    world = World()
    world.registry.get_or_create("alone")
    assert world.registry.interval("alone") == TICK
    for key in (KEY, OTHER):
        world.registry.join("s", key)
    assert world.registry.interval("s") == 0.1  # not followed yet: it will be read as soon as may be
    world.follow("S", interval=2.0, in_seconds=1.5)
    world.follow("T", interval=5.0, in_seconds=4.0)
    assert world.registry.interval("s") == 5.0
    assert world.registry.next_reading("s") == world.clock.now().mono + 1.5
    assert world.registry.next_reading("alone") == world.clock.now().mono + TICK


def test_the_longest_interval_is_that_of_any_subject() -> None:
    world = World()
    assert world.registry.longest_interval() == 0.1

    def agrees() -> float:
        longest = world.registry.longest_interval()
        assert longest == max(world.registry.interval(subject) for subject in world.registry.subjects)
        return longest

    world.registry.join("s", KEY)
    assert agrees() == 0.1
    world.follow("S", interval=0.2, in_seconds=0.1)
    assert agrees() == 0.2
    world.registry.get_or_create("alone")
    assert agrees() == TICK
    world.registry.join("t", OTHER)
    world.follow("T", interval=5.0, in_seconds=4.0)
    world.follow("without members", interval=9.0, in_seconds=4.0)
    assert agrees() == 5.0
    world.registry.forget("t")
    assert agrees() == TICK


def test_limits_are_never_shorter_than_three_readings() -> None:
    world = World()
    world.registry.join("s", KEY)
    stream = world.follow("S", interval=1.0)
    assert (world.registry.limits("s").stale_after, world.registry.limits("s").unknown_after) == (10, 30)
    stream.interval = 20.0
    assert (world.registry.limits("s").stale_after, world.registry.limits("s").unknown_after) == (60, 120)


def test_a_reading_counts_as_proof_once_there_is_something_to_answer() -> None:
    registry = World().registry
    registry.streams.newest_reading = 5.0
    assert registry.newest_read_at is None
    registry.observing = True
    assert registry.newest_read_at == 5.0


def test_members_are_found_by_stream() -> None:
    registry = World().registry
    for subject, key in (("s", KEY), ("t", KEY), ("t", OTHER)):
        registry.join(subject, key)
    assert registry.members.of_stream("S") == {KEY: ("s", "t")} and registry.members.of_stream("none") == {}
    assert registry.members.streams() == {"S", "T"}
    registry.feed("t", ConsumerLeft(KEY))
    assert registry.members.of_stream("S") == {KEY: ("s",)}
    stored = Record("s", "e", latched=((OTHER, ("pending",)),))
    registry.feed("s", RecordLoaded(stored, 1))
    assert registry.members.of_stream("T") == {OTHER: ("t", "s")}
    registry.forget("s")
    assert registry.members.of_stream("S") == {} and registry.members.of_stream("T") == {OTHER: ("t",)}
    assert registry.members.streams() == {"T"}


def test_time_is_accounted_by_status() -> None:
    world = World()
    world.registry.join("s", KEY)
    world.clock.advance(3.0)
    assert world.registry.time_in("s", world.clock.now()) == {"unknown": 3.0}
    assert world.registry.time_in("nobody", world.clock.now()) == {}
    assert world.registry.window("nobody", world.clock.now(), 60) is None


def test_a_tick_checks_a_calm_subject_again_only_when_time_may_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    registry = world.registry
    registry.join("s", KEY)
    registry.feed("s", RecordLoaded(Record("s", "e", since=0.0), 1))
    reading = Reading(KEY, world.clock.now(), 0, 0, latency=0.0, drain=None)
    registry.feed("s", ConsumerRead(reading))
    registry.feed("s", WriteDone("w.0", 2))
    fed: list[str] = []
    checked: list[str] = []
    check = registry._tick
    monkeypatch.setattr(registry, "_tick", lambda *one: (checked.append(one[0]), check(*one)))
    monkeypatch.setattr(registry, "feed", lambda subject, input_: fed.append(subject))
    for _ in range(18):
        registry.tick()
        world.clock.advance(TICK)
    assert not fed and len(checked) <= 3
    world.clock.advance(1.0)  # no proof for 10 s
    registry.tick()
    assert fed == ["s"]
