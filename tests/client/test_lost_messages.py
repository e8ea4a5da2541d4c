"""How a question tells when lost messages come back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.client.due_groups import SLOT, not_due
from nats_backpressure.client.lost_messages import GROUPED_FOR, SLOTS, LostMessages
from nats_backpressure.protocol.requests import MOST_DELIVERIES, MOST_DUE


def test_what_was_returned_is_told_until_it_is_due_and_as_new_until_a_question_is_answered() -> None:
    lost = LostMessages()
    lost.add(1, 1000.0, 3.0)
    lost.add(4, 1000.0)
    told = {"lost": 2, "due": [{"n": 1, "deliveries": 4}, {"n": 1, "deliveries": 1, "delay_ms": 2000}], "earlier": []}
    assert lost.fields(1001.0) == told
    again = lost.fields(1001.5)
    assert (again["lost"], again["due"]) == (1, [{"n": 1, "deliveries": 1, "delay_ms": 1500}])
    lost.answered()
    assert lost.fields(1002.0) == {"lost": 0, "due": [], "earlier": [{"n": 1, "deliveries": 1, "delay_ms": 1000}]}
    assert lost.fields(1003.1) == {"lost": 0}


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


def test_earlier_ones_are_told_once_a_second_and_in_each_question_that_tells_new_ones() -> None:
    """A sidecar that started since takes them from the first question that it hears of an asker that tells."""
    lost = LostMessages()
    lost.add(1, 1000.0, 60.0)
    told = []
    for n in range(1, 31):
        if n == 25:
            lost.add(2, 1000.0 + n / 10, 60.0)
        fields = lost.fields(1000.0 + n / 10)
        lost.answered()
        told.append((n, sum(one["n"] for one in fields.get("earlier", ()))))
    assert [one for one in told if one[1]] == [(11, 1), (21, 1), (25, 1)]


@given(
    delays=st.lists(st.tuples(st.floats(0.01, 300), st.integers(1, MOST_DELIVERIES)), max_size=60),
    answered=st.booleans(),
)
def test_what_earlier_questions_told_is_told_whole_and_never_too_early(
    *, delays: list[tuple[float, int]], answered: bool
) -> None:
    lost, ends = LostMessages(), list[float]()
    for n, (delay, deliveries) in enumerate(delays):
        now = 1000.0 + n * 0.3
        lost.add(deliveries, now, delay)
        ends.append(now + delay)
        fields = lost.fields(now)
        told = sorted(one["delay_ms"] / 1000 for one in [*fields["due"], *fields["earlier"]] for _ in range(one["n"]))
        left = sorted(end - now for end in ends if end > now)
        assert len(fields["due"]) <= MOST_DUE and len(fields["earlier"]) <= MOST_DUE
        assert len(told) >= len(left)
        assert all(ours >= true - 0.002 for ours, true in zip(reversed(told), reversed(left), strict=False))
        assert len(told) <= sum(end > now - GROUPED_FOR - 0.35 * 300 for end in ends)
        if answered:
            lost.answered()


@pytest.mark.parametrize("answered", [True, False])
def test_a_question_goes_through_few_times_however_many_there_are(
    monkeypatch: pytest.MonkeyPatch, *, answered: bool
) -> None:
    """With 1,900 times each pull took 111 ms of the worker's loop."""
    lost = LostMessages()
    for n in range(20_000):
        lost.add(1 + n % MOST_DELIVERIES, 1000.0, 1.0 + n * n / 100)
    lost.fields(1000.0)
    if answered:
        lost.answered()
        lost.fields(1000.1)
    through = list[int]()

    def counting(times, now):
        through.append(len(times))
        return not_due(times, now)

    monkeypatch.setattr("nats_backpressure.client.lost_messages.not_due", counting)
    for n in range(2, 10):
        lost.add(1, 1000.0 + n / 10, 5.0)
        lost.fields(1000.0 + n / 10)
        if answered:
            lost.answered()
    assert max(through) <= 2 * MOST_DUE
