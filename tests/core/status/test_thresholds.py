"""Marks: as given, computed from measurements, limited by the cap; and the text that explains each."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.core.model.marks import MarkSet
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.status import thresholds
from nats_backpressure.policy.schema import InflightRule, PendingRule, Policy
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, MarkLevel, Signal

DEFAULT = MarkSet(10, 100, 1000)


def reading(
    capacity: float | None = None, cap: int | None = None, inflight: int | None = 0, pending: int = 0
) -> Reading:
    return Reading(
        ConsumerKey("S", "c"), Now(0, 0), pending, inflight, latency=0.0, drain=None, capacity=capacity, cap=cap
    )


FOLLOWING = PendingRule(10, 100, 1000, overload_seconds=30, min=100, max=100_000)
FREE = PendingRule(10, 100, 1000, overload_seconds=30)
PENDING = [
    pytest.param(FOLLOWING, 80.0, MarkSet(10, 100, 2400), "30 s of work at 80.0 messages/s", id="follows the rate"),
    pytest.param(FOLLOWING, None, DEFAULT, None, id="as given until the rate is known"),
    pytest.param(
        PendingRule(10, 100, 1000, overload_seconds=30, min=10, max=700),
        None,
        MarkSet(10, 100, 700),
        "1000 until the rate is known, limited to max 700",
        id="not above max, known or not",
    ),
    pytest.param(
        FOLLOWING, 2.0, MarkSet(10, 100, 100), "30 s of work at 2.0 messages/s, raised to min 100", id="not below min"
    ),
    pytest.param(
        FOLLOWING,
        10_000.0,
        MarkSet(10, 100, 100_000),
        "30 s of work at 10000.0 messages/s, limited to max 100000",
        id="not above max",
    ),
    pytest.param(FREE, 1.0, MarkSet(10, 30, 30), "30 s of work at 1.0 messages/s", id="lower marks give way to it"),
    pytest.param(FREE, 0.01, MarkSet(0.3, 0.3, 0.3), "30 s of work at 0.010 messages/s", id="a trickle"),
    pytest.param(PendingRule(10, 100, 1000), 80.0, DEFAULT, None, id="a static mark follows nothing"),
]


@pytest.mark.parametrize(("rule", "capacity", "expected", "text"), PENDING)
def test_a_mark_of_pending_follows_the_rate_where_the_policy_says_so(
    rule: PendingRule, capacity: float | None, expected: MarkSet, text: str | None
) -> None:
    policy, measured = Policy(pending=rule), reading(capacity)
    assert thresholds.marks(policy, measured).pending == expected
    assert thresholds.derivations(policy, measured) == ((("pending", text),) if text else ())


GIVEN = InflightRule(50, 200, 500)
INFLIGHT = [
    pytest.param(GIVEN, None, MarkSet(50, 200, 500), None, id="as given without a cap"),
    pytest.param(GIVEN, 1000, MarkSet(50, 200, 500), None, id="as given below the cap"),
    pytest.param(GIVEN, 500, MarkSet(50, 200, 450), "0.9 x max_ack_pending 500", id="below a cap in its way"),
    pytest.param(GIVEN, 100, MarkSet(50, 90, 90), "0.9 x max_ack_pending 100", id="lower marks give way"),
    pytest.param(
        InflightRule(50, 200, 500, 0.5), 2000, MarkSet(50, 200, 1000), "0.5 x max_ack_pending 2000", id="a share"
    ),
    pytest.param(
        InflightRule(50, 200, 500, 1.0), 1000, MarkSet(50, 200, 900), "0.9 x max_ack_pending 1000", id="at most 0.9"
    ),
    pytest.param(InflightRule(50, 200, 500, 0.5), None, MarkSet(50, 200, 500), None, id="no share of no cap"),
]


@pytest.mark.parametrize(("rule", "cap", "expected", "text"), INFLIGHT)
def test_a_mark_in_flight_stays_below_the_cap(
    rule: InflightRule, cap: int | None, expected: MarkSet, text: str | None
) -> None:
    policy, measured = Policy(inflight=rule), reading(cap=cap)
    assert thresholds.marks(policy, measured).inflight == expected
    assert thresholds.derivations(policy, measured) == ((("inflight", text),) if text else ())


def test_without_acks_there_is_no_in_flight_signal() -> None:
    policy, measured = Policy(inflight=InflightRule(50, 200, 500, 0.5)), reading(cap=100, inflight=None)
    assert thresholds.marks(policy, measured).inflight is None
    assert thresholds.derivations(policy, measured) == ()


CAPACITIES = st.none() | st.floats(0, 1e12)
CAPS = st.none() | st.integers(1, 10**9)
BOUNDS = st.tuples(st.none() | st.floats(0.001, 1e6), st.none() | st.floats(1e6, 1e15))


@given(CAPACITIES, CAPS, BOUNDS, st.floats(0.001, 86_400), st.floats(0.001, 1), st.integers(0, 2**53))
def test_marks_are_in_order_and_no_value_divided_by_one_leaves_the_finite_numbers(
    capacity: float | None,
    cap: int | None,
    bounds: tuple[float | None, float | None],
    seconds: float,
    ratio: float,
    count: int,
) -> None:
    policy = Policy(pending=PendingRule(10, 100, 1000, seconds, *bounds), inflight=InflightRule(50, 200, 500, ratio))
    measured = reading(capacity, cap, inflight=count, pending=count)
    marks = thresholds.marks(policy, measured)
    for one in (marks.pending, marks.inflight):
        assert one is not None and 0 < one.warn <= one.critical <= one.overload
    assert math.isfinite(thresholds.pressure(measured, marks))
    assert cap is None or marks.inflight.overload <= 0.9 * cap
    if capacity is not None:
        low, high = bounds
        assert (low or 0) <= marks.pending.overload <= (high or 1e15)
    changed = marks.pending.overload != 1000 or (marks.inflight and marks.inflight.overload != 500)
    assert thresholds.derivations(policy, measured) or not changed


LEVELS = [
    pytest.param(1001, MarkLevel.OVERLOAD, id="above overload"),
    pytest.param(1000, MarkLevel.CRITICAL, id="at overload"),
    pytest.param(100, MarkLevel.WARN, id="at critical"),
    pytest.param(10, MarkLevel.NORMAL, id="at warn"),
    pytest.param(None, MarkLevel.NORMAL, id="unknown"),
]


@pytest.mark.parametrize(("value", "expected"), LEVELS)
def test_a_level_is_the_highest_mark_the_value_is_above(value: float | None, expected: MarkLevel) -> None:
    assert thresholds.level(value, DEFAULT) is expected


def test_drain_is_not_evaluated_while_a_handful_waits() -> None:
    policy = Policy(pending=PendingRule(10, 100, 1000, overload_seconds=1))
    reading = Reading(ConsumerKey("S", "c"), Now(0, 0), 60, 0, latency=0.0, drain=60.0, capacity=50.0)
    marks = thresholds.marks(policy, reading)
    assert marks.pending.critical == 50
    assert thresholds.value_of(reading, marks, Signal.DRAIN) == 60.0
    assert thresholds.value_of(reading, thresholds.marks(Policy(), reading), Signal.DRAIN) == 0
