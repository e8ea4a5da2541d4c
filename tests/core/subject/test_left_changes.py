"""Two replicas with the same readings and one record: the writer changes it; the other one only without a writer."""

from __future__ import annotations

import math

import pytest
from msgspec.structs import replace

from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.subject.inputs import ConsumerJoined, ConsumerLeft, ConsumerRead, RecordFollowed, Tick
from nats_backpressure.core.subject.left_changes import KEPT_BACK_FOR, LEFT_FOR, UNNAMED_FOR, UNSURE_FOR
from nats_backpressure.core.subject.other_policies import REPORTED_AFTER
from nats_backpressure.policy.schema import MarkRule, Policy
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Diagnosis, EventType, Status
from tests.core.subject.test_two_replicas import KEY, Replica, Store, types

POLICY = Policy(alert_on_active=False)
SECOND = ConsumerKey("S", "second")
HIGH, LOW = 6000.0, 1500.0
"""Latencies above the mark, and below half of it."""


def pair() -> tuple[Store, Replica, Replica]:
    store = Store()
    return store, Replica("writer", store, POLICY), Replica("other", store, POLICY)


def follow(replica: Replica, at: float) -> None:
    store = replica.store
    if store.record is not None and replica.state.record is not None and replica.state.revision != store.revision:
        replica.feed(RecordFollowed(store.record, store.revision), at)


def read(replica: Replica, at: float, latency: float, lost: int = 0, policy: Policy = POLICY) -> None:
    follow(replica, at)
    replica.feed(ConsumerJoined(KEY, policy), at)
    replica.feed(ConsumerRead(Reading(KEY, Now(at, at), 5, 30, latency, None, latency_evidence=True, lost=lost)), at)
    replica.feed(Tick(), at)


def read_both(writer: Replica, other: Replica, since: float, latencies: tuple[float, float], seconds: float) -> float:
    """The writer and the other one read every tenth of a second, and the writer gives its signs; the time after it."""
    for tenth in range(round(seconds * 10)):
        at = since + tenth / 10
        other.writer_seen_at = at
        read(writer, at, latencies[0])
        read(other, at + 0.01, latencies[1])
    return since + seconds


@pytest.mark.parametrize("latencies", [(HIGH, LOW), (LOW, HIGH)])
def test_what_the_writer_judges_otherwise_stays_its_own_and_is_reported_once(latencies: tuple[float, float]) -> None:
    store, writer, other = pair()
    at = read_both(writer, other, 1000.0, (LOW, LOW), 3.0)
    read_both(writer, other, at, latencies, 60.0)
    assert types(store) == (["backpressure_warning"] if latencies[0] == HIGH else [])
    assert other.state.record == store.record and len(other.reports) == 1 and writer.reports == []


def test_a_change_waits_for_the_writer_until_it_gives_no_sign() -> None:
    store, writer, other = pair()
    at = read_both(writer, other, 1000.0, (LOW, LOW), 3.0)
    died = other.writer_seen_at = at
    while not store.events:
        at += 0.1
        read(other, at, HIGH)
    assert LEFT_FOR <= at - died - 0.1 <= LEFT_FOR + 0.11
    assert REPORTED_AFTER < LEFT_FOR and len(other.reports) == 1


@pytest.mark.parametrize("seen", [None, -math.inf])
def test_without_a_writer_nothing_waits_and_too_early_to_know_only_what_changes_a_record(seen: float | None) -> None:
    store, _, other = pair()
    other.writer_seen_at = seen
    read(other, 1000.0, LOW)
    assert store.record is not None
    at = 1000.1
    read(other, at, HIGH)
    while not store.events:
        at += 0.1
        read(other, at, HIGH)
    assert at - 1000.1 == pytest.approx(0.0 if seen is None else UNSURE_FOR, abs=0.11)


MILD = Policy(alert_on_active=False, latency_p95=MarkRule(20_000, 30_000, 40_000))


@pytest.mark.parametrize(
    ("told_after", "expected"), [(0.03, ["recovery"]), (None, ["recovery", "backpressure_warning"])]
)
def test_a_change_by_newer_policies_is_not_taken_back_before_these_can_have_come(
    told_after: float | None, expected: list[str]
) -> None:
    """Both take themselves for the writer, as while the reading of a stream is handed over."""
    store, one, other = pair()
    at = 1000.0
    while types(store)[-1:] != ["recovery"]:
        at += 0.1
        read(other, at, HIGH)
        read(one, at, HIGH, policy=MILD if at > 1003.0 else POLICY)
    before = len(store.events) - 1
    for n in range(170):
        told = told_after is not None and n / 100 >= told_after
        read(other, at + n / 100, HIGH, policy=MILD if told else POLICY)
        if n == 140:
            assert types(store)[before:] == ["recovery"]
    assert types(store)[before:] == expected


def test_what_the_writer_does_not_put_right_is_put_right_as_the_writer_judged_it() -> None:
    store, writer, other = pair()
    at = read_both(writer, other, 1000.0, (HIGH, LOW), 3.0)
    before = store.record
    assert before is not None and store.record is not None
    store.record, store.revision = (
        replace(before, status=Status.INACTIVE, announced=Status.INACTIVE),
        store.revision + 1,
    )
    for tenth in range(round(LEFT_FOR * 10) + 4):
        other.writer_seen_at = at + tenth / 10
        read(other, at + tenth / 10, LOW)
    assert (store.record.status, store.record.incident) == (before.status, before.incident)
    assert types(store) == ["backpressure_warning"]


def test_a_loss_of_a_consumer_that_is_gone_is_reported_by_one() -> None:
    store, writer, other = pair()
    at = read_both(writer, other, 1000.0, (LOW, LOW), 3.0)
    for after, lost in ((0.0, 3), (0.5, 2)):  # the second one is not reported yet when the consumer goes
        for replica in (writer, other):
            other.writer_seen_at = at + after
            read(replica, at + after, LOW, lost=lost)
    for replica in (writer, other):
        replica.feed(ConsumerLeft(KEY), at + 1.0)
        replica.feed(ConsumerJoined(KEY, POLICY), at + 1.1)
        read(replica, at + 1.2, LOW)
    follow(other, at + 1.3)
    assert [event.lost for event in store.events if event.lost] == [3, 2]
    other.writer_seen_at = None
    for later in (20.0, 40.0):
        read(other, at + later, LOW)
    assert [event.lost for event in store.events if event.lost] == [3, 2] and other.state.departed_lost == 0


def with_two_consumers() -> tuple[Store, Replica, Replica]:
    """One is active, the other one warning; both replicas know that."""
    store, writer, other = pair()
    other.writer_seen_at = 1000.0
    for replica in (writer, other):
        follow(replica, 1000.0)
        for key in (KEY, SECOND):
            replica.feed(ConsumerJoined(key, POLICY), 1000.0)
            measure(replica, 1000.0, key, pending=1500, inflight=600 if key == KEY else 0)
    assert types(store) == ["backpressure_active"]
    return store, writer, other


def measure(replica: Replica, at: float, key: ConsumerKey, pending: int, inflight: int = 0) -> None:
    follow(replica, at)
    replica.feed(ConsumerRead(Reading(key, Now(at, at), pending, inflight, 0.0, None, latency_evidence=True)), at)


def recoveries(store: Store) -> list[tuple[str, ...]]:
    return [event.reasons for event in store.events if event.type is EventType.RECOVERY]


@pytest.mark.parametrize("calm", [False, True])
def test_a_deletion_that_the_writer_announced_is_no_cause_of_the_next_recovery(calm: bool) -> None:
    """`calm`: the next reading of the other one that is left is already calm."""
    store, writer, other = with_two_consumers()
    other.feed(ConsumerLeft(KEY), 1001.0)
    writer.feed(ConsumerLeft(KEY), 1001.0)
    assert recoveries(store) == [("pending", "consumer_deleted")]
    other.writer_seen_at = None  # the writer is gone
    if not calm:
        measure(other, 1001.1, SECOND, pending=1500)
    for at in (1002.0, 1004.0):
        measure(other, at, SECOND, pending=0)
    assert recoveries(store) == [("pending", "consumer_deleted"), ()]


def test_a_deletion_after_which_the_status_rose_again_is_no_cause_of_the_next_recovery() -> None:
    store, _, other = with_two_consumers()
    other.feed(ConsumerLeft(KEY), 1001.0)
    measure(other, 1001.1, SECOND, pending=1500, inflight=600)
    for at in (1002.0, 1004.0, 1006.0):
        measure(other, at, SECOND, pending=0)
    assert recoveries(store) == [()]


def test_a_deletion_whose_fall_the_dead_writer_left_is_its_cause() -> None:
    store, _, other = with_two_consumers()
    other.feed(ConsumerLeft(KEY), 1001.0)
    measure(other, 1001.1 + LEFT_FOR, SECOND, pending=1500)
    assert recoveries(store) == [("pending", "consumer_deleted")]


def tick_until_unknown(replica: Replica, since: float, seconds: float, connected_since: float = -math.inf) -> float:
    """Nothing is read any more: the time at which that is stored, or the end."""
    at = since
    while at < since + seconds and "monitoring_lost" not in types(replica.store):
        at += 0.5
        replica.connected_for = max(0.0, at - connected_since)
        replica.feed(Tick(), at)
    return at


def test_one_that_stands_still_again_and_again_keeps_unknown_back_for_a_bounded_time() -> None:
    _, writer, _ = pair()
    read(writer, 1000.0, LOW)
    writer.others_are_cut_off = True
    assert tick_until_unknown(writer, 1000.0, 200.0) == pytest.approx(1030.0 + KEPT_BACK_FOR, abs=1.0)


def test_what_was_concluded_without_a_connection_is_kept_back_once_there_is_one_again() -> None:
    store, writer, _ = pair()
    read(writer, 1000.0, LOW)
    writer.others_are_cut_off = True
    assert tick_until_unknown(writer, 1000.0, 500.0, connected_since=math.inf) == 1500.0
    tick_until_unknown(writer, 1500.0, 1.5, connected_since=1500.0)
    assert types(store) == []
    writer.feed(ConsumerRead(Reading(KEY, Now(1502.0, 1502.0), 5, 30, LOW, None, latency_evidence=True)), 1502.0)
    assert types(store) == []


def test_how_long_another_change_was_left_does_not_count() -> None:
    store, writer, other = pair()
    at = read_both(writer, other, 1000.0, (LOW, HIGH), 90.0)
    other.others_are_cut_off = True
    tick_until_unknown(other, at + 40.0, 2.0)
    assert other.state.left_since is not None and types(store) == []


def test_a_record_that_names_no_consumer_gets_its_names_from_one_that_does_not_write_it() -> None:
    store, writer, other = pair()
    at = read_both(writer, other, 1000.0, (LOW, LOW), 3.0)
    assert store.record is not None and store.record.carried == ()
    before = store.record
    while not store.record.carried and at < 1020.0:
        at = other.writer_seen_at = at + 0.1
        follow(other, at)
        reading = Reading(KEY, Now(at, at), 5, 30, HIGH, None, lasting_diagnosis=Diagnosis.HEALTHY)
        other.feed(ConsumerRead(replace(reading, latency_evidence=True)), at)
    assert at - 1003.1 == pytest.approx(UNNAMED_FOR, abs=0.11)
    assert replace(store.record, carried=()) == before and types(store) == []
