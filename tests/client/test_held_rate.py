"""A share that was chosen for a larger load does not shed a smaller one, on given times and in simulated loops."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.adaptive_simulation import Scenario, Simulation
from nats_backpressure.client.cached_admission import WatchedState
from nats_backpressure.client.held_rate import LEAST_MARGIN, MARGIN_SECONDS
from nats_backpressure.client.shedder import RANKS
from nats_backpressure.protocol.messages import State

pytestmark = pytest.mark.no_cover  # whole lives in memory: traced they take four times as long

FALL = 40.0
TO_HALF = ((0.0, 0.5), (10.0, 10.0), (FALL, 0.5))


def watched() -> WatchedState:
    return WatchedState("s", State("s", "warning", action="throttle"))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("gateways", [1, 3, 20])
def test_where_the_load_falls_to_half_of_the_capacity_hardly_anybody_is_shed(gateways: int, seed: int) -> None:
    story = Scenario(TO_HALF, 60.0, gateways=gateways, watching=True, reports=1.0, seed=seed)
    simulation = Simulation(story).run()
    assert sum(at >= FALL for at in simulation.shed) <= 20
    assert simulation.busy(10.0) >= 0.95 and simulation.wait(10.0) <= 2.0, "and before it holds the target as before"


@given(
    requests=st.lists(st.tuples(st.floats(0.0001, 0.3), st.sampled_from(list(RANKS))), min_size=1, max_size=300),
    ratios=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=10),
    load=st.integers(20, 2000),
)
def test_it_admits_what_the_share_admits_and_never_more_per_second_than_the_share_came_to(
    requests: list[tuple[float, str]], ratios: list[float], load: int
) -> None:
    """After a load of `load` requests a second: whatever comes then, in bursts or not, and whatever share is chosen."""
    state, alone, ratio = watched(), watched(), ratios[0]
    for n in range(3 * load):
        state.admit(ratio, "normal", n / load)
        alone.shedder.admit(ratio)
    more, most = 0, max(ratios) * load * 1.01 + 1
    now = 3.0
    for n, (pause, priority) in enumerate(requests):
        now, ratio = now + pause, ratios[n * len(ratios) // len(requests)]
        shared, admitted = alone.shedder.admit(ratio, priority), state.admit(ratio, priority, now)
        assert admitted or not shared
        more += admitted and not shared
        assert more <= most * (now - 3.0) + 2 * max(LEAST_MARGIN, most * MARGIN_SECONDS) + 1


@pytest.mark.parametrize("rates", [{"high": 65, "low": 65}, {"high": 30, "normal": 50, "low": 150}, {"low": 130}])
def test_of_a_load_that_fell_the_high_ones_are_admitted_first_and_the_low_ones_get_the_rest(
    rates: dict[str, int],
) -> None:
    """A share of 0.1 was right for ten times as many, 100 a second. Counted is from half a second after the fall on."""
    dice, state, now = random.Random(1), watched(), 0.0
    offered, admitted = Counter[str](), Counter[str]()
    for rate, until, from_ in ((1000, 10.0, math.inf), (sum(rates.values()), 14.0, 10.5)):
        while now < until:
            now += dice.expovariate(rate)
            priority = dice.choices(list(rates), list(rates.values()))[0]
            passes = state.admit(0.1, priority, now)
            if now >= from_:
                offered[priority] += 1
                admitted[priority] += passes
    room = sum(admitted.values())
    assert room >= 0.8 * 3.5 * 100
    for priority in rates:  # the highest first
        wanted = min(offered[priority], room)
        assert admitted[priority] == pytest.approx(wanted, abs=0.15 * offered[priority] + 5), priority
        room -= wanted


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.8])
@pytest.mark.parametrize("rate", [50, 1000])
def test_a_steady_load_by_chance_gets_little_more_than_the_share(rate: int, ratio: float) -> None:
    dice, state, now, admitted = random.Random(1), watched(), 0.0, 0
    for _ in range(60 * rate):
        now += dice.expovariate(rate)
        admitted += state.admit(ratio, "normal", now)
    assert admitted / (60 * rate) == pytest.approx(ratio, rel=0.15)


def test_at_0_nothing_is_admitted() -> None:
    state = watched()
    assert not any([state.admit(0.5, "normal", n / 100) for n in range(300)][:0])
    assert not any(state.admit(0.0, "normal", 3 + n / 100) for n in range(300))
