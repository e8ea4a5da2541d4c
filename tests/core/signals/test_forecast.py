"""In how many seconds a growing queue is above its mark."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.signals.forecast import FARTHEST, overload_in
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey


def reading(pending: int, arrivals: float | None, acks: float | None) -> Reading:
    return Reading(
        key=ConsumerKey("S", "c"),
        at=Now(0.0, 0.0),
        pending=pending,
        inflight=0,
        latency=None,
        drain=None,
        arrival_rate=arrivals,
        ack_rate=acks,
    )


@pytest.mark.parametrize(
    ("pending", "arrivals", "acks", "mark", "seconds"),
    [
        (400, 50.0, 20.0, 1000, 20.0),
        (0, 10.0, 0.0, 1000, 100.0),
        (1000, 10.0, 0.0, 1000, 0.0),
        (1001, 10.0, 0.0, 1000, None),
        (400, 20.0, 20.0, 1000, None),
        (400, 20.0, 50.0, 1000, None),
        (400, None, 20.0, 1000, None),
        (400, 20.0, None, 1000, None),
        (0, 1.0, 0.0, 3600, 3600.0),
        (0, 1.0, 0.0, 3601, None),
        (0, 1.0, 0.0, math.inf, None),
        (0, 1.0, 0.0, math.nan, None),
    ],
    ids=[
        "growing",
        "from nothing",
        "at the mark is not over it",
        "over it already",
        "in balance",
        "draining",
        "arrivals unknown",
        "acks unknown",
        "at the farthest",
        "beyond the farthest",
        "no mark",
        "no number",
    ],
)
def test_the_forecast(pending: int, arrivals: float, acks: float, mark: float, seconds: float | None) -> None:
    assert overload_in(reading(pending, arrivals, acks), mark) == seconds


RATES = st.none() | st.floats(0, allow_infinity=False) | st.sampled_from([0.0, 5e-324, 1e308, math.inf, math.nan])


@given(st.integers(0, 2**63 - 1), RATES, RATES, st.floats() | st.integers(1, 10**9))
def test_a_forecast_is_a_bounded_number_of_seconds_or_none(
    pending: int, arrivals: float | None, acks: float | None, mark: float
) -> None:
    seconds = overload_in(reading(pending, arrivals, acks), mark)
    assert seconds is None or 0 <= seconds <= FARTHEST
