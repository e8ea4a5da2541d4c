"""One policy: what is rejected and how, what is accepted, how it is written, and which mark gives way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.policy.parse import (
    MOST_POLICIES,
    check_inherited,
    entry_document,
    over_default,
    parse_entries,
    parse_entry,
    policy_document,
    validate_document,
)
from nats_backpressure.policy.schema import AdmissionRule, AlertRule, InflightRule, Override, PendingRule, Policy, When
from nats_backpressure.policy.validation import LIMIT, Problems
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Diagnosis
from tests.support.policies import entry

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = [*Policy.__struct_fields__, "subjects", "consumers"]


def paths(document: object) -> list[str]:
    return [problem.path for problem in validate_document(document)[0]]


def message(document: object) -> str:
    (problem,) = validate_document(document)[0]
    return problem.line


UNTIL = "2026-11-23T14:05:00.250Z"
LONG = {"name": "long-queue", "when": {"pending_above": 5000}, "for_seconds": 60, "severity": "critical"}
FULL = {
    "subjects": ["a"],
    "pending": {"overload_seconds": 30, "min": 100, "max": 100_000},
    "inflight": {"overload_ratio": 0.9},
    "admission": {"mode": "adaptive", "floor": 0.05},
    "alerts": [LONG, {"name": "stuck", "when": {"diagnosis": "server_stuck"}}],
}
REFUSED = {
    "a key nobody knows": ({"pendng": {}}, "pendng: unknown key"),
    "a mark nobody knows": ({"pending": {"wran": 1}}, "pending.wran: unknown key"),
    "a list for a policy": ([], "must be a mapping, not a list"),
    "a number for marks": ({"pending": 10}, "pending: must be a mapping, not a whole number"),
    "text for a number": ({"pending": {"warn": "10"}}, "pending.warn: must be a number, not text"),
    "true is no number": ({"active_signals": True}, "active_signals: must be a whole number, not true"),
    "one is not true": ({"count_backfill": 1}, "count_backfill: must be true or false, not a whole number"),
    "half a signal": ({"active_signals": 1.5}, "active_signals: must be a whole number, not a number"),
    "no mark at all": ({"pending": {"warn": None}}, "pending.warn: must be a number, not null"),
    "a mark of nothing": ({"pending": {"warn": 0}}, "pending.warn: must be at least 0.001, is 0"),
    "not a number": ({"pending": {"warn": float("nan")}}, "pending.warn: must be a finite number"),
    "endless": ({"alone_factor": float("inf")}, "alone_factor: must be a finite number"),
    "beyond counting": ({"alone_factor": 10**400}, "alone_factor: is too large a number"),
    "no attempt at all": ({"max_retry_attempts": 0}, "max_retry_attempts: must be at least 1, is 0"),
    "no signal at all": ({"active_signals": 0}, "active_signals: must be at least 1, is 0"),
    "no time to come back after": ({"retry_after_seconds": 0}, "retry_after_seconds: must be at least 1, is 0"),
    "a share above one": ({"recovery_threshold": 1.1}, "recovery_threshold: must be at most 1, is 1.1"),
    "a share below nothing": ({"recovery_threshold": -0.1}, "recovery_threshold: must be at least 0, is -0.1"),
    "five signals of four": ({"active_signals": 5}, "active_signals: must be at most 4, is 5"),
    "an unknown strategy": (
        {"backoff_strategy": "fibonacci"},
        "backoff_strategy: must be one of constant, exponential, linear, not `fibonacci`",
    ),
    "marks upside down": (
        {"pending": {"warn": 9, "critical": 5}},
        "pending.warn: must not be above critical, 9 is above 5",
    ),
    "warn above the inherited critical": (
        {"pending": {"warn": 500}},
        "pending.warn: must not be above critical, which is 100 (inherited); set critical too",
    ),
    "critical above the inherited overload": (
        {"pending": {"critical": 2000}},
        "pending.critical: must not be above overload, which is 1,000 (inherited); set overload too",
    ),
    "no consumers": ({"consumers": []}, "consumers: must not be empty"),
    "a subject that is none": ({"subjects": ["a", "b..c"]}, "subjects[1]: must not have an empty token"),
    "a consumer that is none": ({"consumers": ["a.b"]}, "consumers[0]: must not hold blanks, dots"),
    "bounds of no dynamic mark": ({"pending": {"max": 5}}, "pending.max: may be given only together with overload_s"),
    "a dynamic mark switched off, with a bound": (
        {"pending": {"overload_seconds": None, "min": 5}},
        "pending.min: may be given only together with overload_seconds",
    ),
    "bounds upside down": (
        {"pending": {"overload_seconds": 1, "min": 5000, "max": 10}},
        "pending.min: must not be above max, 5,000 is above 10",
    ),
    "seconds that are none": (
        {"pending": {"overload_seconds": "x", "min": 5}},
        "pending.overload_seconds: must be a number, not text",
    ),
    "more than the whole cap": (
        {"inflight": {"overload_ratio": 1.5}},
        "inflight.overload_ratio: must be at most 1, is 1.5",
    ),
    "a mode of admission nobody knows": (
        {"admission": {"mode": "dice"}},
        "admission.mode: must be one of adaptive, binary, not `dice`",
    ),
    "a floor of nothing": ({"admission": {"floor": 0}}, "admission.floor: must be at least 0.0001, is 0"),
    "an alert without a condition": ({"alerts": [{"name": "x"}]}, "alerts[0].when: is missing"),
    "an alert on nothing": (
        {"alerts": [{"name": "x", "when": {}}]},
        "alerts[0].when: must hold exactly one of status,",
    ),
    "an alert on two things": (
        {"alerts": [LONG, {"name": "x", "when": {"pending_above": 1, "status": "active"}}]},
        "alerts[1].when: must hold exactly one of status,",
    ),
    "an alert on an unknown diagnosis": (
        {"alerts": [{"name": "x", "when": {"diagnosis": "tired"}}]},
        "alerts[0].when.diagnosis: must be one of server_stuck, cap_reached,",
    ),
    "an alert on a calm status": (
        {"alerts": [{"name": "x", "when": {"status": "inactive"}}]},
        "alerts[0].when.status: must be one of active, warning, not `inactive`",
    ),
    "an alert with a blank name": (
        {"alerts": [LONG | {"name": "a b"}]},
        "alerts[0].name: must match [A-Za-z0-9_.-]+",
    ),
    "an alert twice": ({"alerts": [LONG, LONG]}, "alerts[1].name: is the name of two alerts"),
    "an override": (
        {"override": {"action": "open", "until": UNTIL}},
        "override: must not be in a policy. An override has its own key in the policy bucket, `=override.<encoded",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_named_with_its_path_and_rule(case: str) -> None:
    document, expected = REFUSED[case]
    assert message(document).startswith(expected)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"alerts": []},
        {"admission": {"mode": "binary"}},
        {"override": None},
        {"pending": {"overload_seconds": None, "min": None}, "inflight": {"overload_ratio": None}},
        {"recovery_threshold": 0},
        policy_document(Policy()),
    ],
    ids=[
        "nothing",
        "no alerts",
        "binary",
        "no override",
        "no dynamic mark",
        "a share of nothing",
        "the default in full",
    ],
)
def test_what_changes_nothing_is_taken(document: object) -> None:
    problems, written = validate_document(document)
    assert not problems and written is not None
    assert written | {"recovery_threshold": 0.5} == policy_document(Policy())


def test_everything_the_contract_offers_is_taken() -> None:
    parsed, _ = parse_entry(FULL)
    assert parsed is not None
    assert over_default(parsed).policy == Policy(
        pending=PendingRule(10, 100, 1000, overload_seconds=30, min=100, max=100_000),
        inflight=InflightRule(50, 200, 500, overload_ratio=0.9),
        admission=AdmissionRule("adaptive", 0.05, 2),
        alerts=(
            AlertRule("long-queue", When(pending_above=5000), 60, "critical"),
            AlertRule("stuck", When(diagnosis=Diagnosis.SERVER_STUCK)),
        ),
    )


def test_a_policy_is_written_down_as_people_would() -> None:
    _, written = validate_document(FULL)
    assert written is not None
    assert written["alerts"][1] == {
        "name": "stuck",
        "when": {"diagnosis": "server_stuck"},
        "for_seconds": 0,
        "severity": "warning",
    }
    assert validate_document(written) == ((), written)


@pytest.mark.parametrize(
    ("at", "shown"),
    [
        pytest.param(100.0, {"action": "open", "until": "1970-01-01T00:03:20.000Z"}, id="the most specific first"),
        pytest.param(200.0, {"action": "reject", "until": "1970-01-01T00:05:00.500Z"}, id="then the one behind it"),
        pytest.param(300.5, None, id="none once all are over"),
        pytest.param(None, None, id="none where no time is given"),
    ],
)
def test_a_policy_shows_the_override_that_is_in_force(at: float | None, shown: object) -> None:
    policy = Policy(override=(Override("open", 200.0), Override("reject", 300.5)))
    assert policy_document(policy, None if at is None else Now(0.0, at))["override"] == shown


def test_every_mistake_is_reported_not_only_the_first() -> None:
    document = {"mode": "x", "pending": {"warn": 5000, "overload": "x"}, "inflight": {"wran": 1}, "subjects": ["a b"]}
    assert set(paths(document)) == {"mode", "pending.warn", "pending.overload", "inflight.wran", "subjects[0]"}


def test_thousands_of_mistakes_are_counted_but_not_all_reported() -> None:
    problems, _ = validate_document({f"key{i}": i for i in range(5000)})
    assert len(problems) == LIMIT + 1 and problems[-1].message == f"and {5000 - LIMIT} more problems"


def test_a_key_cannot_forge_a_line() -> None:
    assert "\n" not in message({"x\nfake: line\x1b[2J" * 100: 1}) and len(message({"x" * 10_000: 1})) < 100


@given(JSON)
def test_no_value_of_any_shape_brings_the_parser_down(document: object) -> None:
    problems, written = validate_document(document)
    assert bool(problems) is (written is None)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_no_value_of_any_field_brings_the_parser_down(document: dict[str, object]) -> None:
    problems, written = validate_document(document)
    assert bool(problems) is (written is None)
    if written is not None:
        assert validate_document(written) == ((), written)


def test_subjects_are_needed_where_policies_stand_in_a_list() -> None:
    parsed, problems = parse_entry({"mode": "observe"}, "policies[0]")
    assert parsed is None and [p.path for p in problems] == ["policies[0].subjects"]
    assert parse_entry({"mode": "observe"}, need_subjects=False)[0] is not None


def test_an_inherited_mark_above_a_given_overload_is_lowered_to_it() -> None:
    effective = over_default(entry("a", pending={"overload": 50}))
    assert effective.policy.pending == PendingRule(10, 50, 50)
    assert effective.sources["pending.critical"] == "file" and effective.sources["pending.warn"] == "default"


OVERLAPS = [
    (["*"], ["r1"], True),
    (["r*"], ["*1"], True),
    (["r1", "r2"], ["r2"], True),
    (["r1"], ["r2"], False),
    (["a*"], ["b*"], False),
]


@pytest.mark.parametrize(("one", "other", "overlap"), OVERLAPS, ids=[f"{o} and {t}" for o, t, _ in OVERLAPS])
def test_one_pattern_may_stand_twice_only_for_different_consumers(one: list, other: list, overlap: bool) -> None:
    for consumers in ((one, other), (other, one)):
        problems = Problems()
        parse_entries(
            [{"subjects": ["x", "a.b"][i:], "consumers": c} for i, c in enumerate(consumers)], "policies", problems
        )
        assert [p.path for p in problems.listed()] == (["policies[1].subjects[0]"] if overlap else [])


def test_one_pattern_stands_once_in_one_entry() -> None:
    problems = Problems()
    parse_entries([{"subjects": ["a", "a"]}], "policies", problems)
    assert [p.path for p in problems.listed()] == ["policies[0].subjects[1]"]


def test_a_given_mark_is_held_against_what_it_inherits() -> None:
    inherited = over_default(entry("a", pending={"critical": 300, "overload": 5000})).policy
    problems = Problems()
    check_inherited(entry("a", pending={"warn": 250}), inherited, "", problems)
    assert not problems
    check_inherited(entry("a", pending={"warn": 301}), inherited, "", problems)
    assert [p.path for p in problems.listed()] == ["pending.warn"]


def test_every_alert_is_looked_at_even_where_one_is_wrong() -> None:
    document = {"alerts": [{"name": "x", "when": {}}, LONG, {"name": "y y", "when": {"status": "active"}}]}
    assert paths(document) == ["alerts[0].when", "alerts[2].name"]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        pytest.param({}, "policies: must be a list of policies", id="a mapping"),
        pytest.param([{}] * (MOST_POLICIES + 1), "policies: must have at most 10000 entries, has 10001", id="too many"),
    ],
)
def test_a_layer_is_a_bounded_list(value: object, problem: str) -> None:
    problems = Problems()
    assert parse_entries(value, "policies", problems) == ()
    assert [one.line for one in problems.listed()] == [problem]


def test_an_entry_is_written_as_it_was_parsed() -> None:
    document = {
        "subjects": ["a.>"],
        "consumers": ["b*"],
        "mode": "observe",
        "pending": {"warn": 1, "overload": 7},
        "alerts": [{"name": "long", "when": {"pending_above": 5}, "for_seconds": 1, "severity": "warning"}],
    }
    entry, problems = parse_entry(document)
    assert problems == ()
    assert entry is not None
    assert entry_document(entry) == document
