"""Which pattern covers which, which is more specific, and what is no pattern."""

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.protocol.patterns import (
    PatternIndex,
    covers,
    encode,
    encoded_length,
    glob,
    glob_problem,
    globs_meet,
    literal_problem,
    overlap,
    pattern_problem,
    specificity,
)

TOKENS = st.sampled_from(["a", "b", "*"])
PATTERNS = st.builds(
    lambda tokens, tail: ".".join([*tokens, *tail]),
    st.lists(TOKENS, min_size=1, max_size=3),
    st.sampled_from([[], [">"]]),
)
LITERALS = [".".join(tokens) for n in range(1, 5) for tokens in product("ab", repeat=n)]
GLOBS = st.text("ab*", max_size=4)
NAMES = ["".join(letters) for n in range(8) for letters in product("ab", repeat=n)]

COVERS = [
    ("a.b", "a.b", True),
    ("a.*", "a.b", True),
    ("a.*", "a.b.c", False),
    ("a.>", "a.b.c", True),
    ("a.>", "a", False),
    (">", "a", True),
    ("*.b", "*.b", True),
    ("a.*", "a.>", False),
    ("a.>", "a.*", True),
    ("a.b", "a.*", False),
    ("a", "a.b", False),
    ("a.b", "a", False),
]


@pytest.mark.parametrize(("pattern", "subject", "does"), COVERS, ids=[f"{p} over {s}" for p, s, _ in COVERS])
def test_a_pattern_covers_what_all_of_it_matches(pattern: str, subject: str, does: bool) -> None:
    assert covers(pattern, subject) is does


@given(PATTERNS, PATTERNS)
def test_covering_a_pattern_is_covering_all_it_matches(one: str, other: str) -> None:
    if covers(one, other):
        assert all(covers(one, s) for s in LITERALS if covers(other, s))


@given(st.sets(PATTERNS, max_size=20), PATTERNS | st.sampled_from(LITERALS))
def test_an_index_finds_every_pattern_that_covers_the_most_specific_first(patterns: set[str], subject: str) -> None:
    index = PatternIndex((pattern, pattern) for pattern in patterns)
    covering = [pattern for pattern in patterns if covers(pattern, subject)]
    assert list(index.covering(subject)) == sorted(covering, key=specificity)


@given(st.sets(PATTERNS | st.sampled_from(LITERALS), max_size=20), st.data())
def test_an_index_from_which_patterns_were_removed_is_as_if_they_had_never_been_in_it(
    patterns: set[str], data: st.DataObject
) -> None:
    index = PatternIndex((pattern, pattern) for pattern in patterns)
    gone = [pattern for pattern in patterns if data.draw(st.booleans())]
    for pattern in gone:
        index.remove(pattern, pattern)
    rest = PatternIndex((pattern, pattern) for pattern in patterns.difference(gone))
    assert shape(index._root) == shape(rest._root) and index._literal == rest._literal


def shape(node: Any) -> object:
    return node.values, {token: shape(below) for token, below in node.next.items()}


@given(PATTERNS, PATTERNS, st.sampled_from(LITERALS))
def test_of_two_patterns_that_cover_a_subject_one_is_closer(one: str, other: str, subject: str) -> None:
    if one != other and covers(one, subject) and covers(other, subject):
        assert specificity(one) != specificity(other)


def test_a_literal_comes_before_a_star_before_the_rest() -> None:
    assert sorted([">", "a.>", "a.*", "*.b", "a.b", "a.b.>"], key=specificity) == [
        "a.b",
        "a.b.>",
        "a.*",
        "a.>",
        "*.b",
        ">",
    ]


@given(GLOBS, GLOBS)
def test_globs_meet_when_some_name_matches_both(one: str, other: str) -> None:
    assert globs_meet(one, other) is any(glob(one, name) and glob(other, name) for name in NAMES)


def test_a_glob_full_of_stars_is_matched_in_no_time() -> None:
    assert not glob("*a" * 100 + "b", "a" * 255)


BAD_PATTERNS = {
    "": "empty",
    "a..b": "empty token",
    ".a": "empty token",
    "a.": "empty token",
    "a b": "blanks",
    "a\tb": "blanks",
    "a\n": "blanks",
    "\ud800": "control",
    "a.>.b": "last token",
    "a*.b": "whole tokens",
    "a>": "whole tokens",
    "a" * 1025: "1024 bytes",
    "ü" * 200: "1024 bytes",
}


@pytest.mark.parametrize("pattern", BAD_PATTERNS, ids=lambda p: ascii(p)[:20])
def test_what_nobody_could_watch_is_no_pattern(pattern: str) -> None:
    assert BAD_PATTERNS[pattern] in (pattern_problem(pattern) or "")


@pytest.mark.parametrize("pattern", ["a", "a.*.c", "a.>", ">", "*", "übung.é", "$JS.x", "a" * 1024])
def test_a_pattern_is_taken(pattern: str) -> None:
    assert pattern_problem(pattern) is None


@pytest.mark.parametrize("subject", ["a.*", ">", "a.>", "*", ""])
def test_a_pattern_is_no_plain_subject(subject: str) -> None:
    assert literal_problem(subject)


@pytest.mark.parametrize("name", ["", "a.b", "a>", "a b", "a/b", "a\\b", "r-?", "r[12]", "x" * 256, "\x00"])
def test_what_no_consumer_is_called_is_no_glob(name: str) -> None:
    assert glob_problem(name)


@given(st.text(max_size=40))
def test_whatever_is_taken_as_a_pattern_has_a_key(text: str) -> None:
    if pattern_problem(text) is None:
        assert encode(text).isascii()


@given(PATTERNS, PATTERNS)
def test_patterns_overlap_where_one_subject_is_matched_by_both(one: str, other: str) -> None:
    assert overlap(one, other) is any(covers(one, name) and covers(other, name) for name in LITERALS)


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_the_length_of_a_tail_is_known_without_making_it(subject: str) -> None:
    assert encoded_length(subject) == len(encode(subject))
