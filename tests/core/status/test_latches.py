"""The cases of the product's status machine, on given readings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.core.model.member import Latch, Latches
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.status import latches, thresholds
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Diagnosis, Signal, Status

KEY = ConsumerKey("S", "c")
POLICY = Policy()


def reading(
    pending: int = 0, latency: float | None = 0.0, inflight: int | None = 0, at: float = 0.0, **more
) -> Reading:
    fields = {"drain": None, "latency_evidence": True} | more
    return Reading(key=KEY, at=Now(at, at), pending=pending, inflight=inflight, latency=latency, **fields)


def evaluated(was: Latches, reading: Reading, policy: Policy = POLICY) -> Latches:
    return latches.next_latches(was, reading, thresholds.marks(policy, reading), policy)


CASES = [
    pytest.param(reading(1500, 0, 0), Status.WARNING, id="a queue alone is a warning"),
    pytest.param(reading(50, 6000, 0), Status.WARNING, id="latency alone is a warning"),
    pytest.param(reading(50, 100, 600), Status.WARNING, id="in flight alone is a warning"),
    pytest.param(reading(1500, 6000, 600), Status.ACTIVE, id="all three are active"),
    pytest.param(reading(1500, 6000, 0), Status.ACTIVE, id="two are active"),
    pytest.param(reading(1500, 100, 10), Status.WARNING, id="a queue with a healthy worker is a warning"),
    pytest.param(reading(0, 50, 2), Status.INACTIVE, id="quiet is inactive"),
    pytest.param(reading(1000, 0, 0), Status.INACTIVE, id="exactly at the mark is not above it"),
    pytest.param(reading(10_001, 0, 0), Status.ACTIVE, id="ten times over is active alone"),
    pytest.param(reading(10_000, 0, 0), Status.WARNING, id="exactly ten times is not over"),
    pytest.param(reading(1500, 0, 0, drain=15.0), Status.ACTIVE, id="a queue that takes 15 s to drain is active"),
    pytest.param(reading(90, 0, 0, drain=90.0), Status.INACTIVE, id="a handful is no queue however slow"),
    pytest.param(reading(101, 0, 0, drain=51.0), Status.ACTIVE, id="drain alone, ten times over"),
]


@pytest.mark.parametrize(("reading", "expected"), CASES)
def test_a_reading_is_evaluated_as_the_product_page_states(reading: Reading, expected: Status) -> None:
    assert latches.status(evaluated(Latches(), reading), POLICY) is expected


def fallen(after: float, middle: Reading | None = None) -> Latches:
    """Active at 0 s, calm at 1 s and again `after` that."""
    current = evaluated(Latches(), reading(1500, 6000, 600))
    current = evaluated(current, reading(50, 200, 0, at=1.0))
    if middle is not None:
        current = evaluated(current, middle)
    return evaluated(current, reading(50, 200, 0, at=1.0 + after))


def test_calm_held_long_enough_recovers() -> None:
    assert latches.status(fallen(1.0), POLICY) is Status.INACTIVE


def test_calm_not_held_long_enough_stays() -> None:
    assert latches.status(fallen(0.99), POLICY) is Status.ACTIVE


def test_one_sample_above_the_release_mark_restarts_the_hold() -> None:
    assert fallen(1.0, reading(501, 200, 0, at=1.5)).pending.on


@pytest.mark.parametrize(
    ("value", "on"),
    [
        pytest.param(1001, True, id="above the mark sets"),
        pytest.param(1000, False, id="at the mark does not set"),
        pytest.param(None, False, id="unknown does not set"),
    ],
)
def test_a_latch_sets_above_its_mark_only(value: float | None, on: bool) -> None:
    assert latches.latch(Latch(), value, 1000, POLICY, 0.0).on is on


@pytest.mark.parametrize(
    ("value", "on"),
    [
        pytest.param(500, False, id="at the release mark releases"),
        pytest.param(501, True, id="above the release mark holds"),
        pytest.param(None, True, id="unknown changes nothing"),
    ],
)
def test_a_latch_releases_at_or_below_its_release_mark_only(value: float | None, on: bool) -> None:
    instant = replace(POLICY, recovery_hold_seconds=0.0)
    assert latches.latch(Latch(on=True), value, 1000, instant, 0.0).on is on


def test_latency_releases_only_on_evidence() -> None:
    instant = replace(POLICY, recovery_hold_seconds=0.0)
    latched = Latches(latency_p95=Latch(on=True))
    assert evaluated(latched, reading(0, 10.0, 1, latency_evidence=False), instant).latency_p95.on
    assert not evaluated(latched, reading(0, 10.0, 1), instant).latency_p95.on


def test_a_fall_by_loss_releases_nothing_and_starts_no_hold() -> None:
    latched = Latches(pending=Latch(on=True, calm_since=0.0), pending_alone=Latch(on=True))
    after = evaluated(latched, reading(0, 0, 0, at=5.0, losing=True))
    assert after.pending == after.pending_alone == Latch(on=True)


def test_in_flight_is_evaluated_below_the_cap_of_the_consumer() -> None:
    assert evaluated(Latches(), reading(0, 0, 91, cap=100)).inflight.on
    assert not evaluated(Latches(), reading(0, 0, 90, cap=100)).inflight.on


def test_a_small_cap_is_no_pressure_while_acks_move() -> None:
    assert not evaluated(Latches(), reading(0, 0, 1, cap=1, stall=4_999.0)).inflight.on
    assert evaluated(Latches(), reading(0, 0, 1, cap=1, stall=5_000.0)).inflight.on


def test_without_acks_there_is_no_in_flight_signal() -> None:
    measured = reading(0, 0, None)
    assert thresholds.marks(POLICY, measured).inflight is None
    assert not evaluated(Latches(), measured).inflight.on


def test_a_paused_consumer_is_calm_where_the_policy_ignores_it() -> None:
    paused = reading(1500, 6000, 600, paused=True)
    assert latches.status(evaluated(Latches(), paused, replace(POLICY, on_paused="ignore")), POLICY) is Status.INACTIVE
    assert latches.status(evaluated(Latches(), paused), POLICY) is Status.ACTIVE


def test_reasons_come_in_one_order() -> None:
    assert evaluated(Latches(), reading(1500, 6000, 600, drain=9.0)).signals == tuple(Signal)


def test_pressure_is_the_largest_share_of_a_mark() -> None:
    measured = reading(1500, 2500, 600)
    assert thresholds.pressure(measured, thresholds.marks(POLICY, measured)) == 1.5


counts = st.integers(0, 30_000)
readings = st.builds(
    reading,
    pending=counts,
    latency=st.none() | st.floats(0, 60_000),
    inflight=counts,
    drain=st.none() | st.floats(0, 600),
    latency_evidence=st.booleans(),
    losing=st.booleans(),
)


@given(st.lists(readings, max_size=20), readings)
def test_an_equal_sample_sets_nothing(before: list[Reading], reading: Reading) -> None:
    current = Latches()
    for one in before:
        current = evaluated(current, one)
    once = evaluated(current, reading)
    assert evaluated(once, reading).names == once.names or set(evaluated(once, reading).names) < set(once.names)


@given(st.lists(readings, max_size=30))
def test_a_signal_above_its_mark_is_always_latched(history: list[Reading]) -> None:
    current = Latches()
    for at, one in enumerate(history):
        current = evaluated(current, replace(one, at=Now(float(at), 0.0)))
        assert current.pending.on or one.pending <= 1000
        assert current.inflight.on or (one.inflight or 0) <= 500


def test_a_diagnosis_counts_no_longer_than_the_backlog_it_stood_beside() -> None:
    was = Latches(pending=Latch(on=True, calm_since=0.0), diagnosed=Latch(on=True))
    after = evaluated(was, reading(0, 0, 0, at=5.0))
    assert not after.pending.on and not after.diagnosed.on


def test_a_diagnosis_of_an_ignored_consumer_counts_no_more() -> None:
    policy = Policy(on_paused="ignore", recovery_hold_seconds=5.0)
    stuck = reading(1500, diagnosis=Diagnosis.NOBODY_PULLING, diagnosed_for=60.0)
    on = evaluated(Latches(), stuck, policy)
    assert latches.status(on, policy) is Status.ACTIVE
    ignored = evaluated(on, replace(stuck, at=Now(1.0, 1.0), paused=True), policy)
    assert ignored.pending.on
    assert ignored.diagnosed.calm_since == 1.0
