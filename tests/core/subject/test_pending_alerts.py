"""A pending alert fires after its time, whichever replica goes on with it and whatever its wall clock shows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.status.alert_times import COUNTED
from nats_backpressure.core.subject.inputs import (
    ConsumerJoined,
    ConsumerRead,
    Effect,
    RecordFollowed,
    RecordMissing,
    Tick,
    WriteRecord,
)
from nats_backpressure.core.subject.restart_facts import ALERTS_EVERY
from nats_backpressure.policy.schema import AlertRule, PendingRule, Policy, When
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, EventType
from tests.core.subject.test_two_replicas import KEY, Replica, Store
from tests.support.exploring import examples

pytestmark = pytest.mark.no_cover  # whole lives in memory: traced they take four times as long

WAIT = 120.0
POLICY = Policy(alert_on_active=False, alerts=(AlertRule("long", When(pending_above=5), for_seconds=WAIT),))
MONITORING = (EventType.MONITORING_LOST, EventType.MONITORING_RESTORED)
CLOCKS = pytest.mark.parametrize("ahead", [-600.0, 0.0, 600.0])


def replica(name: str, store: Store, ahead: float = 0.0) -> Replica:
    one = Replica(name, store, POLICY)
    one.ahead = ahead
    return one


def read(one: Replica, at: float, pending: int = 50) -> None:
    store, policy = one.store, one.policy
    if store.record is not None and one.state.record is not None and one.state.revision != store.revision:
        one.feed(RecordFollowed(store.record, store.revision), at)
    one.feed(ConsumerJoined(KEY, policy), at)
    one.feed(ConsumerRead(Reading(KEY, Now(at, at), pending, 0, 0.0, None, latency_evidence=True)), at)
    one.feed(Tick(), at)


def fired_at(one: Replica, at: float) -> float:
    """When it fires, if this replica goes on alone."""
    while not (fired := [event.type for event in one.store.events if event.type not in MONITORING]):
        at += 0.5
        read(one, at)
        assert at < 1000.0 + 3 * WAIT
    assert fired == [EventType.ALERT_FIRING]
    return at


def begun(store: Store, *replicas: Replica) -> None:
    """The replicas run for a while, then the condition of the alert begins to hold at 1000."""
    for one in replicas:
        for at in (970.0, 980.0, 990.0):
            read(one, at, pending=0)
    for at in range(1000, 1006):
        for one in replicas:
            read(one, float(at))
    assert store.record is not None and [alert.state for alert in store.record.alerts] == ["pending"]


@CLOCKS
def test_another_replica_goes_on_with_it_by_its_own_clock(ahead: float) -> None:
    store = Store()
    writer, other = replica("writer", store), replica("other", store, ahead)
    other.writer_seen_at = 2000.0
    begun(store, writer, other)
    other.writer_seen_at = None
    assert fired_at(other, 1005.0) == 1000.0 + WAIT


@CLOCKS
def test_a_wall_clock_that_is_set_moves_it_not(ahead: float) -> None:
    store = Store()
    only = replica("only", store)
    begun(store, only)
    only.ahead = ahead
    assert fired_at(only, 1005.0) == 1000.0 + WAIT


@CLOCKS
def test_a_new_process_goes_on_from_how_long_it_was_stored_to_have_held(ahead: float) -> None:
    store = Store()
    first = replica("first", store)
    begun(store, first)
    for n in range(120):
        read(first, 1005.5 + n / 2)
    second = replica("second", store, ahead)
    second.state = replace(second.state, unread_since=1065.5)
    at = fired_at(second, 1065.5)
    assert 1000.0 + WAIT <= at <= 1000.0 + WAIT + ALERTS_EVERY + 1.0


def test_what_is_read_again_goes_on_as_it_was() -> None:
    store = Store()
    only = replica("only", store)
    begun(store, only)
    for second in range(20):
        read(only, 1006.0 + second)
    only.feed(RecordMissing(recreated=False), 1026.5)
    assert store.record is not None
    assert fired_at(only, 1026.5) == 1000.0 + WAIT


def test_one_that_begins_again_waits_its_whole_time() -> None:
    store = Store()
    only = replica("only", store)
    begun(store, only)
    read(only, 1010.0, pending=0)
    read(only, 1012.0, pending=50)
    assert fired_at(only, 1012.0) == 1012.0 + WAIT


def away(one: Replica, at: float, to: float) -> None:
    """Nobody looks from here to there; time passes all the same."""
    while at < to:
        at += 5.0
        one.feed(Tick(), at)


@pytest.mark.parametrize("restart", [False, True], ids=["connection lost", "restarted"])
def test_time_in_which_nobody_looked_counts_for_nothing(restart: bool) -> None:
    """Twenty seconds of a condition do not become minutes of it while the server is away."""
    store, gap = Store(), WAIT + 20.0
    only = replica("only", store)
    begun(store, only)
    for n in range(40):
        read(only, 1005.5 + n / 2)
    if restart:
        only = replica("next", store)
        only.feed(RecordFollowed(store.record, store.revision), 1026.0)  # type: ignore[arg-type]
    away(only, 1025.0, 1025.0 + gap)
    assert store.record is not None and store.record.alerts[0].held <= 25.0
    at = fired_at(only, 1025.0 + gap)
    assert 1000.0 + WAIT + gap - 10.0 <= at <= 1000.0 + WAIT + gap + ALERTS_EVERY + 1.0


@pytest.mark.parametrize("gap", [3.0, 11.0, 29.0, 31.0, WAIT])
@pytest.mark.parametrize("stands_still", [False, True], ids=["connection lost", "process stands still"])
def test_what_was_seen_before_a_gap_counts_in_full(gap: float, stands_still: bool) -> None:
    """Also where that is too old to prove anything at the next reading, and was not stored."""
    store = Store()
    only = replica("only", store)
    begun(store, only)
    for n in range(46):
        read(only, 1005.5 + n / 2)
    assert store.record is not None and store.record.alerts[0].held == 20.0
    if not stands_still:
        away(only, 1028.0, 1028.0 + gap)
    seen = COUNTED if gap < 10.0 else 0.0
    assert fired_at(only, 1028.0 + gap - 0.5) == 1000.0 + WAIT + gap - seen


@pytest.mark.parametrize("gap", [3.0, 9.0, 20.0, 45.0])
@pytest.mark.parametrize("measured", [0.0, 5.0], ids=["", "and is measured as an interval"])
def test_a_gap_right_after_the_rise_fires_nothing_though_it_is_as_long_as_the_alert_waits(
    measured: float, gap: float
) -> None:
    """The process stood still, or the server: the condition was seen before and after, and not in between."""
    policy = Policy(alert_on_active=False, alerts=(AlertRule("soon", When(pending_above=5), for_seconds=8.0),))
    store = Store()
    only = Replica("only", store, policy)
    for n in range(60):
        read(only, 970.0 + n / 2, pending=0)
    for at in (1000.0, 1000.1):
        read(only, at)
    only.interval = measured
    only.feed(Tick(), 1000.1 + gap)
    for n in range(50):
        read(only, 1000.1 + gap + n / 10)
    assert EventType.ALERT_FIRING not in [event.type for event in store.events]
    for n in range(50, 120):
        read(only, 1000.1 + gap + n / 10)
    assert EventType.ALERT_FIRING in [event.type for event in store.events]


class SlowWriter(Replica):
    """Its writes are done only when `finish` is called, while `slow`."""

    slow = False
    under_way: WriteRecord | None = None

    def _perform(self, effect: Effect, at: float) -> None:
        if self.slow and isinstance(effect, WriteRecord):
            self.under_way = effect
        else:
            super()._perform(effect, at)

    def finish(self, at: float) -> None:
        assert self.under_way is not None
        self.slow = False
        self._perform(self.under_way, at)


def test_the_time_of_a_slow_write_counts_for_nothing() -> None:
    """Nothing is evaluated meanwhile: the condition may have ended and begun again."""
    policy = Policy(alert_on_active=False, alerts=(AlertRule("soon", When(pending_above=5), for_seconds=8.0),))
    store = Store()
    only = SlowWriter("only", store, policy)
    for n in range(60):
        read(only, 970.0 + n / 2, pending=0)
    only.slow = True
    read(only, 1000.0)
    for n in range(1, 119):
        read(only, 1000.0 + n / 2, pending=0)
    only.finish(1059.9)
    for n in range(40):
        read(only, 1060.0 + n / 10)
    assert store.record is not None and [alert.state for alert in store.record.alerts] == ["pending"]
    assert EventType.ALERT_FIRING not in [event.type for event in store.events]


OTHER = ConsumerKey("OTHER", "other")
HOT = AlertRule("hot", When(status="warning"), for_seconds=8.0)
GAPS = st.lists(st.sampled_from([0.1, 0.5, 1.9, 4.0, 7.0, 9.5, 12.0, 25.0]), min_size=1, max_size=12)
"""Seconds between two readings of one consumer; the other one of its subject is read all the time."""


class TwoConsumers:
    """A subject with two consumers: one is calm, and read twice a second."""

    def __init__(self, policy: Policy) -> None:
        self.store, self.policy, self.at = Store(), policy, 1000.0
        self.only = Replica("only", self.store, policy)
        for _ in range(20):
            self.read(0, 0.5)

    def read(self, pending: int, gap: float) -> None:
        """The busy one is read after so many seconds."""
        for n in range(1, round(gap * 2) + 1):
            self._feed(OTHER, self.at + n / 2, 0)
        self.at += gap
        self._feed(KEY, self.at, pending)

    def _feed(self, key: ConsumerKey, at: float, pending: int) -> None:
        self.only.feed(ConsumerJoined(key, self.policy), at)
        self.only.feed(ConsumerRead(Reading(key, Now(at, at), pending, 0, 0.0, None, latency_evidence=True)), at)
        self.only.feed(Tick(), at)

    def states(self) -> list[str]:
        assert self.store.record is not None
        return [alert.state for alert in self.store.record.alerts]


def counted(gap: float) -> float:
    """Seconds of a gap that may count as watched."""
    return min(gap, COUNTED) if gap < 10.0 else 0.0


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param(Policy(alert_on_active=False, alerts=(replace(HOT, when=When(pending_above=5)),)), id="own"),
        pytest.param(
            Policy(pending=PendingRule(1, 2, 5), alert_on_active=False, alert_on_warning=True, alert_for_seconds=8.0),
            id="built in",
        ),
    ],
)
@settings(max_examples=examples(50, most=600, why="0.2 s each: minutes, read by read"))
@given(gaps=GAPS)
def test_seconds_in_which_only_another_consumer_was_read_count_for_nothing(policy: Policy, gaps: list[float]) -> None:
    world, watched = TwoConsumers(policy), 0.0
    world.read(50, 0.1)
    for gap in gaps:
        world.read(50, gap)
        watched += counted(gap)
        assert watched >= 8.0 - 0.01 or "firing" not in world.states(), watched
    for _ in range(24):
        world.read(50, 0.5)
    assert world.states() == ["firing"]
    if not policy.alerts:  # a break is as long as it was seen
        watched = 0.0
        world.read(0, 0.1)
        for gap in gaps:
            world.read(0, gap)
            watched += counted(gap)
            assert watched >= 8.0 - 0.01 or "firing" in world.states(), watched
