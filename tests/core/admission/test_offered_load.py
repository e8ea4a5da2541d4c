"""What reports add up to: the same for one gateway and for twenty, and nothing once nobody reports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.core.admission.offered_load import EXPIRY, SPAN, OfferedLoad, with_report


def after(gateways: int, seconds: int, offered: int, admitted: int, every: float = 1.0) -> OfferedLoad:
    """What is known once each of the gateways reported every so often."""
    found = None
    for n in range(round(seconds / every) * gateways):
        found = with_report(found, offered, admitted, every, 1000.0 + n * every / gateways)
    assert found is not None
    return found


@pytest.mark.parametrize(("gateways", "every"), [(1, 1.0), (20, 1.0), (20, 0.1), (3, 10.0)])
def test_rates_and_share_are_those_of_all_gateways(gateways: int, every: float) -> None:
    found = after(gateways, 60, round(1000 * every), round(250 * every), every)
    assert found.share(found.at) == pytest.approx(0.25, rel=0.05)
    assert found.offered / found.span == pytest.approx(1000 * gateways, rel=0.6)
    assert found.admitted_rate(found.at) == pytest.approx(250 * gateways, rel=0.6)


def test_one_report_is_taken_for_how_it_had_been() -> None:
    found = with_report(None, 100, 10, 0.5, 1000.0)
    assert (found.share(1000.0), found.admitted_rate(1000.0)) == (0.1, 20.0)


def test_a_change_is_seen_within_two_spans() -> None:
    found = after(1, 60, 1000, 1000)
    for _ in range(int(2 * SPAN)):
        found = with_report(found, 1000, 100, 1.0, found.at + 1)
    assert found.share(found.at) < 0.25


def test_nobody_who_reports_says_nothing() -> None:
    found = after(1, 10, 100, 10)
    assert found.share(found.at + EXPIRY) == pytest.approx(0.1)
    late = found.at + EXPIRY + 0.1
    assert (found.share(late), found.admitted_rate(late)) == (None, None)
    assert with_report(found, 50, 50, 1.0, late).share(late) == 1.0, "and what was long ago weighs nothing"


def test_where_nothing_was_offered_there_is_no_share() -> None:
    found = with_report(None, 0, 0, 1.0, 1000.0)
    assert found.share(1000.0) is None
    assert found.admitted_rate(1000.0) == 0.0


@given(
    st.lists(
        st.tuples(st.integers(0, 10**9), st.floats(0, 1), st.floats(0.05, 60), st.floats(-1, 100)),
        min_size=1,
        max_size=30,
    )
)
def test_whatever_is_reported_the_share_is_one(told: list[tuple[int, float, float, float]]) -> None:
    found, now = None, 1000.0
    for offered, share, seconds, later in told:
        now += later
        found = with_report(found, offered, int(offered * share), seconds, now)
        if (said := found.share(now)) is not None:
            assert 0 <= said <= 1 + 1e-9
