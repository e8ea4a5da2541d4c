"""The limits for policies that do not come from the file."""

from __future__ import annotations

import pytest

from nats_backpressure.policy.guard import NO_GUARD, guard_allows, guard_violations
from nats_backpressure.policy.schema import Guard

BOUNDED = Guard(min_pending_overload=100, max_pending_overload=5000)


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        pytest.param({"pending.overload": 500}, [], id="within both limits"),
        pytest.param({"pending.overload": 99}, ["pending.overload"], id="too low"),
        pytest.param({"pending.overload": 5001}, ["pending.overload"], id="too high"),
        pytest.param({"pending.warn": 1, "inflight.overload": 1}, [], id="other marks are free"),
        pytest.param({"pending.overload_seconds": 5}, ["pending.min", "pending.max"], id="a mark without bounds"),
        pytest.param({"pending.overload_seconds": 5, "pending.min": 100, "pending.max": 5000}, [], id="a bounded mark"),
        pytest.param(
            {"pending.overload_seconds": 5, "pending.min": 10, "pending.max": 9000},
            ["pending.min", "pending.max"],
            id="a mark with bounds beyond the limits",
        ),
        pytest.param({"pending.overload_seconds": None}, [], id="a mark that follows nothing"),
    ],
)
def test_every_overload_mark_of_pending_is_held_to_the_limits(given: dict[str, object], fields: list[str]) -> None:
    assert [field for field, _ in guard_violations(given, BOUNDED)] == fields
    assert guard_allows(tuple(given.items()), BOUNDED) is (not fields)
    assert guard_allows(tuple(given.items()), NO_GUARD)


def test_the_rule_names_the_setting_and_the_value() -> None:
    assert list(guard_violations({"pending.overload": 99}, BOUNDED)) == [
        ("pending.overload", "must be at least 100 (policy_guard.min_pending_overload), is 99")
    ]
