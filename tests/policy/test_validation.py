"""Untrusted values become Structs, or problems with their paths."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta, Struct

from nats_backpressure.policy.validation import (
    LIMIT,
    Problems,
    join_path,
    read_partial,
    read_struct,
    read_with_defaults,
    shorten,
)


class Color(Enum):
    RED = "red"


class Inner(Struct, frozen=True):
    a: int
    b: int = 2

    def __post_init__(self) -> None:
        if self.a > self.b:
            raise ValueError("a must not be above b")


class Outer(Struct, frozen=True):
    flag: bool = False
    count: Annotated[int, Meta(gt=0, lt=10)] = 1
    share: Annotated[float, Meta(ge=0, le=1)] = 0.5
    name: Annotated[str, Meta(min_length=1, max_length=5, pattern="^[a-z]+$")] = "abc"
    kind: Literal["x", "y"] = "x"
    color: Color = Color.RED
    inner: Inner = Inner(1)
    maybe: Inner | None = None
    items: Annotated[tuple[Inner, ...], Meta(min_length=1, max_length=2)] = (Inner(1),)


GOOD = {
    "flag": True,
    "count": 2,
    "share": 1,
    "name": "de",
    "kind": "y",
    "color": "red",
    "inner": {"a": 0},
    "maybe": None,
    "items": [{"a": 1, "b": 1}],
}


def test_good_values_become_a_struct() -> None:
    problems = Problems()
    expected = Outer(True, 2, 1, "de", "y", Color.RED, Inner(0), None, (Inner(1, 1),))
    assert read_struct(Outer, GOOD, "", problems) == expected
    assert not problems


@pytest.mark.parametrize(
    ("document", "line"),
    [
        pytest.param([], "must be a mapping, not a list", id="a list"),
        pytest.param({1: 2}, "keys must be text, not a whole number", id="a number as key"),
        pytest.param({"new": 1}, "new: unknown key", id="an unknown key"),
        pytest.param({"flag": 1}, "flag: must be true or false, not a whole number", id="no boolean"),
        pytest.param({"count": True}, "count: must be a whole number, not true", id="true as a number"),
        pytest.param({"count": 0}, "count: must be above 0, is 0", id="at an open lower bound"),
        pytest.param({"count": 10}, "count: must be below 10, is 10", id="at an open upper bound"),
        pytest.param({"count": 2**60}, "count: is too large a number", id="a huge number"),
        pytest.param({"share": "1"}, "share: must be a number, not text", id="text as a number"),
        pytest.param({"share": -0.1}, "share: must be at least 0, is -0.1", id="below the bound"),
        pytest.param({"share": 1.5}, "share: must be at most 1, is 1.5", id="above the bound"),
        pytest.param({"share": float("nan")}, "share: must be a finite number", id="not a number"),
        pytest.param({"name": None}, "name: must be text, not null", id="null"),
        pytest.param({"name": ""}, "name: must not be empty", id="an empty text"),
        pytest.param({"name": "abcdef"}, "name: must have at most 5 characters, has 6", id="a long text"),
        pytest.param({"name": "ab\n"}, "name: must not hold control characters", id="a line break"),
        pytest.param({"name": "ABC"}, "name: must match [a-z]+$", id="another pattern"),
        pytest.param({"kind": "z"}, "kind: must be one of x, y, not `z`", id="another word"),
        pytest.param({"kind": []}, "kind: must be one of x, y, not a list", id="a list as a word"),
        pytest.param({"color": 1.5}, "color: must be one of red, not a number", id="no member"),
        pytest.param({"inner": 1}, "inner: must be a mapping, not a whole number", id="no mapping"),
        pytest.param({"inner": {}}, "inner.a: is missing", id="a missing field"),
        pytest.param({"inner": {"a": 5}}, "inner: a must not be above b", id="a rule between fields"),
        pytest.param({"maybe": {}}, "maybe.a: is missing", id="a nullable value is whole"),
        pytest.param({"items": "x"}, "items: must be a list, not text", id="text as a list"),
        pytest.param({"items": []}, "items: must not be empty", id="an empty list"),
        pytest.param({"items": [{"a": 1}] * 3}, "items: must have at most 2 entries, has 3", id="a long list"),
        pytest.param({"items": [{"a": "x"}]}, "items[0].a: must be a whole number, not text", id="within a list"),
        pytest.param({"flag": {}}, "flag: must be true or false, not a mapping", id="a mapping"),
        pytest.param({"flag": b""}, "flag: must be true or false, not something else", id="bytes"),
    ],
)
def test_each_problem_has_its_path_and_rule(document: Any, line: str) -> None:
    problems = Problems()
    assert read_struct(Outer, document, "", problems) is None
    assert [problem.line for problem in problems.listed()] == [line]


def test_the_rest_is_kept_where_a_part_is_wrong() -> None:
    problems = Problems()
    assert read_with_defaults(Outer, {"count": 0, "kind": "y"}, "", problems) == Outer(kind="y")
    assert read_with_defaults(Outer, [], "at", problems) == Outer()
    assert [problem.path for problem in problems.listed()] == ["count", "at"]


def test_a_partial_document_gives_only_its_own_fields() -> None:
    problems = Problems()
    assert read_partial(Outer, {"inner": {"b": 3}, "kind": "z"}, "", problems) == {"inner": {"b": 3}}
    assert read_partial(Outer, 1, "", problems) == {}
    assert problems.has_path("kind")
    assert not problems.has_path("inner")


def test_an_unknown_key_may_have_a_suggestion() -> None:
    problems = Problems(lambda key, known: "flag" if "flag" in known else None)
    read_struct(Outer, {"flog": True}, "", problems)
    assert problems.listed()[0].line == "flog: unknown key; did you mean `flag`?"


def test_problems_are_listed_up_to_a_limit_and_counted_beyond() -> None:
    problems = Problems()
    for n in range(LIMIT + 3):
        problems.add(str(n), "wrong")
    assert (len(problems), len(problems.listed())) == (LIMIT + 3, LIMIT + 1)
    assert problems.listed()[-1].line == "and 3 more problems"


def test_a_type_that_no_document_can_have_is_a_mistake_of_ours() -> None:
    class Bad(Struct):
        data: bytes

    with pytest.raises(TypeError, match="a document cannot have"):
        read_struct(Bad, {"data": b""}, "", Problems())


def test_paths_and_texts_fit_into_a_line() -> None:
    assert (join_path("", "a"), join_path("a[0]", "b")) == ("a", "a[0].b")
    assert shorten("a\x1b[0m\n") == "a\\x1b[0m\\n"
    assert shorten("x" * 100, 5) == "xxxxx..."
