"""Shedding a share of the requests: the sums are exact."""

from __future__ import annotations

from collections import Counter
from itertools import cycle, islice, pairwise, permutations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nats_backpressure.client.shedder import BAND, RANKS, Shedder

RATIOS = st.floats(0.001, 1) | st.sampled_from([0.0, 1.0, 0.1, 1 / 3])
PRIORITIES = st.sampled_from(["low", "normal", "high", "unknown"])


@given(st.lists(RATIOS, max_size=300), PRIORITIES)
def test_of_one_priority_the_admitted_stay_within_one_of_the_ratio(ratios: list[float], priority: str) -> None:
    shedder, behind = Shedder(), 0.0
    for ratio in ratios:
        behind += ratio - shedder.admit(ratio, priority)
        assert abs(behind) <= 1 + 1e-6


@given(st.lists(st.tuples(RATIOS, PRIORITIES, st.integers(1, 40)), max_size=60))
def test_in_any_mix_the_admitted_stay_near_the_ratio(offered: list[tuple[float, str, int]]) -> None:
    shedder, behind = Shedder(), 0.0
    for ratio, priority, times in offered:
        for _ in range(times):
            behind += ratio - shedder.admit(ratio, priority)
            assert abs(behind) <= BAND + 1e-6


@given(st.lists(st.sampled_from(list(RANKS)), min_size=1, max_size=8), st.floats(0.02, 1))
@example(["high", "high", "high", "normal", "low", "high", "high", "high"], 0.5)
@example(["low", "high", "normal", "high", "normal", "low", "low", "low"], 0.5)
def test_in_any_order_the_higher_priority_has_the_larger_share(pattern: list[str], ratio: float) -> None:
    shedder, n = Shedder(), 2000
    asked = list(islice(cycle(pattern), n))
    admitted = Counter(p for p in asked if shedder.admit(ratio, p))
    shares = [admitted[p] / asked.count(p) for p in RANKS if p in asked]
    rarest = min(Counter(asked).values())
    assert all(higher >= lower - 2 * BAND / rarest for higher, lower in pairwise(shares))


@pytest.mark.parametrize("order", list(permutations(RANKS)), ids=" ".join)
@pytest.mark.parametrize("ratio", [0.05, 0.2, 1 / 3, 0.5, 0.7, 0.9])
def test_a_mix_is_shed_from_the_lowest_priority_up(ratio: float, order: tuple[str, ...]) -> None:
    shedder, n = Shedder(), 3000
    admitted = Counter(p for p in islice(cycle(order), n) if shedder.admit(ratio, p))
    assert abs(admitted.total() - ratio * n) <= BAND + 1e-6
    ideal = {"high": min(1.0, 3 * ratio), "normal": min(1.0, max(0.0, 3 * ratio - 1)), "low": max(0.0, 3 * ratio - 2)}
    assert {p: admitted[p] / 1000 for p in RANKS} == pytest.approx(ideal, abs=0.02)


def test_admissions_are_spread_evenly() -> None:
    shedder = Shedder()
    admitted = [i for i in range(400) if shedder.admit(0.25)]
    assert {later - earlier for earlier, later in pairwise(admitted)} == {4}


def test_ratio_0_admits_nothing_and_ratio_1_everything() -> None:
    shedder = Shedder()
    shedder.credit = 0.9
    assert not any(shedder.admit(0.0, p) for p in RANKS)
    assert all(Shedder().admit(1.0, p) for p in RANKS)
