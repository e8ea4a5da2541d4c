"""Quantiles over the last minute."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.core.signals.quantiles import Quantiles


@given(st.lists(st.floats(1e-6, 3600.0), min_size=20, max_size=400), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_quantile_is_within_two_percent_of_the_exact_one(values: list[float], share: float) -> None:
    window = Quantiles()
    for value in values:
        window.add(0.0, value)
    exact = sorted(values)[math.floor(share * (len(values) - 1))]
    (got,) = window.at(0.0, share) or (math.nan,)
    assert got == pytest.approx(exact, rel=0.02)


def chosen(dice: random.Random) -> float:
    """Fast or hung: nothing in between, where an interpolated quantile would land."""
    return dice.choice([0.002, 0.002, 0.002, 30.0])


DISTRIBUTIONS: dict[str, Callable[[random.Random], float]] = {
    "uniform": lambda dice: dice.uniform(0.001, 2.0),
    "exponential": lambda dice: dice.expovariate(10.0),
    "lognormal": lambda dice: dice.lognormvariate(-3.0, 2.0),
    "pareto": lambda dice: 0.001 * dice.paretovariate(1.1),
    "two peaks": chosen,
    "constant": lambda dice: 0.025,
    "microseconds": lambda dice: dice.uniform(1e-6, 2e-6),
    "days": lambda dice: dice.uniform(1e5, 6e5),
}


@pytest.mark.parametrize("draw", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS.keys())
@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
@pytest.mark.no_cover  # traced, it takes four times as long
def test_ten_thousand_samples_of_any_kind_are_within_two_percent(
    draw: Callable[[random.Random], float], share: float
) -> None:
    dice, window = random.Random(7), Quantiles()
    values = [draw(dice) for _ in range(10_000)]
    for n, value in enumerate(values):
        window.add(n * 0.005, value)
    (got,) = window.at(49.0, share) or (math.nan,)
    assert got == pytest.approx(sorted(values)[math.floor(share * 9_999)], rel=0.02)


@given(
    st.lists(st.tuples(st.floats(0, 25.0), st.floats(1e-6, 3600.0), st.integers(1, 40)), min_size=1, max_size=40),
    st.floats(0, 90.0),
)
def test_the_window_holds_what_is_younger_than_a_minute_but_for_a_slot(
    steps: list[tuple[float, float, int]], silence: float
) -> None:
    """After any pauses, also those without a question, the answer is that of a new window."""
    window, at, added = Quantiles(), 0.0, []
    for after, seconds, times in steps:
        at += after
        for _ in range(times):
            window.add(at, seconds)
            added.append((at, seconds))
    at += silence
    fresh = Quantiles()
    for then, seconds in added:
        if int(then / 10) > int(at / 10) - 6:
            fresh.add(then, seconds)
    assert window.at(at, 0.5, 0.95, 0.99) == fresh.at(at, 0.5, 0.95, 0.99)
    assert sum(window._merged.counts) == window._merged.total == sum(slot.total for _, slot in window._slots)


def test_fewer_than_twenty_samples_count_as_none() -> None:
    window = Quantiles()
    for _ in range(19):
        window.add(0.0, 1.0)
    assert window.at(0.0, 0.95) is None
    window.add(0.0, 1.0)
    assert window.at(0.0, 0.95) is not None


def test_the_window_moves_with_time_not_with_samples() -> None:
    window = Quantiles()
    for _ in range(100):
        window.add(0.0, 5.0)
    assert window.at(59.0, 0.95) is not None
    assert window.at(70.0, 0.95) is None


@pytest.mark.no_cover  # traced, it takes four times as long
def test_memory_is_bounded_at_ten_thousand_samples_a_second() -> None:
    window = Quantiles()
    for n in range(700_000):
        window.add(n / 10_000, (n % 9973) ** 3 * 1e-6)
    assert len(window._slots) <= 6
    assert len(window._merged.counts) < 1400 and all(len(slot.counts) < 1400 for _, slot in window._slots)


def test_memory_is_bounded_although_nobody_asks() -> None:
    window = Quantiles()
    for n in range(1000):
        window.add(n * 10.0, 0.001 * n)
    assert len(window._slots) <= 6 and window._merged.total <= 6 and len(window._merged.counts) < 1400


@pytest.mark.parametrize(("values", "times"), [(300, 1), (1000, 1), (70_000, 1), (10, 40), (10, 300), (10, 70_000)])
def test_a_bucket_counts_beyond_what_its_first_array_holds(values: int, times: int) -> None:
    window = Quantiles()
    for n in range(values):
        window.add(0.0, 0.01 if n % 10 else 1.0, times)
    assert window.at(0.0, 0.5, 0.95) == (pytest.approx(0.01, rel=0.01), pytest.approx(1.0, rel=0.01))
    assert window._merged.total == sum(window._merged.counts) == values * times
