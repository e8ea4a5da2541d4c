"""YAML as plain values with line numbers."""

from __future__ import annotations

import pytest

from nats_backpressure.config.yaml_source import DEEPEST, LARGEST_FILE, load_yaml
from nats_backpressure.policy.validation import Problems


def loaded(text: str | bytes) -> tuple[object, dict[str, int], list[str]]:
    lines: dict[str, int] = {}
    problems = Problems()
    value = load_yaml(text if isinstance(text, bytes) else text.encode(), lines, problems)
    return value, lines, [problem.line for problem in problems.listed()]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("", None, id="nothing"),
        pytest.param("a: 1\nb: [x, 2.5, true, null]", {"a": 1, "b": ["x", 2.5, True, None]}, id="every kind of value"),
        pytest.param("at: 2026-01-01", {"at": "2026-01-01"}, id="a date is text"),
        pytest.param("at: 1:30", {"at": "1:30"}, id="and so is a time"),
        pytest.param("a: =", {"a": "="}, id="and a value sign"),
        pytest.param("\ufeffa: 1", {"a": 1}, id="with a byte order mark"),
    ],
)
def test_values_are_those_that_json_has(text: str, value: object) -> None:
    assert loaded(text)[0] == value
    assert loaded(text)[2] == []


def test_every_path_has_its_line() -> None:
    assert loaded("a:\n  - b: 1\n  - c\n")[1] == {"": 1, "a": 1, "a[0]": 2, "a[0].b": 2, "a[1]": 3}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("a: &x 1\nb: *x", "aliases (`*name`) are not supported; write the value out", id="an alias"),
        pytest.param("a: !python/object x", "a: tags (`!name`) are not supported; remove it", id="a tag"),
        pytest.param("[a]: 1", "keys must be text", id="a list as a key"),
        pytest.param("a: 1\na: 2", "a: is set twice, again in line 2; remove one of them", id="a key twice"),
        pytest.param("1: 1\n1: 2", "is set twice, again in line 2; remove one of them", id="a number twice"),
        pytest.param("a:\n\tb: 1", "has a tab for indentation; YAML needs spaces", id="a tab"),
        pytest.param("a: !!int x", "a: is not a valid int; for text put it in quotes", id="no whole number"),
        pytest.param("a: !!bool x", "a: is not a valid bool; for text put it in quotes", id="no boolean"),
        pytest.param("a: \x01", "holds a control character", id="a control character"),
        pytest.param(b"a: \xff", "is not UTF-8 text", id="other bytes than text"),
        pytest.param("a: [", "is not YAML: expected the node content, but found '<stream end>'", id="half a list"),
        pytest.param(
            "a: 1\n---\nb: 1", "is not YAML: expected a single document in the stream, but found another", id="2"
        ),
        pytest.param(
            "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), f"is nested deeper than {DEEPEST} levels", id="too deep"
        ),
        pytest.param("#" * (LARGEST_FILE + 1), f"is larger than {LARGEST_FILE:,} bytes", id="a large file"),
    ],
)
def test_what_is_not_supported_is_one_problem(text: str | bytes, problem: str) -> None:
    problems = loaded(text)[2]
    assert len(problems) == 1
    assert problems[0].startswith(problem)
