"""What a watched state means at a given age, and which of several states decides."""

from __future__ import annotations

import math

import msgspec
import pytest

from nats_backpressure.client.admission import (
    DEFAULT_RETRY_AFTER,
    OPEN,
    FreshnessLimits,
    local_decision,
    strictest,
)
from nats_backpressure.protocol.messages import State

LIMITS = FreshnessLimits(stale_after=10, unknown_after=30)
ACTIVE = State("s", "active", action="reject", admit_ratio=0.0, retry_after_seconds=30)
CALM = State("s", "inactive", action="continue")


def at(age: float, value: State = ACTIVE, left: float | None = None) -> tuple[str, float, str]:
    """Action, ratio and freshness `age` seconds after the last proof."""
    decision = local_decision(value, 100.0, LIMITS, left, 100.0 + age)
    return decision.action, decision.ratio, decision.freshness


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        pytest.param(0, ("reject", 0.0, "known"), id="just proved"),
        pytest.param(9.9, ("reject", 0.0, "known"), id="still known"),
        pytest.param(10, ("reject", 0.0, "stale"), id="stale: still held"),
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
    known = State("s", "warning", action="throttle", admit_ratio=0.5, retry_after_seconds=2)
    assert [at(age, known)[1] for age in (0, 9, 10, 11, 12, 13)] == [0.5, 0.5, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize(
    ("known", "stale", "unknown"),
    [
        (State("s", "active", action="reject", on_unknown="continue"), "continue", "continue"),
        (State("s", "active", action="reject", on_unknown="reject"), "reject", "reject"),
        (State("s", "warning", action="throttle", admit_ratio=0.5, on_unknown="reject"), "throttle", "reject"),
        (State("s", "inactive", action="continue", on_unknown="reject"), "continue", "reject"),
        (State("s", "inactive", action="continue", on_unknown="reject", mode="observe"), "continue", "continue"),
        (State("s", "inactive", action="continue"), "continue", "continue"),
        (State("s", "active", action="reject", on_unknown="of another version"), "throttle", "continue"),
    ],
    ids=["continue", "reject", "reject, of a share", "reject, of a continue", "reject in a dry run", "hold",
         "an unknown value holds"],
)  # fmt: skip
def test_on_unknown(known: State, stale: str, unknown: str) -> None:
    assert (at(11, known)[0], at(30, known)[0]) == (stale, unknown)


def test_a_rejection_of_the_unknown_has_a_retry_after_even_if_the_state_has_none() -> None:
    assert local_decision(
        State("s", "inactive", action="continue", on_unknown="reject"), 0, LIMITS, None, 40
    ).retry_after == (DEFAULT_RETRY_AFTER)


def test_what_the_sidecar_itself_lost_is_unknown_whatever_its_age() -> None:
    known = State("s", "unknown", action="reject", retry_after_seconds=30)
    assert [at(age, known) for age in (5, 14)] == [("reject", 0.0, "unknown"), ("continue", 1.0, "unknown")]


def test_once_the_last_replica_left_a_refusal_opens_at_once() -> None:
    assert [at(age, left=102.0) for age in (1, 2, 3, 6)] == [
        ("reject", 0.0, "known"), ("reject", 0.0, "stale"), ("throttle", 0.25, "stale"), ("continue", 1.0, "stale"),
    ]  # fmt: skip
    assert at(12, left=111.0)[1] == 0.5, "one that already opens does not start again"


def test_a_dry_run_continues_and_names_what_it_would_do() -> None:
    decision = local_decision(
        State("s", "active", action="continue", would="reject", mode="observe"), 0, LIMITS, None, 1
    )
    assert (decision.action, decision.ratio, decision.would) == ("continue", 1.0, "reject")


def test_a_decision_holds_until_its_next_change() -> None:
    untils = [local_decision(ACTIVE, 0, LIMITS, None, now).until for now in (0, 11, 14, 30)]
    assert untils == [10, 11.1, 30, math.inf]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ACTIVE, State("s", "active", action="throttle", admit_ratio=0.1)),
        (
            State("s", "warning", action="throttle", admit_ratio=0.1),
            State("s", "active", action="throttle", admit_ratio=0.9),
        ),
        (State("s", "warning", action="continue"), CALM),
        (
            State("s", "inactive", action="continue", pressure=0.9),
            State("s", "inactive", action="continue", pressure=0.1),
        ),
        (CALM, State("s", "inactive", action="continue", mode="observe")),
    ],
    ids=["action first", "the smaller share", "then status", "then pressure", "then who enforces"],
)
def test_the_worst_of_several_decides(one: State, other: State) -> None:
    decisions = [local_decision(known, 0, LIMITS, None, 0) for known in (other, one)]
    assert strictest(decisions) == decisions[1] == strictest(decisions[::-1])
    assert strictest([]) == OPEN
