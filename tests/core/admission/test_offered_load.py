"""The sums of the reports: equal for one gateway and for twenty, and unknown once no gateway reports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.core.admission.offered_load import EXPIRY, SPAN, OfferedLoad, with_report


def after(gateways: int, seconds: int, offered: int, admitted: int, every: float = 1.0) -> OfferedLoad:
    """What is known once each of the gateways reported every so often."""
    load = None
    for n in range(round(seconds / every) * gateways):
        load = with_report(load, offered, admitted, every, 1000.0 + n * every / gateways)
    assert load is not None
    return load


@pytest.mark.parametrize(("gateways", "every"), [(1, 1.0), (20, 1.0), (20, 0.1), (3, 10.0)])
def test_rates_and_share_are_those_of_all_gateways(gateways: int, every: float) -> None:
    load = after(gateways, 60, round(1000 * every), round(250 * every), every)
    assert load.share(load.at) == pytest.approx(0.25, rel=0.05)
    assert load.offered / load.span == pytest.approx(1000 * gateways, rel=0.6)
    assert load.admitted_rate(load.at) == pytest.approx(250 * gateways, rel=0.6)


def test_one_report_is_taken_for_how_it_had_been() -> None:
    load = with_report(None, 100, 10, 0.5, 1000.0)
    assert (load.share(1000.0), load.admitted_rate(1000.0)) == (0.1, 20.0)


def test_a_change_is_seen_within_two_spans() -> None:
    load = after(1, 60, 1000, 1000)
    for _ in range(int(2 * SPAN)):
        load = with_report(load, 1000, 100, 1.0, load.at + 1)
    assert load.share(load.at) < 0.25


def test_nobody_who_reports_says_nothing() -> None:
    load = after(1, 10, 100, 10)
    assert load.share(load.at + EXPIRY) == pytest.approx(0.1)
    late = load.at + EXPIRY + 0.1
    assert (load.share(late), load.admitted_rate(late)) == (None, None)
    assert with_report(load, 50, 50, 1.0, late).share(late) == 1.0, "and what was long ago weighs nothing"


def test_where_nothing_was_offered_there_is_no_share() -> None:
    load = with_report(None, 0, 0, 1.0, 1000.0)
    assert load.share(1000.0) is None
    assert load.admitted_rate(1000.0) == 0.0


@given(
    st.lists(
        st.tuples(st.integers(0, 10**9), st.floats(0, 1), st.floats(0.05, 60), st.floats(-1, 100)),
        min_size=1,
        max_size=30,
    )
)
def test_whatever_is_reported_the_share_is_one(reports: list[tuple[int, float, float, float]]) -> None:
    load, now = None, 1000.0
    for offered, share, seconds, later in reports:
        now += later
        load = with_report(load, offered, int(offered * share), seconds, now)
        if (summed := load.share(now)) is not None:
            assert 0 <= summed <= 1 + 1e-9


def test_a_gateway_that_stood_still_for_a_minute_does_not_slow_down_what_is_seen_later() -> None:
    load = with_report(None, 6000, 6000, 60.0, 1000.0)
    for n in range(1, 61):
        load = with_report(load, 1000, 100, 1.0, 1000.0 + n)
    assert load.share(load.at) == pytest.approx(0.1, abs=0.02) and load.span < 2 * SPAN
