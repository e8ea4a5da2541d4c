"""Two entries of one layer must not name the same pattern for the same consumers."""

from __future__ import annotations

import pytest

from nats_backpressure.policy.conflicts import PatternClaims
from nats_backpressure.policy.validation import Problems


def paths(*entries: tuple[list[str], list[str]]) -> list[str]:
    claims, problems = PatternClaims(), Problems()
    for i, (subjects, consumers) in enumerate(entries):
        claims.add(subjects, consumers, f"policies[{i}]", problems)
    return [problem.path for problem in problems.listed()]


@pytest.mark.parametrize(
    ("one", "other", "conflict"),
    [
        pytest.param(["*"], ["*"], True, id="all consumers twice"),
        pytest.param(["a"], ["a"], True, id="the same name"),
        pytest.param(["a"], ["b"], False, id="different names"),
        pytest.param(["a*"], ["ab"], True, id="a name that an earlier glob matches"),
        pytest.param(["ab"], ["a*"], True, id="a glob that matches an earlier name"),
        pytest.param(["a*"], ["*b"], True, id="globs that can match the same name"),
        pytest.param(["a*"], ["b*"], False, id="globs that cannot"),
        pytest.param(["a*"], ["b"], False, id="a name that no glob matches"),
    ],
)
def test_one_pattern_for_overlapping_consumers_is_a_conflict(one: list[str], other: list[str], conflict: bool) -> None:
    assert paths((["s.>"], one), (["t", "s.>"], other)) == (["policies[1].subjects[1]"] if conflict else [])


def test_different_patterns_never_conflict() -> None:
    assert paths((["s.>"], ["*"]), (["s.*"], ["*"])) == []


def test_a_pattern_twice_in_one_entry_is_a_conflict() -> None:
    assert paths((["s", "t", "s"], ["*"])) == ["policies[0].subjects[2]"]
