"""The limits for policies that do not come from the file."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.guard import (
    NO_GUARD,
    NUMBERS,
    POLICY_FIELDS,
    check_guard,
    guard_allows,
    guard_violations,
)
from nats_backpressure.policy.parse import flat_fields, parse_entry, policy_document
from nats_backpressure.policy.schema import FieldLimit, Guard, Override, Policy
from nats_backpressure.policy.snapshot import PolicySnapshot, PolicyValue
from nats_backpressure.policy.validation import Problems
from nats_backpressure.protocol.timestamps import format_rfc3339
from nats_backpressure.protocol.values import ConsumerKey

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


NOW = 1_767_225_600.0
KEY = ConsumerKey("S", "c")
BESIDE = {"pending.min": {"pending.overload_seconds": 5}, "pending.max": {"pending.overload_seconds": 5}}
"""What a field needs beside it to be valid."""


def refused_by(guard: Guard, document: dict[str, Any]) -> list[str]:
    """The paths of what is wrong with a policy in the bucket."""
    active = ActivePolicies((), guard, trust_metadata=True)
    refusals = active.set_bucket(PolicySnapshot("b", {"a": PolicyValue(msgspec.json.encode(document), 1, NOW)}))
    return [path for refusal in refusals for path, _ in refusal.rejection.errors]


def valid(field: str) -> tuple[dict[str, Any], Any]:
    """A policy that sets this field, and the value that it sets."""
    value: Any = POLICY_FIELDS[field]
    value = 0.5 if field == "inflight.overload_ratio" else 40 if value is None else value
    document: dict[str, Any] = {}
    for name, item in ({field: value} | BESIDE.get(field, {})).items():
        head, _, leaf = name.partition(".")
        if leaf:
            document.setdefault(head, {})[leaf] = item
        else:
            document[head] = item
    return document, value


def test_every_field_of_a_policy_can_be_limited_or_fixed() -> None:
    fields = dict(flat_fields(policy_document(Policy())))
    fields.pop("override")
    assert set(POLICY_FIELDS) == set(fields)
    for field in NUMBERS:
        entry, problems = parse_entry(valid(field)[0] | {"subjects": ["a"]})
        assert entry is not None and not problems, (field, problems)
    words = set(POLICY_FIELDS) - set(NUMBERS)
    assert {type(POLICY_FIELDS[field]) for field in words} == {str, bool, tuple}, "numbers can be limited"


@pytest.mark.parametrize("field", NUMBERS)
def test_a_number_beyond_its_limit_is_refused_wherever_it_comes_from(field: str) -> None:
    document, value = valid(field)
    for limit in (FieldLimit(field, min=value + 1), FieldLimit(field, max=value / 2)):
        guard = Guard(limits=(limit,))
        assert refused_by(guard, document) == [field]
        active = ActivePolicies((), guard, trust_metadata=True)
        metadata = {f"backpressure.{name}": str(item) for name, item in BESIDE.get(field, {}).items()}
        changed, refused = active.set_metadata(KEY, (*metadata.items(), (f"backpressure.{field}", str(value))), ("a",))
        assert not changed and refused is not None and refused.rejection.errors[0][0] == f"backpressure.{field}"
    within = (FieldLimit(field, min=value, max=value), FieldLimit("inflight.overload_ratio", max=1))
    assert refused_by(Guard(limits=within), document) == []


@pytest.mark.parametrize("field", POLICY_FIELDS)
def test_a_field_or_group_that_is_fixed_is_set_by_nobody_else(field: str) -> None:
    for fixed in {field, field.partition(".")[0]}:
        assert field in refused_by(Guard(fixed=(fixed,)), valid(field)[0])
    assert refused_by(Guard(fixed=("mode" if field != "mode" else "alerts",)), valid(field)[0]) == []


def test_what_would_replace_a_limited_mark_is_refused() -> None:
    ratio, null = {"inflight": {"overload_ratio": 0.9}}, {"pending": {"overload_seconds": None}}
    seconds = {"pending": {"overload_seconds": 5}}
    assert refused_by(Guard(limits=(FieldLimit("inflight.overload", max=10),)), ratio) == ["inflight.overload_ratio"]
    assert refused_by(Guard(limits=(FieldLimit("pending.overload", max=10),)), seconds) == ["pending.max"]
    limited = Guard(limits=(FieldLimit("pending.overload_seconds", max=10),))
    assert refused_by(limited, null) == ["pending.overload_seconds"]


def override(guard: Guard, action: str, seconds: float) -> tuple[tuple[Override, ...], list[tuple[str, str]]]:
    """The override in force under this guard, and what is wrong with it."""
    active = ActivePolicies((), NO_GUARD, trust_metadata=False)
    value = msgspec.json.encode({"action": action, "until": format_rfc3339(NOW + seconds)})
    active.set_bucket(PolicySnapshot("b", {"=override.a": PolicyValue(value, 1, NOW)}))
    errors = [error for refusal in active.set_file((), guard) for error in refusal.rejection.errors]
    return active.effective("a").policy.override, errors


def test_the_guard_limits_what_an_override_does_and_for_how_long() -> None:
    assert override(NO_GUARD, "reject", 7 * 86_400)[1] == []
    in_force, errors = override(Guard(override_actions=("open",)), "reject", 600)
    assert not in_force and errors == [
        ("action", "must not be reject: policy_guard.override_actions allows open"),
    ]
    assert "allows none" in override(Guard(override_actions=()), "open", 1)[1][0][1]


@pytest.mark.parametrize(
    ("limit", "longest"), [(60, 66), (600, 660), (3600, 3960), (86_400, 90_000), (600_000, 603_600)]
)
def test_an_override_may_be_a_tenth_too_long_and_never_more_than_an_hour(limit: int, longest: int) -> None:
    guard = Guard(max_override_seconds=limit)
    assert override(guard, "open", longest)[0], "the writer's clock may be ahead"
    in_force, errors = override(guard, "open", longest + 1)
    assert not in_force and errors[0][0] == "until" and "policy_guard.max_override_seconds" in errors[0][1]


@pytest.mark.parametrize(
    ("guard", "path"),
    [
        pytest.param(Guard(limits=(FieldLimit("mode", max=1),)), "g.limits[0].field", id="no number"),
        pytest.param(Guard(limits=(FieldLimit("pendng", max=1),)), "g.limits[0].field", id="no field"),
        pytest.param(Guard(limits=(FieldLimit("hold_seconds", 2, 1),)), "g.limits[0].min", id="nothing between"),
        pytest.param(Guard(fixed=("mode", "pendng")), "g.fixed[1]", id="nothing to fix"),
    ],
)
def test_a_guard_that_means_nothing_is_a_mistake_in_the_file(guard: Guard, path: str) -> None:
    problems = Problems()
    check_guard(guard, "g", problems)
    assert [problem.path for problem in problems.listed()] == [path]
