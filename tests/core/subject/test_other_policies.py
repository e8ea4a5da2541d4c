"""Replicas with different policies, on one record: one truth, no flapping, and one change when the policies change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.subject.inputs import (
    ConsumerJoined,
    ConsumerRead,
    Effect,
    EventSent,
    Input,
    LoadRecord,
    PublishEvent,
    RecordCreated,
    RecordFollowed,
    RecordLoaded,
    ReportDifference,
    WriteConflict,
    WriteDone,
    WriteRecord,
)
from nats_backpressure.core.subject.other_policies import REPORTED_AFTER, is_foreign
from nats_backpressure.core.subject.plan_writes import StepContext
from nats_backpressure.core.subject.record import Record
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.core.subject.step import step
from nats_backpressure.policy.schema import PendingRule, Policy
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Status

KEY = ConsumerKey("S", "c")


def policy(overload: float) -> Policy:
    return Policy(
        pending=PendingRule(1, 2, overload), recovery_hold_seconds=0.2, alone_factor=1e6, alert_on_active=False
    )


POLICIES = {"low": policy(20), "high": policy(200), "higher": policy(220)}
"""By their marks."""
BETWEEN = 90
"""Messages above the mark of `low`, and below the release marks of the others."""


class World:
    """One stored record, its events, and the replicas that run."""

    def __init__(self, *marks: str) -> None:
        self.at = 1000.0
        self.record: Record | None = None
        self.revision = 0
        self.events: list[str] = []
        self.newest: SubjectEvent | None = None
        self.differences: list[ReportDifference] = []
        self.replicas: list[Replica] = []
        self.started = 0
        for mark in marks:
            self.start(mark)

    def start(self, mark: str) -> Replica:
        self.started += 1
        self.replicas.append(Replica(self, f"w{self.started}", mark))
        return self.replicas[-1]

    def read(self, pending: int, seconds: float = 0.1) -> None:
        for replica in list(self.replicas):
            replica.read(pending)
        self.at += seconds

    def read_for(self, pending: int, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.read(pending)

    def followed(self, by: Replica) -> None:
        """Every other replica sees what one stored."""
        for replica in self.replicas:
            if replica is not by and self.record is not None and replica.state.record is not None:
                replica.feed(RecordFollowed(self.record, self.revision))

    def created(self) -> RecordCreated:
        """What the events stream shows."""
        if self.newest is None:
            return RecordCreated("e", self.revision)
        return RecordCreated("e", self.revision, self.newest.seq, self.newest.now, self.newest.incident, moved=True)

    @property
    def statuses(self) -> set[Status]:
        return {replica.state.record.status for replica in self.replicas if replica.state.record}


class Replica:
    def __init__(self, world: World, writer: str, mark: str) -> None:
        self.world, self.writer, self.mark = world, writer, mark
        self.state = SubjectState("s", POLICIES[mark], unread_since=world.at)
        self.feed(ConsumerJoined(KEY, POLICIES[mark]))

    def feed(self, input_: Input) -> None:
        world = self.world
        others = frozenset(replica.mark for replica in world.replicas if replica is not self)
        context = StepContext(
            10.0, 30.0, writer=self.writer, newest_read_at=world.at, policy_mark=self.mark, other_marks=others
        )
        self.state, effects = step(self.state, input_, Now(world.at, world.at), context)
        for effect in effects:
            self._perform(effect, others)

    def _perform(self, effect: Effect, others: frozenset[str]) -> None:
        world = self.world
        match effect:
            case LoadRecord() if world.record is None:
                self.feed(world.created())
            case LoadRecord(doubted=doubted):
                self.feed(RecordLoaded(world.record, world.revision, instead=world.created() if doubted else None))
            case WriteRecord(_, writing) if writing.expected != world.revision:
                self.feed(WriteConflict(writing.nonce))
            case WriteRecord(_, writing):
                stored = world.record.policy_mark if world.record is not None else self.mark
                assert stored == self.mark or stored not in others, "a replica wrote what is left to others"
                assert writing.record.policy_mark in (self.mark, stored)
                world.record, world.revision = writing.record, world.revision + 1
                self.feed(WriteDone(writing.nonce, world.revision))
                world.followed(self)
            case PublishEvent(_, event):
                if event.id not in world.events:
                    world.events.append(event.id)
                    world.newest = event
                self.feed(EventSent(event.id))
            case ReportDifference():
                world.differences.append(effect)

    def read(self, pending: int) -> None:
        at = Now(self.world.at, self.world.at)
        self.feed(ConsumerRead(Reading(KEY, at, pending, 0, 0.0, 0.1, latency_evidence=True)))

    def change(self, mark: str) -> None:
        """Its settings file is read again."""
        self.mark = mark
        self.feed(ConsumerJoined(KEY, POLICIES[mark]))


@pytest.mark.parametrize("marks", [("low", "high"), ("high", "low"), ("low", "low", "high"), ("low", "high", "higher")])
def test_at_a_steady_load_replicas_with_different_policies_publish_one_event_at_most(marks: tuple[str, ...]) -> None:
    world = World(*marks)
    for _ in range(60):
        world.read_for(BETWEEN, 1.0)
        assert len(world.statuses) == 1, "one truth"
    assert len(world.events) == (marks[0] == "low"), "as the first that wrote judges it"


def test_a_load_that_comes_and_goes_is_judged_by_those_that_have_the_policies_of_the_record() -> None:
    world = World("low", "high")
    for n in range(1, 6):
        world.read_for(BETWEEN, 1.0)
        world.read_for(0, 1.0)
        assert len(world.events) == 2 * n


@pytest.mark.parametrize("how", ["restart", "reload"])
def test_a_rolling_change_of_the_policies_is_one_change(how: str) -> None:
    world = World("low", "low", "low")
    world.read_for(BETWEEN, 2.0)
    assert len(world.events) == 1 and world.statuses == {Status.WARNING}
    for replica in list(world.replicas):
        assert world.statuses == {Status.WARNING}
        if how == "restart":
            world.replicas.remove(replica)
            world.start("high")
        else:
            replica.change("high")
        world.read_for(BETWEEN, 2.0)
    assert len(world.events) == 2 and world.statuses == {Status.INACTIVE}
    assert world.record is not None and world.record.policy_mark == "high"


def test_a_difference_is_reported_once_each_time_it_lasts() -> None:
    world = World("low", "high")
    world.read_for(BETWEEN, 10.0)
    report = world.differences[0]
    assert len(world.differences) == 1
    assert (report.stored.status, report.ours.status) == (Status.WARNING, Status.INACTIVE)
    world.read_for(0, 2.0)
    world.read_for(BETWEEN, 10.0)
    assert len(world.differences) == 2


def test_a_difference_that_is_over_within_the_time_of_a_write_is_none() -> None:
    world = World("low", "high")
    world.read_for(0, 1.0)
    for _ in range(10):
        world.read_for(BETWEEN, REPORTED_AFTER / 2)
        world.read_for(0, 1.0)
    assert world.differences == []


def test_under_the_same_policies_nothing_is_left_to_others() -> None:
    world = World("low", "low")
    world.read_for(BETWEEN, 3.0)
    world.replicas.pop(0)
    world.read_for(0, 3.0)
    assert len(world.events) == 2 and not world.differences


def test_what_one_without_a_reading_stores_again_stays_under_the_policies_that_judged_it() -> None:
    world = World("low")
    world.read_for(BETWEEN, 1.0)
    world.start("higher")
    del world.replicas[0]
    assert world.record is not None and world.newest is not None
    world.record, world.revision = replace(world.record, unsent=(world.newest,)), world.revision + 1
    world.start("high")
    assert (world.record.policy_mark, world.record.unsent) == ("low", ())


def test_a_record_of_a_version_without_marks_is_nobody_elses() -> None:
    assert not is_foreign(None, "m") and not is_foreign(Record("s", "e"), "m")
    assert is_foreign(Record("s", "e", policy_mark="k"), "m")


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("read"), st.sampled_from([0, BETWEEN, 150, 300])),
            st.tuples(st.sampled_from(["start", "stop", "change"]), st.integers(0, 5)),
        ),
        max_size=40,
    )
)
def test_whatever_comes_and_goes_only_those_with_the_policies_of_the_record_write(moves: list) -> None:
    """And at the end, at a load on which all agree, the record is right."""
    world = World("low", "high")
    marks = list(POLICIES)
    for move, n in moves:
        if move == "read":
            world.read_for(n, 0.5)
        elif move == "start":
            world.start(marks[n % 3])
        elif move == "stop" and world.replicas:
            world.replicas.pop(n % len(world.replicas))
        elif move == "change" and world.replicas:
            world.replicas[n % len(world.replicas)].change(marks[n % 3])
    if not world.replicas:
        world.start("high")
    world.read_for(300, 2.0)
    assert world.statuses == {Status.WARNING}
    world.read_for(0, 2.0)
    assert world.statuses == {Status.INACTIVE}
