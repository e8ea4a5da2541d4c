"""Policies: what is refused and how, what is inherited, which entry counts, and that marks stay in order."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.document import LIMIT, Problems
from sidecar.core.policy import (
    PolicyEntry,
    check_inherited,
    effective,
    over_default,
    parse_entries,
    parse_entry,
    plain,
    validate_document,
)
from sidecar.core.rules import MarkRule, Policy

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = [*Policy.__struct_fields__, "subjects", "consumers", "alerts", "override"]
MARKS = st.dictionaries(st.sampled_from(["warn", "critical", "overload"]), st.integers(1, 100) | st.floats(0.5, 100))
SIGNALS = ["pending", "inflight", "latency_p95", "drain_seconds"]
ENTRIES = st.builds(
    lambda subjects, consumers, marks: entry(*subjects, consumers=consumers, **marks),
    st.lists(st.sampled_from(["a.b", "a.*", "*.b", "a.>", ">", "*.*"]), min_size=1, max_size=2, unique=True),
    st.sampled_from([["*"], ["r*"], ["r1", "x"]]),
    st.dictionaries(st.sampled_from(SIGNALS), MARKS).map(
        lambda marks: {s: dict(zip(m, sorted(m.values()), strict=True)) for s, m in ordered(marks).items()}
    ),
)


def ordered(marks: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    names = ("warn", "critical", "overload")
    return {signal: {name: m[name] for name in names if name in m} for signal, m in marks.items()}


def entry(*subjects: str, **fields: Any) -> PolicyEntry:
    parsed, problems = parse_entry({"subjects": list(subjects), **fields})
    assert parsed is not None, problems
    return parsed


def paths(document: object) -> list[str]:
    return [problem.path for problem in validate_document(document)[0]]


def message(document: object) -> str:
    (problem,) = validate_document(document)[0]
    return problem.line


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
        "pending.warn: must not be above critical, which is 100 by inheritance; give critical too",
    ),
    "critical above the inherited overload": (
        {"pending": {"critical": 2000}},
        "pending.critical: must not be above overload, which is 1,000 by inheritance; give overload too",
    ),
    "no consumers": ({"consumers": []}, "consumers: must not be empty"),
    "a subject that is none": ({"subjects": ["a", "b..c"]}, "subjects[1]: must not have an empty token"),
    "a consumer that is none": ({"consumers": ["a.b"]}, "consumers[0]: must not hold blanks, dots"),
    "marks that follow the drain": (
        {"pending": {"overload_seconds": 30}},
        "pending.overload_seconds: this version cannot",
    ),
    "a share of the cap": ({"inflight": {"overload_ratio": 0.9}}, "inflight.overload_ratio: this version cannot"),
    "adaptive admission": ({"admission": {"mode": "adaptive"}}, "admission.mode: this version cannot"),
    "alerts": ({"alerts": [{"name": "x"}]}, "alerts: this version cannot"),
    "an override": ({"override": "open"}, "override: this version cannot"),
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
        {"recovery_threshold": 0},
        plain(Policy()),
    ],
    ids=["nothing", "no alerts", "binary", "no override", "a share of nothing", "the default written out"],
)
def test_what_changes_nothing_is_taken(document: object) -> None:
    problems, written = validate_document(document)
    assert not problems and written is not None
    assert written | {"recovery_threshold": 0.5} == plain(Policy())


def test_every_mistake_is_told_not_only_the_first() -> None:
    document = {"mode": "x", "pending": {"warn": 5000, "overload": "x"}, "inflight": {"wran": 1}, "subjects": ["a b"]}
    assert set(paths(document)) == {"mode", "pending.warn", "pending.overload", "inflight.wran", "subjects[0]"}


def test_thousands_of_mistakes_are_counted_but_not_all_told() -> None:
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
    found = over_default(entry("a", pending={"overload": 50}))
    assert found.policy.pending == MarkRule(10, 50, 50)
    assert found.sources["pending.critical"] == "file" and found.sources["pending.warn"] == "default"


def test_marks_merge_one_by_one_through_the_layers() -> None:
    layers = {
        "file": [entry(">", pending={"warn": 20, "overload": 500}, retry_after_seconds=7)],
        "bucket": [entry("a.*", pending={"overload": 800})],
        "consumer": [entry("a.b", consumers=["r1"], mode="observe")],
    }
    found = effective(layers, "a.b", "r1")
    assert found.policy == Policy(mode="observe", pending=MarkRule(20, 100, 800), retry_after_seconds=7)
    given_by = {name: layer for name, layer in found.sources.items() if layer != "default"}
    assert given_by == {
        "mode": "consumer",
        "pending.warn": "file",
        "pending.overload": "bucket",
        "retry_after_seconds": "file",
    }
    assert effective(layers, "z", "r1").policy.mode == "enforce"


def test_the_most_specific_pattern_of_a_layer_counts_alone() -> None:
    layer = [entry(">", retry_after_seconds=1), entry("a.*", max_retry_attempts=9), entry("a.b", mode="observe")]
    assert effective({"file": layer}, "a.b").policy == Policy(mode="observe")
    assert effective({"file": layer}, "a.c").policy == Policy(max_retry_attempts=9)
    assert effective({"file": layer}, "a.>").policy == Policy(retry_after_seconds=1)


def test_consumers_an_entry_is_not_for_take_the_next_specific_one() -> None:
    layer = [entry("a.*", retry_after_seconds=1), entry("a.b", consumers=["router-*"], retry_after_seconds=2)]
    seen = {c: effective({"file": layer}, "a.b", c).policy.retry_after_seconds for c in ("router-1", "audit", None)}
    assert seen == {"router-1": 2, "audit": 1, None: 1}


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
        found = Problems()
        parse_entries(
            [{"subjects": ["x", "a.b"][i:], "consumers": c} for i, c in enumerate(consumers)], "policies", found
        )
        assert [p.path for p in found.told()] == (["policies[1].subjects[0]"] if overlap else [])


def test_one_pattern_stands_once_in_one_entry() -> None:
    found = Problems()
    parse_entries([{"subjects": ["a", "a"]}], "policies", found)
    assert [p.path for p in found.told()] == ["policies[0].subjects[1]"]


def test_a_mark_is_held_against_the_layers_below() -> None:
    below = {"file": [entry("a.>", pending={"critical": 300, "overload": 5000})]}
    found = Problems()
    check_inherited(entry("a.b", pending={"warn": 250}), below, "", found)
    assert not found
    check_inherited(entry("a.b", "c", pending={"warn": 250}), below, "", found)
    assert [p.path for p in found.told()] == ["pending.warn"]


@given(st.dictionaries(st.sampled_from(["file", "bucket", "consumer"]), st.lists(ENTRIES, max_size=4)))
def test_whatever_is_merged_warn_is_at_most_critical_at_most_overload(layers: dict[str, list[PolicyEntry]]) -> None:
    for subject in ("a.b", "a.c", "a.b.c", "*.b"):
        found = effective(layers, subject, "r1")
        written = plain(found.policy)
        for signal in SIGNALS:
            marks = written[signal]
            assert marks["warn"] <= marks["critical"] <= marks["overload"]
        assert set(found.sources.values()) <= {"default", *layers}


@given(st.lists(ENTRIES, max_size=3), st.lists(ENTRIES, max_size=3))
def test_a_field_comes_from_the_strongest_layer_that_gives_it(
    file: list[PolicyEntry], bucket: list[PolicyEntry]
) -> None:
    found = effective({"file": file, "bucket": bucket}, "a.b", "r1")
    for signal in SIGNALS:
        # Overload is never moved by the order of marks, so it shows the merge alone.
        name = f"{signal}.overload"
        alone = {layer: effective({layer: e}, "a.b", "r1") for layer, e in (("file", file), ("bucket", bucket))}
        giver = next((layer for layer in ("bucket", "file") if alone[layer].sources[name] == layer), "default")
        assert found.sources[name] == giver
        if giver != "default":
            assert getattr(found.policy, signal).overload == getattr(alone[giver].policy, signal).overload


def test_thousands_of_consumers_under_one_policy_share_one_object() -> None:
    layers = {"file": [entry(">", retry_after_seconds=9)]}
    assert len({id(effective(layers, f"a.{i}", f"c{i}")) for i in range(1000)}) == 1
