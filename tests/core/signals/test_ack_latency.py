"""AckLatency: the window of the latency of now, which shares what it holds with that of all acks."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from nats_backpressure.core.model.samples import ConsumerConfig, Sample
from nats_backpressure.core.signals.ack_latency import AckLatency
from nats_backpressure.core.signals.quantiles import Quantiles
from nats_backpressure.core.signals.rate_window import IntervalCounts, RateWindow
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey

SHARES = (0.05, 0.5, 0.95)


class Pair:
    """An AckLatency, and beside it two windows as they are defined."""

    def __init__(self) -> None:
        self.latency, self.all, self.current = AckLatency(), Quantiles(), Quantiles()

    def ack(self, now: float, seconds: float, times: int = 1) -> None:
        if now - seconds >= self.latency.idle_at:
            self.current.add(now, seconds - self.latency.outages.unseen(now - seconds, now), times)
        self.all.add(now, seconds, times)
        self.latency.add_metrics(now, seconds, times)

    def sample(self, now: float, pending: int) -> None:
        at, key = Now(now, now), ConsumerKey("S", "c")
        sample = Sample(key, "", ConsumerConfig(sampled=True), at, pending, 0, 0, 0, 9, 9, 9, 9)
        self.latency.begin_sample(None, sample, 0, restarted=False)
        self.latency.latency(sample, RateWindow(), IntervalCounts(), all_returned=False)
        if pending == 0:
            self.current = Quantiles()

    def shown(self, now: float) -> Iterator[tuple[object, object]]:
        yield self.latency._all.at(now, *SHARES), self.all.at(now, *SHARES)
        yield self.latency._current.at(now, *SHARES), self.current.at(now, *SHARES)

    @property
    def is_one(self) -> bool:
        return self.latency._current is self.latency._all


@pytest.mark.parametrize("seed", range(40))
def test_the_latency_of_now_is_that_of_a_window_of_its_own(seed: int) -> None:
    dice, pair, now = random.Random(seed), Pair(), 100.0
    slowest, seldom = dice.choice([0.1, 5.0, 40.0]), dice.choice([0.002, 0.02, 0.2])
    for _ in range(600):
        now += dice.choice([0.01, 0.3, 2.0])
        if dice.random() < 0.005:
            pair.latency.outages.add_interval(now, now + 4.0, moved=False)
            now += 4.0
        if dice.random() < 0.2:
            pair.sample(now - dice.choice([0.0, 0.3]), pending=0 if dice.random() < seldom * 5 else 7)
        else:
            pair.ack(now - dice.choice([0.0, 0.2]), slowest * dice.random(), dice.choice([1, 9]))
        assert all(got == expected for got, expected in pair.shown(now))


def test_a_consumer_that_is_never_idle_has_one_window() -> None:
    """Also one that was, or that saw an outage: once what was acknowledged by then is too old to be shown."""
    pair = Pair()
    for n in range(200):
        pair.ack(100.0 + n, 0.5)
    assert pair.is_one
    pair.sample(300.0, pending=0)
    assert not pair.is_one
    for n in range(1, 70):
        pair.ack(300.0 + n, 0.5)
    assert pair.is_one
    pair.latency.outages.add_interval(370.0, 375.0, moved=False)
    pair.ack(375.1, 6.0)
    assert not pair.is_one
    for n in range(1, 70):
        pair.ack(376.0 + n, 0.5)
    assert pair.is_one
