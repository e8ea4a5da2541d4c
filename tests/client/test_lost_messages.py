"""How a question tells when lost messages come back."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.client.lost_messages import SLOT, Lost, due_groups
from nats_backpressure.protocol.requests import LONGEST_DELAY_MS, MOST_DELIVERIES, MOST_DUE, ConsumerRequest

delays = st.none() | st.floats(-5, 100) | st.floats(0, 1e12)


@given(st.lists(st.tuples(delays, st.integers(1, MOST_DELIVERIES), st.integers(1, 5)), max_size=200))
def test_all_are_told_none_too_early_and_in_few_entries(lost: list[tuple[float | None, int, int]]) -> None:
    counted = Lost()
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
    told = due_groups(Lost({(1000.0 + one, 1): 1 for one in times}), 1000.0)
    assert [due["delay_ms"] / 1000 for due in told] == pytest.approx(times, abs=SLOT + 0.002)
