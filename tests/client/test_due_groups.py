"""How lost messages are summed up for a question."""

from __future__ import annotations

import json
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.client.due_groups import DROPPED, SLOT, Times, as_field, grouped
from nats_backpressure.protocol.requests import LONGEST_DELAY_MS, MOST_DELIVERIES, MOST_DUE, ConsumerRequest, Due

NOW = 1000.0

delays = st.none() | st.floats(-5, 100) | st.floats(0, 1e12)


def told_of(times: Times) -> tuple[Due, ...]:
    body = json.dumps({"due": as_field(grouped(times, NOW), NOW)})
    return msgspec.json.decode(body, type=ConsumerRequest).due or ()


@given(st.lists(st.tuples(delays, st.integers(1, MOST_DELIVERIES), st.integers(1, 5)), max_size=200))
def test_all_are_told_none_too_early_and_in_few_entries(lost: list[tuple[float | None, int, int]]) -> None:
    counted = Times()
    for delay, deliveries, n in lost:
        counted[DROPPED if delay is None else NOW + delay, deliveries] += n
    due = told_of(counted)
    assert len(due) <= MOST_DUE
    assert sum(one.n for one in due) == counted.total()
    assert sum(one.n for one in due if one.delay_ms is None) == sum(n for delay, _, n in lost if delay is None)
    for delay, deliveries, _ in lost:
        assert told_from(due, delay, deliveries) >= sum(
            n for at, of, n in lost if of >= deliveries and (at == delay or (None not in (at, delay) and at > delay))
        )


def told_from(due: tuple[Due, ...], delay: float | None, deliveries: int) -> int:
    """How many were told with that delay or a longer one, and as many deliveries or more."""
    least = -1 if delay is None else min(LONGEST_DELAY_MS, 1000 * delay) - 0.01
    of = [one for one in due if one.deliveries >= deliveries and (one.delay_ms is None) == (delay is None)]
    return sum(one.n for one in of if (one.delay_ms or 0) >= least)


@pytest.mark.parametrize("delays", [[1.0, 25.0], [0.1 * n for n in range(1, 33)], [2.0**n for n in range(20)]])
def test_as_many_times_as_fit_are_told_exactly(delays: list[float]) -> None:
    due = told_of(Times({(NOW + one, 1): 1 for one in delays}))
    assert [one.delay_ms / 1000 for one in due if one.delay_ms is not None] == pytest.approx(delays, abs=0.002)


def test_times_within_a_slot_are_told_as_the_latest() -> None:
    assert told_of(Times({(NOW + 1.0, 1): 1, (NOW + 1.0 + SLOT / 2, 1): 2})) == (Due(3, 1025),)


@pytest.mark.parametrize("dropped", [0, 100], ids=["all delayed", "some dropped"])
@pytest.mark.parametrize("deliveries", [1, 5, MOST_DELIVERIES])
@pytest.mark.parametrize("longest", [60.0, 3600.0, LONGEST_DELAY_MS / 1000])
@pytest.mark.parametrize("spread", ["evenly", "by doubling"])
def test_however_many_times_and_deliveries_there_are_few_are_told_much_too_late(
    spread: str, longest: float, deliveries: int, dropped: int
) -> None:
    """Of 5,000 with delays to an hour and 15 numbers of deliveries each was told 1,762 s too late."""
    random, times = Random(1), Times()
    for _ in range(5000):
        of, share = random.randint(1, deliveries), random.random()
        delay = longest * share if spread == "evenly" else 0.5 * (2 * longest) ** share
        times[NOW + delay, of] += 1
    for _ in range(dropped):
        times[DROPPED, random.randint(1, deliveries)] += 1
    due = told_of(times)
    for of in range(1, deliveries + 1):
        assert sum(one.n for one in due if one.deliveries >= of) >= sum(
            n for (_, more), n in times.items() if more >= of
        )
    late = {delay: told - delay for delay, told in paired(times)}
    assert all(one >= -0.001 for one in late.values())
    most = 0.35 if longest <= 3600 else 1.0
    assert all(one <= max(SLOT, most * delay) + 0.002 for delay, one in late.items())
    assert sum(late.values()) <= most / 2 * sum(late)


def paired(times: Times) -> list[tuple[float, float]]:
    """(true, told) seconds of each delayed message, both in order."""
    true = sorted(at - NOW for at, _ in times.elements() if at != DROPPED)
    due = sorted(one.delay_ms / 1000 for one in told_of(times) for _ in range(one.n) if one.delay_ms is not None)
    return list(zip(true, due, strict=True))
