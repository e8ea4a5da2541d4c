"""How a question tells when lost messages come back."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.client.lost_messages import SLOT, SLOTS, LostMessages, Times, due_groups
from nats_backpressure.protocol.requests import LONGEST_DELAY_MS, MOST_DELIVERIES, MOST_DUE, ConsumerRequest

delays = st.none() | st.floats(-5, 100) | st.floats(0, 1e12)


@given(st.lists(st.tuples(delays, st.integers(1, MOST_DELIVERIES), st.integers(1, 5)), max_size=200))
def test_all_are_told_none_too_early_and_in_few_entries(lost: list[tuple[float | None, int, int]]) -> None:
    counted = Times()
    for delay, deliveries, n in lost:
        counted[None if delay is None else 1000.0 + delay, deliveries] += n
    told = msgspec.json.decode(json.dumps({"due": due_groups(counted, 1000.0)}), type=ConsumerRequest).due
    assert len(told) <= MOST_DUE
    for deliveries in range(1, MOST_DELIVERIES + 1):
        mine = [due for due in told if due.deliveries == deliveries]
        assert sum(due.n for due in mine if due.delay_ms is None) == counted[None, deliveries]
        for delay in [delay for delay, of, _ in lost if of == deliveries and delay is not None]:
            ms = min(LONGEST_DELAY_MS, 1000 * delay)
            later = sum(n for other, of, n in lost if of == deliveries and other is not None and other >= delay)
            assert sum(due.n for due in mine if due.delay_ms is not None and due.delay_ms >= ms - 0.01) >= later


@pytest.mark.parametrize("times", [[1.0, 25.0], [0.1 * n for n in range(1, 33)]])
def test_as_many_times_as_fit_are_told_exactly(times: list[float]) -> None:
    told = due_groups(Times({(1000.0 + one, 1): 1 for one in times}), 1000.0)
    assert [due["delay_ms"] / 1000 for due in told] == pytest.approx(times, abs=SLOT + 0.002)


def test_what_was_returned_is_told_until_it_is_due_and_as_new_until_a_question_is_answered() -> None:
    lost = LostMessages()
    lost.add(1, 1000.0, 2.0)
    lost.add(4, 1000.0)
    told = {"lost": 2, "due": [{"n": 1, "deliveries": 4}, {"n": 1, "deliveries": 1, "delay_ms": 1000}], "earlier": []}
    assert lost.fields(1001.0) == told
    again = lost.fields(1001.5)
    assert (again["lost"], again["due"]) == (1, [{"n": 1, "deliveries": 1, "delay_ms": 500}])
    lost.told()
    assert lost.fields(1001.6) == {"lost": 0, "due": [], "earlier": [{"n": 1, "deliveries": 1, "delay_ms": 400}]}
    assert lost.fields(1002.1) == {"lost": 0}


@given(st.lists(st.floats(0, 100), max_size=300), st.floats(0, 100))
def test_a_delay_is_remembered_a_little_longer_and_few_of_them_are(delays: list[float], now: float) -> None:
    lost = LostMessages()
    for delay in delays:
        lost.add(1, now, delay)
    (told,) = [lost._new]
    late = [at - now - delay for (at, _), delay in zip(sorted(told.elements()), sorted(delays), strict=True)]
    assert all(-1e-6 <= one <= max(SLOT, max(delays) / SLOTS) + 1e-6 for one in late)
    assert len(told) <= 2 * SLOTS * 6


def test_through_an_outage_of_an_hour_few_are_remembered() -> None:
    lost = LostMessages()
    for second in range(3600):
        lost.add(1, 1000.0 + second, 10.0)
        lost.add(1, 1000.0 + second)
        lost.fields(1000.0 + second)
    assert lost.fields(4600.0)["lost"] <= 11
