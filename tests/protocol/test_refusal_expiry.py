"""A refusal expires when no sidecar checks its end: the contract's sentences, second by second."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.protocol.refusal_expiry import OPENING, aged, holds_for


@pytest.mark.parametrize(
    ("on_unknown", "hold_seconds", "stale_after", "interval", "expected"),
    [
        pytest.param("hold", 10, 10, 2, 10, id="by default after ten seconds"),
        pytest.param("hold", 60, 10, 2, 60, id="as long as the policy says"),
        pytest.param("hold", 10, 60, 2, 10, id="also where it is still known"),
        pytest.param("hold", 0, 10, 2, 6, id="never while proofs come as they should"),
        pytest.param("hold", 10, 15, 5, 15, id="nor before three readings are missed"),
        pytest.param("continue", 60, 10, 2, 10, id="continue: as soon as it is stale"),
        pytest.param("reject", 10, 10, 2, math.inf, id="reject: never"),
        pytest.param("of another version", 30, 10, 2, 30, id="what is not understood holds"),
    ],
)
def test_when_a_refusal_begins_to_open(
    on_unknown: str, hold_seconds: float, stale_after: float, interval: float, expected: float
) -> None:
    assert holds_for(on_unknown, hold_seconds, stale_after, interval) == expected


@pytest.mark.parametrize(
    ("action", "ratio", "on_unknown", "opening", "unknown", "expected"),
    [
        pytest.param("reject", 0.0, "hold", -0.1, False, ("reject", 0.0), id="held"),
        pytest.param("reject", 0.0, "hold", 0.0, False, ("reject", 0.0), id="to the end"),
        pytest.param("reject", 0.0, "hold", 1.0, False, ("throttle", 0.25), id="a quarter after a second"),
        pytest.param("reject", 0.0, "hold", 3.0, True, ("throttle", 0.75), id="three quarters after three"),
        pytest.param("reject", 0.0, "hold", 4.0, True, ("continue", 1.0), id="open after four"),
        pytest.param("throttle", 0.6, "hold", -1.0, True, ("throttle", 0.6), id="a share is held"),
        pytest.param("throttle", 0.5, "hold", 1.0, True, ("throttle", 0.75), id="and opens from where it was"),
        pytest.param("throttle", 0.5, "hold", 2.0, False, ("continue", 1.0), id="so it is open sooner"),
        pytest.param("reject", 0.0, "continue", -0.1, False, ("reject", 0.0), id="continue: known acts"),
        pytest.param("reject", 0.0, "continue", 0.0, False, ("continue", 1.0), id="continue: stale is open at once"),
        pytest.param("reject", 0.0, "reject", 1e9, False, ("reject", 0.0), id="reject: stale acts"),
        pytest.param("throttle", 0.5, "reject", 1e9, False, ("throttle", 0.5), id="reject: a share does not open"),
        pytest.param("continue", 1.0, "reject", -1.0, False, ("continue", 1.0), id="reject: a stale one continues"),
        pytest.param("continue", 1.0, "reject", -1.0, True, ("reject", 0.0), id="reject: what is unknown is rejected"),
        pytest.param("continue", 1.0, "hold", 1e9, True, ("continue", 1.0), id="a continue stays one"),
    ],
)
def test_an_answer_ages(
    action: str, ratio: float, on_unknown: str, opening: float, unknown: bool, expected: tuple[str, float]
) -> None:
    assert aged(action, ratio, on_unknown, opening, unknown) == expected


ANSWERS = st.sampled_from([("continue", 1.0), ("reject", 0.0)]) | st.floats(0, 1).map(lambda r: ("throttle", r))
TIMES = st.floats(0, 100)


@given(ANSWERS, st.sampled_from(["hold", "continue"]), TIMES, TIMES, TIMES, st.booleans())
def test_age_only_ever_opens_and_never_faster_than_a_quarter_a_second(
    answer: tuple[str, float], on_unknown: str, hold_seconds: float, age: float, more: float, unknown: bool
) -> None:
    holds = holds_for(on_unknown, hold_seconds, 10.0, 2.0)
    _, ratio = aged(*answer, on_unknown, age - holds, unknown)
    later, larger = aged(*answer, on_unknown, age + more - holds, unknown)
    assert 0 <= ratio <= larger <= 1
    assert (larger == 1) is (later == "continue") or answer[0] == "throttle"
    if on_unknown == "hold":
        assert larger - ratio <= OPENING * more + 1e-9 or later == "continue"
    if age + more >= holds + 4:
        assert (later, larger) == ("continue", 1.0)
