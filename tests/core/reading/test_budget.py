"""The budget of requests: its rate, and a short burst."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.core.reading.budget import BURST, RequestBudget


def test_the_budget_spreads_requests_and_allows_a_short_burst() -> None:
    budget = RequestBudget(10)
    assert [round(budget.take(100.0), 3) for _ in range(6)] == [0.0, 0.0, 0.0, 0.1, 0.2, 0.3]
    assert budget.ready_in(100.0) == pytest.approx(0.3) and budget.ready_in(100.3) == pytest.approx(0.0)


@given(st.lists(st.floats(0, 0.2), min_size=20, max_size=200), st.floats(1, 1000))
def test_no_second_has_more_requests_than_the_budget(gaps: list[float], rate: float) -> None:
    budget, now, sent = RequestBudget(rate), 0.0, []
    for gap in gaps:
        now += gap
        sent.append(now + budget.take(now))
    for n, first in enumerate(sent):
        assert sum(first <= at < first + 1 for at in sent[n:]) <= rate * (1 + BURST) + 2


def test_another_rate_holds_for_what_waits_too() -> None:
    budget = RequestBudget(1)
    for _ in range(5):
        budget.take(100.0)
    waits = budget.ready_in(100.0)
    budget.set_rate(10, 100.0)
    assert budget.ready_in(100.0) == pytest.approx((waits + 1) / 10 - 0.1)
    assert budget.take(200.0) == 0.0
