"""The rates of one consumer for the adaptive loop."""

from __future__ import annotations

import math

import pytest

from nats_backpressure.core.admission.load_estimate import LONGEST_GAP, STILL, LoadEstimate, next_estimate
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey


def reading(at: float, pending: int, delivered: int, **more) -> Reading:
    return Reading(ConsumerKey("S", "c"), Now(at, 0.0), pending, 0, None, None, delivered_consumer=delivered, **more)


def after(*readings: Reading, applied: float = 1.0) -> LoadEstimate:
    estimate = None
    for one in readings:
        estimate = next_estimate(estimate, one, applied)
    assert estimate is not None
    return estimate


def test_the_first_reading_gives_counts_and_no_rates() -> None:
    first = after(reading(0.0, 10, 0))
    assert (first.pending, first.lasted, first.rate, first.drain) == (10, 0.0, None, None)


def test_rates_come_from_what_was_delivered_while_messages_waited() -> None:
    estimate = after(*(reading(n, 100, 50 * n) for n in range(5)))
    assert estimate.rate == pytest.approx(50.0)
    assert estimate.arrival_rate == pytest.approx(50.0)
    assert estimate.drain == pytest.approx(2.0)


def test_redeliveries_are_no_progress() -> None:
    estimate = after(*(reading(n, 100, 50 * n, redelivery_ratio=0.5) for n in range(5)))
    assert estimate.rate == pytest.approx(25.0)


@pytest.mark.parametrize(
    ("second", "lasted"),
    [
        pytest.param(reading(1.0, 10, 10), 1.0, id="the next reading"),
        pytest.param(reading(LONGEST_GAP + 0.1, 10, 10), 0.0, id="after too long a gap"),
        pytest.param(reading(1.0, 10, 3), 0.0, id="another incarnation"),
    ],
)
def test_an_interval_counts_only_within_one_life_and_without_a_gap(second: Reading, lasted: float) -> None:
    assert after(reading(0.0, 10, 5), second).lasted == lasted


def test_a_paused_consumer_is_not_measured() -> None:
    assert after(*(reading(n, 100, 50 * n, paused=True) for n in range(5))).busy == 0.0


def test_waiting_messages_without_any_ack_are_a_rate_of_zero_after_a_while() -> None:
    assert after(*(reading(n, 10, 0) for n in range(3))).rate is None
    still = after(*(reading(n, 10, 0) for n in range(10)))
    assert still.busy >= STILL
    assert (still.rate, still.drain) == (0.0, math.inf)


def test_a_first_rate_needs_some_acks_or_some_time() -> None:
    assert after(reading(0.0, 100, 0), reading(0.1, 100, 5)).rate is None
    assert after(reading(0.0, 100, 0), reading(0.1, 100, 10)).rate == pytest.approx(100.0)


def test_a_learnt_capacity_fills_up_what_was_measured() -> None:
    assert after(reading(0.0, 0, 0, capacity=40.0), reading(1.0, 0, 0, capacity=40.0)).rate == pytest.approx(40.0)


def test_a_sudden_rise_is_used_less_chance_and_per_applied_share() -> None:
    estimate = after(reading(0.0, 0, 0), reading(1.0, 100, 0), applied=0.5)
    assert estimate.sudden == pytest.approx((100 - 2 * 10) / 0.5)
    assert estimate.share == 0.5
