"""Two replicas read one consumer and share its stored record: what one released, the other does not set again."""

from __future__ import annotations

import math

import pytest
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
    PolicyRefused,
    PublishEvent,
    RecordCreated,
    RecordFollowed,
    RecordLoaded,
    ReportDifference,
    Tick,
    WriteConflict,
    WriteDone,
    WriteRecord,
)
from nats_backpressure.core.subject.plan_writes import StepContext
from nats_backpressure.core.subject.record import Record
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.core.subject.step import step
from nats_backpressure.policy.schema import AdmissionRule, Policy, Rejection
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import STATUS_EVENTS, ConsumerKey, Status

KEY = ConsumerKey("S", "c")
POLICY = Policy(recovery_hold_seconds=5.0, alert_on_active=False)


class Store:
    """The state key, written by compare-and-set, and the events stream."""

    def __init__(self) -> None:
        self.record: Record | None = None
        self.revision = 0
        self.events: list[SubjectEvent] = []

    def created(self) -> RecordCreated:
        """What the events stream shows."""
        created = RecordCreated("e", self.revision, max((event.seq for event in self.events), default=0))
        moves = [event for event in self.events if event.type in STATUS_EVENTS]
        return replace(created, status=moves[-1].now, incident=moves[-1].incident, moved=True) if moves else created


class Replica:
    def __init__(self, name: str, store: Store, policy: Policy = POLICY) -> None:
        self.name, self.store, self.policy = name, store, policy
        self.state = SubjectState("s", policy, unread_since=1000.0)
        self.writer_seen_at: float | None = None
        self.others_are_cut_off, self.connected_for = False, math.inf
        self.reports: list[ReportDifference] = []
        self.ahead = 0.0
        """Seconds by which its wall clock is ahead."""
        self.interval = 0.0
        """Seconds between two readings, as measured."""

    def feed(self, input_: Input, at: float) -> None:
        context = StepContext(
            10.0,
            30.0,
            self.interval,
            writer=self.name,
            newest_read_at=at,
            policy_mark="m",
            writer_seen_at=self.writer_seen_at,
            others_are_cut_off=self.others_are_cut_off,
            connected_for=self.connected_for,
        )
        self.state, effects = step(self.state, input_, Now(at, at + self.ahead), context)
        for effect in effects:
            self._perform(effect, at)

    def _perform(self, effect: Effect, at: float) -> None:
        store = self.store
        match effect:
            case LoadRecord() if store.record is None:
                self.feed(store.created(), at)
            case LoadRecord(doubted=doubted):
                self.feed(RecordLoaded(store.record, store.revision, instead=store.created() if doubted else None), at)
            case WriteRecord(_, writing) if writing.expected != store.revision:
                self.feed(WriteConflict(writing.nonce), at)
            case WriteRecord(_, writing):
                store.record, store.revision = writing.record, store.revision + 1
                self.feed(WriteDone(writing.nonce, store.revision), at)
            case PublishEvent(_, event):
                if event.id not in {other.id for other in store.events}:
                    store.events.append(event)
                self.feed(EventSent(event.id), at)
            case ReportDifference():
                self.reports.append(effect)

    def read(self, at: float, pending: int, drain: float) -> None:
        self.feed(ConsumerJoined(KEY, self.policy), at)
        now = Now(at, at)
        self.feed(ConsumerRead(Reading(KEY, now, pending, 0, 0.0, drain, latency_evidence=True)), at)


def types(store: Store) -> list[str]:
    return [event.type.value for event in store.events]


@pytest.mark.parametrize("lag", [0.01, 0.3, 0.6])
def test_a_write_of_another_kind_raises_nothing_that_the_other_replica_released(lag: float) -> None:
    store = Store()
    first, second = Replica("a", store), Replica("b", store)
    for n, replica in enumerate((first, second)):
        replica.read(1000.0 + n / 100, 1500, 20.0)
    assert types(store) == ["backpressure_active"]
    first.read(1001.0, 20, 0.1)
    second.read(1001.0 + lag, 20, 0.1)
    first.read(1006.0, 20, 0.1)
    assert types(store) == ["backpressure_active", "recovery"]
    second.feed(PolicyRefused(Rejection("mark", (("retry_after_seconds", "must be a number"),))), 1006.005)
    second.read(1006.008, 20, 0.1)
    for at in (1007.0, 1008.0):
        first.read(at, 20, 0.1)
        second.read(at + lag, 20, 0.1)
    assert types(store) == ["backpressure_active", "recovery", "policy_rejected"]
    assert first.store.record is not None and first.store.record.status is Status.INACTIVE


def test_what_is_above_its_mark_stays_set_whatever_the_other_replica_stored() -> None:
    store = Store()
    first, second = Replica("a", store), Replica("b", store)
    first.read(1000.0, 20, 0.1)
    second.read(1000.1, 1500, 20.0)
    assert types(store) == ["backpressure_active"]
    assert second.state.members[KEY].status is Status.ACTIVE


def test_a_restarted_replica_forgets_a_stored_latch_that_another_released_before_its_first_reading() -> None:
    store = Store()
    first = Replica("a", store)
    first.read(1000.0, 1500, 20.0)
    restarted = Replica("c", store)
    restarted.feed(ConsumerJoined(KEY, POLICY), 1000.5)
    assert restarted.state.members[KEY].status is Status.ACTIVE
    first.read(1001.0, 20, 0.1)
    first.read(1006.0, 20, 0.1)
    assert types(store) == ["backpressure_active", "recovery"]
    restarted.feed(PolicyRefused(Rejection("mark", ())), 1006.1)
    assert restarted.state.members[KEY].status is Status.UNKNOWN
    restarted.read(1006.2, 20, 0.1)
    assert types(store) == ["backpressure_active", "recovery", "policy_rejected"]


def test_a_lost_write_does_not_start_the_hold_again() -> None:
    """Adaptive admission writes often: a hold that started again with each lost write would never end."""
    policy = Policy(recovery_hold_seconds=5.0, alert_on_active=False, admission=AdmissionRule(mode="adaptive"))
    store = Store()
    first, second = Replica("a", store, policy), Replica("b", store, policy)
    for tenth in range(20):
        for n, replica in enumerate((first, second)):
            replica.read(1000.0 + tenth / 10 + n / 100, 1500, 20.0)
    for tenth in range(20, 400):
        for n, replica in enumerate((first, second)):
            replica.read(1000.0 + tenth / 10 + n / 100, 20, 0.1)
            replica.feed(Tick(), 1000.0 + tenth / 10 + n / 100 + 0.001)
    rises = [event for event in store.events if event.type.value in ("backpressure_active", "backpressure_warning")]
    assert len(rises) == 1, types(store)
    assert store.record is not None and store.record.status is Status.INACTIVE


def test_an_overload_that_follows_soon_after_another_is_one_incident_though_a_replica_missed_the_fall_between() -> None:
    store = Store()
    first, second = Replica("a", store), Replica("b", store)
    for n, replica in enumerate((first, second)):
        replica.read(1000.0 + n / 100, 1500, 20.0)
    first.read(1001.0, 20, 0.1)
    second.read(1001.3, 20, 0.1)
    first.read(1006.0, 20, 0.1)
    first.read(1006.1, 1500, 20.0)  # the next overload
    assert store.record is not None
    second.feed(RecordFollowed(store.record, store.revision), 1006.2)  # the write before it was replaced meanwhile
    second.read(1006.4, 20, 0.1)  # asked for before the overload, late
    assert types(store) == ["backpressure_active", "recovery", "backpressure_active"]
    assert second.state.members[KEY].status is Status.ACTIVE


def test_the_events_of_a_record_that_is_taken_over_are_not_numbered_again() -> None:
    store = Store()
    first, second = Replica("a", store), Replica("b", store)
    for n, replica in enumerate((first, second)):
        replica.read(1000.0 + n / 100, 1500, 20.0)
    second.state = replace(second.state, renumber_from=("late", 7))  # a conflict, which the next write was to answer
    first.read(1001.0, 20, 0.1)
    first.read(1006.0, 20, 0.1)
    assert store.record is not None
    second.feed(RecordFollowed(store.record, store.revision), 1006.1)
    second.feed(Tick(), 1007.0)
    assert types(store) == ["backpressure_active", "recovery"]
    assert {event.epoch for event in store.events} == {store.record.epoch}
