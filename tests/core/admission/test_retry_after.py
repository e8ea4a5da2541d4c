"""Retry-After: the drain time of the backlog, times a factor that is learnt."""

from __future__ import annotations

import pytest

from nats_backpressure.core.admission.load_estimate import LoadEstimate
from nats_backpressure.core.admission.retry_after import LARGEST_FACTOR, RetryAfter, next_retry_after
from nats_backpressure.protocol.values import ConsumerKey

MOST = 600


def estimate(drain: float, demand: float = 100.0) -> LoadEstimate:
    return LoadEstimate(ConsumerKey("S", "c"), 0.0, int(drain * 10), 0, 0, rate=10.0, demand=demand)


def test_it_is_at_least_a_second_and_at_most_the_longest() -> None:
    assert RetryAfter().seconds(MOST) == 1
    assert RetryAfter(base=1000).seconds(MOST) == MOST


def test_it_is_the_drain_time_of_the_slowest_consumer() -> None:
    after = next_retry_after(RetryAfter(), True, [estimate(3), estimate(8)], MOST, 0.0)
    assert (after.base, after.since, after.refusing) == (8, 0.0, True)


@pytest.mark.parametrize(("drain", "base"), [(4.4, 4), (4.9, 5), (3.2, 3), (3.6, 4)])
def test_it_follows_the_drain_time_in_whole_steps(drain: float, base: int) -> None:
    assert next_retry_after(RetryAfter(base=4), True, [estimate(drain)], MOST, 0.0).base == base


@pytest.mark.parametrize(
    ("refusing", "demand", "factor"),
    [
        pytest.param(True, 90.0, 8, id="as much demand as before: callers returned too early"),
        pytest.param(True, 70.0, 4, id="less demand: it stays"),
        pytest.param(True, 50.0, 2, id="half the demand: half as long"),
        pytest.param(False, 90.0, 2, id="no refusal in that time: half as long"),
    ],
)
def test_the_factor_is_learnt_once_per_retry_after(refusing: bool, demand: float, factor: int) -> None:
    was = RetryAfter(base=2, factor=4, since=0.0, demand=100.0, refusing=refusing)
    early = next_retry_after(was, refusing, [estimate(2, demand)], MOST, 7.9)
    assert (early.factor, early.since) == (4, 0.0)
    after = next_retry_after(was, refusing, [estimate(2, demand)], MOST, 8.0)
    assert (after.factor, after.since, after.demand) == (factor, 8.0, demand)


def test_a_change_of_refusing_starts_the_time_again() -> None:
    was = RetryAfter(base=2, factor=4, since=0.0, demand=100.0, refusing=True)
    after = next_retry_after(was, False, [estimate(2)], MOST, 100.0)
    assert (after.factor, after.since) == (4, 100.0)


def test_the_factor_is_bounded() -> None:
    was = RetryAfter(base=1, factor=LARGEST_FACTOR, since=0.0, demand=1.0, refusing=True)
    assert next_retry_after(was, True, [estimate(1)], 10**9, 10.0**9).factor == LARGEST_FACTOR
