"""What adaptive admission promises, checked in a simulation. `python -m benchmarks.adaptive` prints its numbers.

Waits are from publish to ack, backlogs in units of the target; a minute of 10x overload begins from half a load.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import pytest

from benchmarks.adaptive_simulation import CALM, HELD, OVERLOAD, ROUGH, Scenario, Simulation, to
from nats_backpressure.core.admission.adaptive import RISE, SHARE_STEP
from nats_backpressure.protocol.values import Status

pytestmark = pytest.mark.no_cover  # whole lives in memory: traced they take four times as long

QUICK = ("3x", "10x", "10x, 3 retries")
"""Those of `make test`."""
SETTLED = 15.0
"""Seconds after which nothing of the onset is left."""


@functools.lru_cache(maxsize=16)
def run(scenario: Scenario) -> Simulation:
    """Some tests look at the same one; no test changes it."""
    return Simulation(scenario).run()


@pytest.mark.parametrize("name", CALM)
def test_a_load_below_the_capacity_is_never_refused(name: str) -> None:
    simulation = run(CALM[name])
    assert {ratio for _, ratio in simulation.ratios} == {1.0}
    assert simulation.statuses == [(0.0, Status.INACTIVE)]


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in HELD])
def test_the_backlog_is_held(name: str) -> None:
    """Nothing is lost, the worker is never idle for want of admitted work, and who is admitted waits no longer than
    twice the target, the onset included."""
    simulation = run(HELD[name])
    assert simulation.whole()
    assert simulation.busy(OVERLOAD) >= 0.95
    assert simulation.wait(OVERLOAD) <= 2.0
    assert max(simulation.moves()) <= 1


@pytest.mark.parametrize("name", ROUGH)
def test_where_the_flood_is_faster_than_the_answer_the_worker_still_never_idles(name: str) -> None:
    simulation = run(ROUGH[name])
    assert simulation.whole()
    assert simulation.busy(OVERLOAD) >= 0.95
    assert max(simulation.moves()) <= 2


@pytest.mark.parametrize(
    "name", ["10x, read each 0.5 s", "10x, decisions arrive after a second", "10x, a target of 0.5 s"]
)
def test_once_the_onset_is_over_a_slow_loop_holds_the_target_too(name: str) -> None:
    assert run(ROUGH[name]).wait(OVERLOAD + 30) <= 1.8


def test_a_dead_worker_gets_no_more_than_two_targets_and_the_floor() -> None:
    simulation = run(ROUGH["10x, worker dead for 15 s"])
    assert simulation.highest(50) <= 2.5
    assert simulation.goodput(65) >= 0.95, "and has work when it is back"


def test_at_more_than_can_be_steered_gateways_are_held_at_the_floor() -> None:
    simulation = run(to(10, direct=0.3, seconds=60.0))
    assert simulation.ratios[-1][1] == simulation.s.floor


@pytest.mark.parametrize("name", ["10x, silence, 10x", "10x, down to 0.5x, 10x"])
def test_the_return_is_half_open(name: str) -> None:
    """In each second it opens by a quarter at most, and by the one step that was held back before."""
    ratios = [ratio for _, ratio in run(HELD[name]).ratios]
    assert all(b <= a + RISE + SHARE_STEP * b for a, b in zip(ratios, ratios[10:], strict=False))
    assert max(ratios[500:]) == 1.0


def test_nobody_else_is_refused_while_the_backlog_is_below_half_its_target() -> None:
    """Below half the ratio only ever grows, and within eight seconds everybody is admitted."""
    simulation = run(HELD["10x, down to 0.5x, 10x"])
    half = simulation.s.capacity * simulation.s.target / 2
    ratios = [ratio for _, ratio in simulation.ratios]
    steps = zip(simulation.backlogs[1:], itertools.pairwise(ratios), strict=True)
    assert all(after >= before for (_, backlog), (before, after) in steps if backlog <= half)
    calm = [ratio for at, ratio in simulation.ratios if 52.0 <= at < 80.0]
    assert set(calm) == {1.0}


def test_retry_after_grows_while_refused_callers_return_too_early() -> None:
    retry_afters = [after for at, after in run(HELD["10x, 3 retries"]).retry_afters if at > OVERLOAD + 2]
    assert retry_afters[0] <= 4
    assert max(retry_afters) == retry_afters[-1] == 30


@pytest.mark.parametrize("reports", [0.0, 1.0])
def test_twenty_gateways_hold_what_one_holds(reports: float) -> None:
    one, twenty = (run(to(10, gateways=n, reports=reports, seconds=60.0)) for n in (1, 20))
    assert twenty.wait(OVERLOAD + SETTLED) == pytest.approx(one.wait(OVERLOAD + SETTLED), rel=0.1)


def test_reports_show_who_asks_nobody_sooner() -> None:
    blind, reporting = (run(HELD[f"3x, 30 % without a gateway{more}"]) for more in ("", ", reports"))
    assert reporting.wait(OVERLOAD) < 0.8 * blind.wait(OVERLOAD)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
@pytest.mark.parametrize("name", HELD)
def test_it_is_no_luck(name: str, seed: int) -> None:
    simulation = Simulation(replace(HELD[name], seed=seed)).run()
    assert simulation.whole()
    assert simulation.busy(OVERLOAD) >= 0.95
    assert simulation.wait(OVERLOAD) <= 2.3
    assert max(simulation.moves()) <= 1


def test_two_runs_are_the_same() -> None:
    story = Scenario(gateways=3, reports=1.0, retries=2, service="exponential", seconds=30.0)
    assert Simulation(story).run().ratios == Simulation(story).run().ratios
