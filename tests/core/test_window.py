"""Rates over the last seconds, quantiles over the last minute."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.window import Flow, Quantiles, Tally


@given(st.lists(st.floats(1e-6, 3600.0), min_size=20, max_size=400), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_quantile_is_within_two_percent_of_the_exact_one(values: list[float], share: float) -> None:
    found = Quantiles()
    for value in values:
        found.add(0.0, value)
    exact = sorted(values)[math.floor(share * (len(values) - 1))]
    (got,) = found.at(0.0, share) or (math.nan,)
    assert got == pytest.approx(exact, rel=0.02)


def test_fewer_than_twenty_samples_count_as_none() -> None:
    found = Quantiles()
    for _ in range(19):
        found.add(0.0, 1.0)
    assert found.at(0.0, 0.95) is None
    found.add(0.0, 1.0)
    assert found.at(0.0, 0.95) is not None


def test_the_window_moves_with_time_not_with_samples() -> None:
    found = Quantiles()
    for _ in range(100):
        found.add(0.0, 5.0)
    assert found.at(59.0, 0.95) is not None
    assert found.at(70.0, 0.95) is None


def test_memory_is_bounded_whatever_comes() -> None:
    found = Quantiles()
    for n in range(200_000):
        found.add(n / 2000, (n % 9973) ** 3 * 1e-6)
    assert sum(len(counts) for _, counts in found._slots) < 6 * 1400


def test_flow_forgets_what_is_older_than_ten_seconds() -> None:
    flow = Flow()
    flow.add(0.0, Tally(time=1.0, acks=100))
    flow.add(9.0, Tally(time=1.0, acks=1))
    assert flow.total(9.0).acks == 101
    assert flow.total(10.6).acks == 1


def test_an_interval_longer_than_the_window_says_nothing() -> None:
    flow = Flow()
    flow.add(60.0, Tally(time=60.0, acks=1000))
    assert flow.total(60.0).time == 0
