"""The freshness of one proof, and of a subject with many members."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.core.model.member import Member
from nats_backpressure.core.status.freshness import (
    Limits,
    SinceProof,
    freshness,
    limits,
    since_proof,
    subject_freshness,
)
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.values import ConsumerKey, Freshness, Status

LIMITS = Limits(10.0, 30.0)
KNOWN, STALE, UNKNOWN = Freshness.KNOWN, Freshness.STALE, Freshness.UNKNOWN


@pytest.mark.parametrize(
    ("stale_after", "unknown_after", "interval", "expected"),
    [
        pytest.param(10, 30, 0.1, (10, 30), id="as set, while readings are frequent"),
        pytest.param(10, 30, 5, (15, 30), id="never stale before three readings are missed"),
        pytest.param(10, 30, 10, (30, 60), id="unknown at least twice as late as stale"),
        pytest.param(10, 15, 0.1, (10, 20), id="also where the settings say otherwise"),
    ],
)
def test_the_limits_in_force(stale_after: float, unknown_after: float, interval: float, expected: tuple) -> None:
    computed = limits(stale_after, unknown_after, interval)
    assert (computed.stale_after, computed.unknown_after) == expected


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        pytest.param(None, UNKNOWN, id="never proved"),
        pytest.param(0.0, KNOWN, id="just proved"),
        pytest.param(9.99, KNOWN, id="before the first limit"),
        pytest.param(10.0, STALE, id="at it"),
        pytest.param(29.99, STALE, id="before the second"),
        pytest.param(30.0, UNKNOWN, id="at that"),
    ],
)
def test_one_proof(age: float | None, expected: Freshness) -> None:
    assert freshness(None if age is None else 100.0 - age, 100.0, LIMITS) is expected


def member(name: str, age: float | None, status: Status = Status.INACTIVE) -> Member:
    return Member(ConsumerKey("S", name), Policy(), status=status, proof=None if age is None else 100.0 - age)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        pytest.param([], UNKNOWN, id="without consumers"),
        pytest.param([member("a", None, Status.UNKNOWN)], UNKNOWN, id="with one that was never sampled"),
        pytest.param([member("a", None)], UNKNOWN, id="with one of which only the stored status is known"),
        pytest.param([member("a", 1), member("b", 9)], KNOWN, id="all fresh"),
        pytest.param([member("a", 1), member("b", 12)], STALE, id="the oldest decides"),
        pytest.param([member("a", 1), member("b", 50)], STALE, id="one unknown among fresh ones is stale"),
        pytest.param([member("a", 40), member("b", 50)], UNKNOWN, id="none has proof any more"),
        pytest.param([member("a", 1), member("b", None, Status.UNKNOWN)], KNOWN, id="one never sampled is left out"),
        pytest.param([member("a", 1), member("b", None)], STALE, id="one that keeps its stored status is old"),
    ],
)
def test_a_subject(members: list[Member], expected: Freshness) -> None:
    assert subject_freshness(since_proof(members), 100.0, LIMITS) is expected


def test_the_span_goes_from_the_oldest_to_the_newest_proof() -> None:
    assert since_proof([member("a", 1), member("b", 12), member("c", 5)]) == SinceProof(88.0, 99.0)
    assert since_proof([member("a", 1), member("b", None)]) == SinceProof(-math.inf, 99.0)


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0, 100))
def test_time_alone_never_makes_anything_fresher(ages: list[float], later: float) -> None:
    order = [KNOWN, STALE, UNKNOWN]
    oldest = since_proof(member(str(n), age) for n, age in enumerate(ages))
    assert order.index(subject_freshness(oldest, 100.0 + later, LIMITS)) >= order.index(
        subject_freshness(oldest, 100.0, LIMITS)
    )
