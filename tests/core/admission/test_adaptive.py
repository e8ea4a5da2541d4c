"""The ratio, the priorities and Retry-After, one rule at a time; whole runs are in test_adaptive_simulation."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.core.admission.adaptive import (
    OPEN,
    POWERS,
    RISE,
    SHARE_STEP,
    SHEDDING_HOLD,
    STEP,
    Shedding,
    next_shedding,
    priority_share,
)
from nats_backpressure.core.admission.load_estimate import LONGEST_GAP
from nats_backpressure.core.admission.offered_load import OfferedLoad, with_report
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.policy.schema import AdmissionRule, Override, Policy
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey

KEY, OTHER = ConsumerKey("S", "c"), ConsumerKey("S", "d")
POLICY = Policy(admission=AdmissionRule("adaptive"))


def at(seconds: float) -> Now:
    return Now(1000.0 + seconds, 0.0)


class Consumer:
    """Readings of one consumer, which gets `rate` through each second and keeps nothing in flight."""

    def __init__(self, key: ConsumerKey = KEY, rate: float = 100.0, capacity: float | None = None) -> None:
        self.key, self.rate, self.capacity = key, rate, rate if capacity is None else capacity
        self.delivered = 0.0

    def reading(self, seconds: float, pending: int, lasted: float = 0.1, **more) -> Reading:
        self.delivered += self.rate * lasted
        given_ = round(self.delivered)
        return Reading(
            self.key, at(seconds), pending, 0, None, None, capacity=self.capacity, delivered_consumer=given_, **more
        )


class Loop:
    """The controller before one consumer at fixed steps."""

    def __init__(self, policy: Policy = POLICY, step: float = 0.1, was: Shedding = OPEN, **consumer) -> None:
        self.policy, self.step, self.was = policy, step, was
        self.consumer = Consumer(**consumer)
        self.seconds = 0.0

    def see(self, *backlogs: float, offered: OfferedLoad | None = None) -> list[Shedding]:
        """What is in force after each of these backlogs."""
        results = []
        for pending in backlogs:
            self.seconds = round(self.seconds + self.step, 6)
            reading = self.consumer.reading(self.seconds, round(pending), self.step)
            self.was = next_shedding(self.was, self.policy, [reading], offered, at(self.seconds))
            results.append(self.was)
        return results


def ramp(start: float, by: float, n: int) -> list[float]:
    return [start + by * i for i in range(n)]


def flooded(**more) -> Loop:
    """A loop that sheds: ten times what is got through arrived until the backlog was at its target of 200."""
    loop = Loop(**more)
    loop.see(*ramp(20, 90, 3))
    assert loop.was.ratio < 0.3
    return loop


def test_ten_times_too_much_is_answered_within_three_readings() -> None:
    ratios = [shedding.ratio for shedding in Loop().see(20, 110, 200)]
    assert ratios == [1.0, pytest.approx(0.18, abs=0.05), pytest.approx(0.12, abs=0.05)]


def test_nobody_is_refused_while_the_backlog_is_at_half_its_target() -> None:
    assert all(ratio == pytest.approx(1.0) for ratio in (f.ratio for f in Loop().see(*ramp(0, 50, 3))))
    assert Loop().see(0, 102)[-1].ratio < 1


def test_a_long_backlog_that_shrinks_by_itself_is_left_to_it_up_to_the_target() -> None:
    """Above half the target there is shedding only where more arrives than is allowed there."""
    assert Loop().see(*ramp(200, -5, 20))[-1].ratio == 1.0


def test_twice_the_target_admits_no_more_than_the_floor() -> None:
    policy = Policy(admission=AdmissionRule("adaptive", floor=0.05))
    assert Loop(policy).see(300, 390, 480)[-1].ratio == 0.05


def test_a_ratio_rises_at_most_a_quarter_per_second() -> None:
    loop = flooded()
    results = [loop.was, *loop.see(*[0] * 50)]
    for a, b in zip(results, results[10:], strict=False):
        assert b.ratio <= a.ratio + RISE + SHARE_STEP * b.ratio, "but for one step held back before"
    before = next(n for n, f in enumerate(results) if f.ratio == 1.0)
    assert (before + 1) * 0.1 >= (1 - results[0].ratio) / RISE


def test_an_old_reading_moves_nothing() -> None:
    loop = flooded()
    again = Reading(KEY, at(loop.seconds), 0, 0, None, None)
    assert next_shedding(loop.was, POLICY, [again], None, at(loop.seconds + 5)) is loop.was


def test_without_readings_nothing_moves() -> None:
    loop = flooded()
    assert next_shedding(loop.was, POLICY, [], None, at(60)) is loop.was


def test_after_a_silence_it_opens_no_further_than_one_step() -> None:
    loop = flooded()
    reading = loop.consumer.reading(loop.seconds + LONGEST_GAP + 50, 0)
    assert next_shedding(loop.was, POLICY, [reading], None, reading.at).ratio <= loop.was.ratio + RISE


def test_a_rate_never_seen_is_no_evidence() -> None:
    loop = Loop(rate=0.0, capacity=None)
    loop.consumer.capacity = None
    assert {shedding.ratio for shedding in loop.see(*ramp(0, 100, 20))} == {1.0}


def test_a_worker_that_never_acknowledged_in_five_seconds_gets_nothing_beyond_the_floor() -> None:
    loop = Loop(rate=0.0)
    loop.consumer.capacity = None
    assert loop.see(*ramp(10, 10, 60))[-1].ratio == POLICY.admission.floor


def test_another_incarnation_is_counted_from_the_start_and_the_ratio_stays() -> None:
    loop = flooded()
    loop.consumer.delivered = -10.0
    before = loop.was.ratio
    assert loop.see(5)[-1].ratio <= before + RISE


def test_of_several_consumers_the_smallest_ratio_decides_and_one_deleted_decides_nothing() -> None:
    fast, slow, was = Consumer(rate=1000.0), Consumer(OTHER, rate=10.0), OPEN
    for n in range(1, 6):
        readings = [fast.reading(n / 10, 0), slow.reading(n / 10, 9 * n)]
        was = next_shedding(was, POLICY, readings, None, at(n / 10))
    assert was.ratio < 0.5
    alone = [next_shedding(was, POLICY, [fast.reading(n / 10, 0)], None, at(n / 10)) for n in range(6, 8)]
    assert alone[0].ratio > was.ratio


def test_in_binary_mode_it_is_open() -> None:
    assert next_shedding(Shedding(0.3), Policy(), [Consumer().reading(0, 10_000)], None, at(0)) == OPEN


@pytest.mark.parametrize(("action", "ratio"), [("open", 0.2), ("reject", POLICY.admission.floor)])
def test_under_an_override_the_ratio_waits_and_returns_half_open(action: str, ratio: float) -> None:
    until = 500.0
    policy = Policy(admission=AdmissionRule("adaptive"), override=(Override(action, until),))
    loop = Loop(policy, was=Shedding(0.2))
    assert {shedding.ratio for shedding in loop.see(*[0] * 20)} == {ratio}
    reading = loop.consumer.reading(3.0, 0)
    assert next_shedding(loop.was, policy, [reading], None, Now(reading.at.mono, until)).ratio <= ratio + RISE


def test_a_dry_run_takes_what_arrives_for_what_is_offered() -> None:
    """Nobody refuses anybody, so dividing by the ratio would find ever more demand."""
    policy = Policy(mode="observe", admission=AdmissionRule("adaptive"))
    ratios = [shedding.ratio for shedding in Loop(policy).see(*[200] * 100)]
    assert min(ratios) >= 0.9


@pytest.mark.parametrize("stored", [0.0, 0.3, 1.0])
def test_what_another_replica_stored_is_taken_up(stored: float) -> None:
    results = Loop(was=Shedding(stored)).see(0)[-1]
    assert max(stored, POLICY.admission.floor) <= results.ratio <= min(1.0, stored + RISE * 0.1 + STEP)


def test_what_is_stored_comes_back_as_it_was() -> None:
    was = flooded().was
    assert msgspec.json.decode(msgspec.json.encode(was), type=Shedding) == was


def test_a_ratio_that_hardly_moves_is_not_written() -> None:
    loop = Loop()
    loop.see(20, 110, 200)
    shedding = [f.ratio for f in loop.see(*[200, 203, 198, 201, 199] * 20)]
    changes = [abs(b - a) for a, b in itertools.pairwise(shedding) if a != b]
    assert len(changes) < 15
    assert all(change >= STEP - 1e-9 for change in changes if 1.0 not in shedding)


def test_shedding_outlasts_the_last_refusal() -> None:
    loop = flooded()
    assert loop.was.shedding
    results = loop.see(*[0] * 300)
    admitted = next(n for n, f in enumerate(results) if f.ratio == 1.0)
    over = next(n for n, f in enumerate(results) if not f.shedding)
    assert (over - admitted + 1) * 0.1 == pytest.approx(SHEDDING_HOLD, abs=0.11)


# Reports


def reports(share: float, admitted: float, seconds: float) -> OfferedLoad:
    offered = None
    for n in range(5):
        offered = with_report(offered, round(admitted / share), round(admitted), 1.0, 1000.0 + seconds - 4 + n)
    assert offered is not None
    return offered


def test_a_measured_share_goes_before_the_one_decided() -> None:
    """The gateways admit a fifth where a tenth was decided: more was believed to be offered than was."""
    ratios, measured = (
        [Loop(was=Shedding(0.1)).see(*[200] * 30, offered=o)[-1].ratio] for o in (None, reports(0.2, 100, 3))
    )
    assert measured[0] == pytest.approx(2 * ratios[0], rel=0.5)


@pytest.mark.parametrize("share", [1e-6, 1.0])
def test_a_forged_share_moves_the_ratio_by_no_more_than_two(share: float) -> None:
    honest, forged = (
        Loop(was=Shedding(0.1)).see(*[200] * 3, offered=o)[-1].ratio for o in (None, reports(share, 1000, 1))
    )
    assert honest / 2.2 <= forged <= honest * 2.2


def test_where_others_send_most_gateways_are_steered_harder() -> None:
    few = reports(0.5, 20, 1.0)
    alone, together = (
        Loop(was=Shedding(0.5)).see(*[200 + 5 * n for n in range(8)], offered=o)[-1] for o in (None, few)
    )
    assert together.ratio < alone.ratio


# Priorities


@given(st.floats(0.001, 1), st.floats(0, 1))
def test_low_ones_are_shed_first_and_critical_ones_never(floor: float, above: float) -> None:
    ratio = floor + (1 - floor) * above
    low, normal, high, critical = (priority_share(ratio, p, floor) for p in ("low", "normal", "high", "critical"))
    assert floor <= low <= normal + 1e-9
    assert normal == pytest.approx(ratio)
    assert normal - 1e-9 <= high <= 1.0 == critical


@pytest.mark.parametrize("priority", POWERS)
def test_every_priority_meets_the_ratio_at_both_ends(priority: str) -> None:
    assert priority_share(1.0, priority, 0.01) == 1.0
    assert priority_share(0.01, priority, 0.01) == pytest.approx(0.01)


# Retry-After


def test_without_a_refusal_retry_after_is_not_raised() -> None:
    assert {shedding.retry_after for shedding in Loop().see(0, 0, 0)} == {0}


def test_retry_after_follows_the_drain() -> None:
    assert flooded().see(600, 650, 700)[-1].retry_after == pytest.approx(7, abs=1)


def steady(loop: Loop, seconds: float) -> list[int]:
    """Retry-After while ever as many come as before, the backlog at its target."""
    return [shedding.retry_after for shedding in loop.see(*[200] * round(seconds / loop.step))]


def test_retry_after_doubles_each_time_the_refused_come_back_too_early_up_to_its_bound() -> None:
    retry_afters = steady(Loop(was=Shedding(0.1, 2)), 80)
    assert sorted(set(retry_afters)) == [2, 4, 8, 16, 30]
    assert retry_afters == sorted(retry_afters)
    assert retry_afters.index(4) == 20, "not before the first could be back"


def test_retry_after_steps_down_when_it_is_quiet() -> None:
    loop = Loop(was=Shedding(0.1, 2))
    steady(loop, 80)
    loop.see(*[0] * 1000)
    assert loop.was.ratio == 1.0
    assert loop.see(20, 110, 200, 290)[-1].retry_after < 8


@given(
    backlogs=st.lists(st.integers(0, 10**9), min_size=1, max_size=40),
    rate=st.sampled_from([0.0, 0.3, 100.0, 1e6]),
    step=st.sampled_from([0.01, 0.1, 1.0, 5.0, 100.0]),
    floor=st.sampled_from([1e-9, 0.01, 1.0]),
    stored=st.floats(0, 1),
    reported=st.sampled_from(
        [None, OfferedLoad(1000.0, 1e12, 0.0), OfferedLoad(1000.0, 0.0, 0.0), OfferedLoad(1000.0, 5.0, 5.0)]
    ),
)
def test_whatever_is_read_the_answer_is_within_its_bounds(
    backlogs: list[int], rate: float, step: float, floor: float, stored: float, reported: OfferedLoad | None
) -> None:
    policy = Policy(admission=AdmissionRule("adaptive", floor=floor), retry_after_seconds=20)
    loop = Loop(policy, step, Shedding(stored), rate=rate)
    for shedding in loop.see(*backlogs, offered=reported):
        assert floor <= shedding.ratio <= 1
        assert (1 <= shedding.retry_after <= 20) if shedding.ratio < 1 else shedding.retry_after == 0
        assert shedding.shedding or shedding.ratio == 1


@pytest.mark.parametrize("priority", ["low", "normal", "high"])
@pytest.mark.parametrize("floor", [0.5, 1.0])
def test_a_ratio_below_the_floor_stays_as_it_was_decided(floor: float, priority: str) -> None:
    """A replica with another settings file decided it, or a stored one opens."""
    assert priority_share(0.02, priority, floor) == pytest.approx(0.02)
