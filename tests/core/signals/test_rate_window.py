"""Rates over the last seconds, and capacity."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.core.signals.rate_window import CAPACITY_SPAN, Capacity, IntervalCounts, RateWindow


def test_flow_forgets_what_is_older_than_ten_seconds() -> None:
    flow = RateWindow()
    flow.add(0.0, IntervalCounts(time=1.0, acks=100))
    flow.add(9.0, IntervalCounts(time=1.0, acks=1))
    assert flow.total(9.0).acks == 101
    assert flow.total(10.6).acks == 1


def test_an_interval_longer_than_the_window_says_nothing() -> None:
    flow = RateWindow()
    flow.add(60.0, IntervalCounts(time=60.0, acks=1000))
    assert flow.total(60.0).time == 0


@given(st.lists(st.floats(0.01, 20.0), min_size=1, max_size=100), st.floats(0.1, 10_000.0))
def test_capacity_at_an_even_rate_is_that_rate_however_it_is_cut(intervals: list[float], rate: float) -> None:
    window = Capacity()
    for seconds in intervals:
        window.learn(seconds, rate * seconds)
    assert window.rate is None if sum(intervals) < 1.0 else window.rate in (None, pytest.approx(rate))


def test_capacity_is_unknown_until_a_second_of_work_and_an_ack() -> None:
    window = Capacity()
    window.learn(0.9, 90)
    assert window.rate is None
    window.learn(0.2, 20)
    assert window.rate == pytest.approx(100.0, rel=0.01)
    window = Capacity()
    window.learn(60.0, 0.0)
    assert window.rate is None


def test_capacity_follows_a_change_within_its_span() -> None:
    window = Capacity()
    for _ in range(3000):
        window.learn(0.1, 10)
    for _ in range(int(CAPACITY_SPAN * 10)):
        window.learn(0.1, 20)
    assert window.rate == pytest.approx(200 - 100 / math.e, rel=0.01)
