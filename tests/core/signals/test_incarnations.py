"""Which creation times can be of one consumer, as texts and as marks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.core.signals.incarnations import SAME_CREATION, is_of_another, mark, marks_match, may_be_one
from nats_backpressure.protocol.timestamps import format_rfc3339

BORN = "2026-11-27T20:26:13.999964145Z"


@pytest.mark.parametrize(
    ("created", "same"),
    [
        pytest.param(BORN, True, id="the same text"),
        pytest.param("2026-11-27T20:26:13.999999Z", True, id="a moment later"),
        pytest.param("2026-11-27T20:26:14.000073047Z", True, id="a moment later, in the next second"),
        pytest.param("2026-11-27T20:26:14Z", True, id="without decimals"),
        pytest.param("2026-11-27T20:26:13.9Z", True, id="a moment earlier"),
        pytest.param("2026-11-27T20:26:15.01Z", False, id="a second later"),
        pytest.param("2026-11-27T20:26:12.9Z", False, id="a second earlier"),
        pytest.param("2027-11-27T20:26:13.999964145Z", False, id="a year later"),
        pytest.param("2026-11-27T21:26:13.999964145+01:00", False, id="another time zone, which no server tells"),
        pytest.param("", False, id="no time"),
    ],
)
def test_creations_of_one_consumer_are_less_than_a_second_apart(created: str, same: bool) -> None:
    assert (may_be_one(BORN, created), may_be_one(created, BORN)) == (same, same)
    ours, theirs = mark(BORN, "then"), mark(created, "then")
    assert (marks_match(ours, theirs), marks_match(theirs, ours)) == (same, same)


@pytest.mark.parametrize(("text", "other"), [("one", "two"), ("", "one"), (BORN, "one")])
def test_texts_that_are_no_times_are_compared_as_they_are(text: str, other: str) -> None:
    assert may_be_one(text, text) and marks_match(mark(text), mark(text))
    assert not may_be_one(text, other) and not marks_match(mark(text), mark(other))


def test_marks_match_only_where_all_the_rest_is_equal() -> None:
    assert not marks_match(mark(BORN, "then", "orders"), mark(BORN, "then", "bills"))
    assert not marks_match(mark(BORN, "then"), mark(BORN, "later"))


@pytest.mark.parametrize(
    ("stored", "other"),
    [
        pytest.param(mark(BORN), False, id="the same"),
        pytest.param(mark("2026-11-27T20:26:14.000073047Z"), False, id="the same, told later"),
        pytest.param(mark("2026-11-27T20:26:15.1Z"), True, id="another"),
        pytest.param(0, False, id="a build without marks stored it"),
        pytest.param(2**32 - 1, False, id="a build with checksums stored it"),
    ],
)
def test_what_is_stored_is_of_another_consumer_only_where_that_is_known(stored: int, other: bool) -> None:
    assert is_of_another(stored, mark(BORN)) is other


def test_consumers_created_milliseconds_apart_have_different_marks() -> None:
    """Within a process it is known by their sequences that they are two, and marks are compared exactly."""
    assert mark("2026-11-27T20:26:13.996Z") != mark(BORN)


TIMES = st.integers(0, 4_000_000_000_000)


@given(TIMES, st.integers(-3000, 3000) | st.integers(-(2**40), 2**40), st.text())
def test_marks_are_of_one_consumer_where_times_are_across_any_edge(at: int, apart: int, rest: str) -> None:
    other = max(0, at + apart)
    one, two = mark(format_rfc3339(at / 1000), rest), mark(format_rfc3339(other / 1000), rest)
    assert min(one, two) >= 2**52 and max(one, two) < 2**53
    distance = abs(at - other) % 2**29
    near = min(distance, 2**29 - distance) / 1000
    if not math.isclose(near, SAME_CREATION, abs_tol=0.002):
        assert marks_match(one, two) is (near < SAME_CREATION)
