"""What a known state means now, held to the contract's sentences; and the shedding of a share, held to its sums."""

from __future__ import annotations

import math
from collections import Counter
from itertools import cycle, islice, pairwise, permutations

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nats_backpressure.client.admission import (
    BAND,
    FALLBACK_RETRY_AFTER,
    OPEN,
    RANKS,
    Limits,
    Shedder,
    local_decision,
    worst,
)
from nats_backpressure.client.values import StateValue

LIMITS = Limits(stale_after=10, unknown_after=30)
ACTIVE = StateValue("s", "active", "reject", admit_ratio=0.0, retry_after_seconds=30)
CALM = StateValue("s", "inactive", "continue")


def at(age: float, known: StateValue = ACTIVE, left: float | None = None) -> tuple[str, float, str]:
    """Action, ratio and freshness so many seconds after the last proof."""
    found = local_decision(known, 100.0, LIMITS, left, 100.0 + age)
    return found.action, found.ratio, found.freshness


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        pytest.param(0, ("reject", 0.0, "known"), id="just proved"),
        pytest.param(9.9, ("reject", 0.0, "known"), id="still known"),
        pytest.param(10, ("reject", 0.0, "stale"), id="stale: held to the last"),
        pytest.param(11, ("throttle", 0.25, "stale"), id="opens by a quarter a second"),
        pytest.param(13, ("throttle", 0.75, "stale"), id="three quarters open"),
        pytest.param(14, ("continue", 1.0, "stale"), id="open"),
        pytest.param(30, ("continue", 1.0, "unknown"), id="unknown, and open"),
        pytest.param(100_000, ("continue", 1.0, "unknown"), id="open for good"),
    ],
)
def test_a_refusal_ages_to_stale_to_open(age: float, expected: tuple[str, float, str]) -> None:
    assert at(age) == expected


def test_a_longer_hold_is_held_through_stale_and_unknown() -> None:
    held = msgspec.structs.replace(ACTIVE, hold_seconds=40)
    assert [at(age, held)[:2] for age in (30, 40, 42, 44)] == [
        ("reject", 0.0), ("reject", 0.0), ("throttle", 0.5), ("continue", 1.0),
    ]  # fmt: skip


def test_a_throttle_opens_from_its_own_ratio() -> None:
    known = StateValue("s", "warning", "throttle", admit_ratio=0.5, retry_after_seconds=2)
    assert [at(age, known)[1] for age in (0, 9, 10, 11, 12, 13)] == [0.5, 0.5, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize(
    ("known", "stale", "unknown"),
    [
        (StateValue("s", "active", "reject", on_unknown="continue"), "continue", "continue"),
        (StateValue("s", "active", "reject", on_unknown="reject"), "reject", "reject"),
        (StateValue("s", "warning", "throttle", admit_ratio=0.5, on_unknown="reject"), "throttle", "reject"),
        (StateValue("s", "inactive", "continue", on_unknown="reject"), "continue", "reject"),
        (StateValue("s", "inactive", "continue", on_unknown="reject", mode="observe"), "continue", "continue"),
        (StateValue("s", "inactive", "continue"), "continue", "continue"),
        (StateValue("s", "active", "reject", on_unknown="of another version"), "throttle", "continue"),
    ],
    ids=["continue", "reject", "reject, of a share", "reject, of a continue", "reject in a dry run", "hold",
         "what is not understood holds"],
)  # fmt: skip
def test_on_unknown(known: StateValue, stale: str, unknown: str) -> None:
    assert (at(11, known)[0], at(30, known)[0]) == (stale, unknown)


def test_a_rejection_of_the_unknown_names_a_time_even_if_the_last_answer_named_none() -> None:
    assert local_decision(
        StateValue("s", "inactive", "continue", on_unknown="reject"), 0, LIMITS, None, 40
    ).retry_after == (FALLBACK_RETRY_AFTER)


def test_what_the_sidecar_itself_lost_is_unknown_whatever_its_age() -> None:
    known = StateValue("s", "unknown", "reject", retry_after_seconds=30)
    assert [at(age, known) for age in (5, 14)] == [("reject", 0.0, "unknown"), ("continue", 1.0, "unknown")]


def test_once_the_last_replica_left_a_refusal_opens_at_once() -> None:
    assert [at(age, left=102.0) for age in (1, 2, 3, 6)] == [
        ("reject", 0.0, "known"), ("reject", 0.0, "stale"), ("throttle", 0.25, "stale"), ("continue", 1.0, "stale"),
    ]  # fmt: skip
    assert at(12, left=111.0)[1] == 0.5, "one that opens already does not begin again"


def test_a_dry_run_continues_and_says_what_it_would() -> None:
    found = local_decision(StateValue("s", "active", "continue", would="reject", mode="observe"), 0, LIMITS, None, 1)
    assert (found.action, found.ratio, found.would) == ("continue", 1.0, "reject")


def test_a_ruling_says_when_to_look_again() -> None:
    untils = [local_decision(ACTIVE, 0, LIMITS, None, now).until for now in (0, 11, 14, 30)]
    assert untils == [10, 11.1, 30, math.inf]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ACTIVE, StateValue("s", "active", "throttle", admit_ratio=0.1)),
        (
            StateValue("s", "warning", "throttle", admit_ratio=0.1),
            StateValue("s", "active", "throttle", admit_ratio=0.9),
        ),
        (StateValue("s", "warning", "continue"), CALM),
        (StateValue("s", "inactive", "continue", pressure=0.9), StateValue("s", "inactive", "continue", pressure=0.1)),
        (CALM, StateValue("s", "inactive", "continue", mode="observe")),
    ],
    ids=["action first", "the smaller share", "then status", "then pressure", "then who enforces"],
)
def test_the_worst_of_several_decides(one: StateValue, other: StateValue) -> None:
    rulings = [local_decision(known, 0, LIMITS, None, 0) for known in (other, one)]
    assert worst(rulings) == rulings[1] == worst(rulings[::-1])
    assert worst([]) == OPEN


RATIOS = st.floats(0.001, 1) | st.sampled_from([0.0, 1.0, 0.1, 1 / 3])
PRIORITIES = st.sampled_from(["low", "normal", "high", "of another world"])


@given(st.lists(RATIOS, max_size=300), PRIORITIES)
def test_of_one_priority_the_admitted_stay_within_one_of_the_ratio(ratios: list[float], priority: str) -> None:
    shedder, behind = Shedder(), 0.0
    for ratio in ratios:
        behind += ratio - shedder.admit(ratio, priority)
        assert abs(behind) <= 1 + 1e-6


@given(st.lists(st.tuples(RATIOS, PRIORITIES, st.integers(1, 40)), max_size=60))
def test_whatever_comes_the_admitted_stay_near_the_ratio(asked: list[tuple[float, str, int]]) -> None:
    shedder, behind = Shedder(), 0.0
    for ratio, priority, times in asked:
        for _ in range(times):
            behind += ratio - shedder.admit(ratio, priority)
            assert abs(behind) <= BAND + 1e-6


@given(st.lists(st.sampled_from(list(RANKS)), min_size=1, max_size=8), st.floats(0.02, 1))
@example(["high", "high", "high", "normal", "low", "high", "high", "high"], 0.5)
@example(["low", "high", "normal", "high", "normal", "low", "low", "low"], 0.5)
def test_however_a_mix_comes_the_higher_priority_has_the_larger_share(pattern: list[str], ratio: float) -> None:
    shedder, n = Shedder(), 2000
    asked = list(islice(cycle(pattern), n))
    admitted = Counter(p for p in asked if shedder.admit(ratio, p))
    shares = [admitted[p] / asked.count(p) for p in RANKS if p in asked]
    rarest = min(Counter(asked).values())
    assert all(higher >= lower - 2 * BAND / rarest for higher, lower in pairwise(shares))


@pytest.mark.parametrize("order", list(permutations(RANKS)), ids=" ".join)
@pytest.mark.parametrize("ratio", [0.05, 0.2, 1 / 3, 0.5, 0.7, 0.9])
def test_a_mix_is_shed_from_below(ratio: float, order: tuple[str, ...]) -> None:
    shedder, n = Shedder(), 3000
    admitted = Counter(p for p in islice(cycle(order), n) if shedder.admit(ratio, p))
    assert abs(admitted.total() - ratio * n) <= BAND + 1e-6
    ideal = {"high": min(1.0, 3 * ratio), "normal": min(1.0, max(0.0, 3 * ratio - 1)), "low": max(0.0, 3 * ratio - 2)}
    assert {p: admitted[p] / 1000 for p in RANKS} == pytest.approx(ideal, abs=0.02)


def test_admissions_are_spread_evenly() -> None:
    shedder = Shedder()
    admitted = [i for i in range(400) if shedder.admit(0.25)]
    assert {later - earlier for earlier, later in pairwise(admitted)} == {4}


def test_a_ratio_of_nothing_lets_nobody_in_and_one_of_everything_everybody() -> None:
    shedder = Shedder()
    shedder.credit = 0.9
    assert not any(shedder.admit(0.0, p) for p in RANKS)
    assert all(Shedder().admit(1.0, p) for p in RANKS)
