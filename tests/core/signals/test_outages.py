"""What is not seen of a consumer while nobody can look, and how that is told from samples that are rare."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.signals.outages import APART, RECONNECT, REMEMBERED, Outages
from nats_backpressure.protocol.timestamps import Now
from tests.core.signals.test_tracker import Consumer

AGES = 100.0


def watched(outages: Outages, until: float, every: float = 0.5) -> None:
    """Samples that come every so often, for long."""
    at = until - math.ceil(AGES / every) * every
    while at < until - every / 2:
        outages.add_interval(at, at + every, True)
        at += every


@pytest.mark.parametrize(
    ("every", "gap", "is_outage"), [(0.5, 1.9, False), (0.5, 2.1, True), (1.5, 2.9, False), (1.5, 3.1, True)]
)
def test_an_outage_is_longer_than_two_seconds_and_twice_as_long_as_usual(
    every: float, gap: float, is_outage: bool
) -> None:
    outages = Outages()
    watched(outages, 100.0, every)
    assert outages.add_interval(100.0, 100.0 + gap, True) is is_outage


def test_what_is_seen_is_without_the_outages() -> None:
    outages = Outages()
    watched(outages, 100.0)
    outages.add_interval(100.0, 120.0, True)
    assert outages.seen(90.0, 130.0) == pytest.approx(20.0)
    assert outages.seen(110.0, 130.0) == pytest.approx(10.0)
    assert outages.seen(120.0, 130.0) == pytest.approx(10.0)


def grace(outages: Outages, since: float, until: float) -> float:
    """Seconds after an outage that belong to it, while no worker moves."""
    assert outages.add_interval(since, until, False)
    at = until
    while outages.add_interval(at, at + 0.5, False):
        at += 0.5
    return at - until


def test_an_outage_ends_for_workers_after_their_time_to_connect_and_when_one_moves() -> None:
    outages = Outages()
    watched(outages, 100.0)
    assert grace(outages, 100.0, 120.0) == RECONNECT
    watched(outages, 300.0)
    outages.add_interval(300.0, 320.0, False)
    assert outages.add_interval(320.0, 321.0, False)
    assert not outages.add_interval(321.0, 322.0, True)
    assert not outages.add_interval(322.0, 323.0, False), "it is over"


def test_of_outages_that_follow_one_another_soon_only_the_first_gives_time_to_connect() -> None:
    outages = Outages()
    watched(outages, 100.0)
    assert grace(outages, 100.0, 105.0) == RECONNECT
    assert grace(outages, 118.0, 134.0) == 0.0
    assert grace(outages, 135.0 + APART - 20.0, 135.0 + APART + 40.0) == RECONNECT


def test_a_first_reply_that_was_late_does_not_end_the_outage() -> None:
    outages = Outages()
    watched(outages, 100.0)
    assert outages.add_interval(100.0, 157.0, False)
    assert grace(outages, 157.0, 160.0) == RECONNECT
    assert outages.seen(99.0, 164.0) == pytest.approx(2.0)


def test_an_outage_that_follows_a_long_one_is_one_too() -> None:
    outages = Outages()
    watched(outages, 100.0)
    outages.add_interval(100.0, 160.0, True)
    for n in range(70):
        outages.add_interval(160.0 + 0.5 * n, 160.5 + 0.5 * n, True)
    assert outages.add_interval(195.0, 203.0, True)


PLANNED = [1.0, 1.3, 2.0, 3.0, 4.0, 5.0]


def planned(outages: Outages, since: float, every: float, moved: bool, late: float = 1.0) -> list[bool]:
    """Of samples that are planned so often, and come so much later, whether each interval was an outage."""
    outages.planned, times = every, [since + late * every * n for n in range(13)]
    return [outages.add_interval(*both, moved) for both in itertools.pairwise(times)]


@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize("late", [0.9, 1.0, 1.5])
@pytest.mark.parametrize(("before", "after"), list(itertools.product([0.1, *PLANNED], PLANNED)))
def test_samples_that_are_planned_more_rarely_or_more_often_are_no_outages(
    before: float, after: float, late: float, moved: bool
) -> None:
    outages, at = Outages(), 0.0
    for every in (before, after, before, after):
        assert not any(planned(outages, at, every, moved, late)), every
        at += 12 * late * every


@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize("every", [0.1, 0.4, *PLANNED])
@pytest.mark.parametrize("down", [3.0, 4.0, 7.0, 20.0, 60.0])
def test_an_outage_is_more_than_twice_what_was_planned(every: float, down: float, moved: bool) -> None:
    outages = Outages()
    outages.planned = every
    watched(outages, 100.0, every)
    assert outages.add_interval(100.0, 100.0 + down, moved) is (down > 2 * every)


def test_what_has_not_come_yet_may_be_late_for_twice_as_long_as_planned() -> None:
    outages = Outages()
    watched(outages, 100.0, 1.0)
    outages.planned = 4.0
    assert not outages.may_be_outage(100.0, 107.9) and outages.may_be_outage(100.0, 108.1)


@given(st.lists(st.floats(-1e6, 0.0), max_size=8), st.booleans())
def test_time_that_goes_back_is_no_outage_and_hides_none(back: list[float], moved: bool) -> None:
    outages = Outages()
    watched(outages, 100.0)
    assert not any(outages.add_interval(100.0, 100.0 + time, moved) for time in back)
    assert outages.add_interval(100.0, 102.1, moved)


@pytest.mark.parametrize("every", [5.0, 15.0, 60.0])
def test_samples_that_become_rare_are_outages_only_at_first(every: float) -> None:
    outages = Outages()
    watched(outages, 100.0)
    found = [outages.add_interval(100.0 + every * n, 100.0 + every * (n + 1), True) for n in range(20)]
    assert sum(found) <= 3 and not any(found[3:])


def test_the_oldest_outage_is_forgotten() -> None:
    outages = Outages()
    for n in range(REMEMBERED + 1):
        watched(outages, 100.0 * n)
        outages.add_interval(100.0 * n, 100.0 * n + 20.0, True)
    end = 100.0 * REMEMBERED + 20.0
    assert end - outages.seen(-10.0, end) == pytest.approx(-10.0 + 20.0 * REMEMBERED)


@pytest.mark.parametrize("sampled", [False, True], ids=["before the next sample", "after one that seems to be old"])
def test_the_outage_is_in_no_ack_metric_that_is_compared(sampled: bool) -> None:
    consumer = Consumer()
    consumer.publish(100)
    consumer.deliver(60)
    for _ in range(20):
        consumer.read(0.5)
    consumer.at += 40.0
    if sampled:
        late = replace(consumer.sample(), at=Now(consumer.at - 4.0, consumer.at - 4.0))
        consumer.track.add_sample(late, consumer.look())
    for _ in range(30):
        consumer.track.ack_seen(41.0, 1, Now(consumer.at, consumer.at))
    consumer.ack(30)
    reading = consumer.read(0.3)
    assert reading.latency == pytest.approx(1000.0, rel=0.05)
    assert reading.p95 == pytest.approx(41_000.0, rel=0.05)


def test_a_reply_that_came_late_and_seems_to_be_old_makes_no_stall_longer() -> None:
    consumer = Consumer()
    consumer.publish(1000)
    for _ in range(20):
        consumer.deliver(10)
        consumer.read(0.5)
        consumer.ack(10)
    consumer.deliver(10)
    consumer.read(0.5)
    consumer.at += 9.0
    late = replace(consumer.sample(), at=Now(consumer.at - 3.0, consumer.at - 3.0))
    reading = consumer.track.add_sample(late, consumer.look())
    assert isinstance(reading, Reading) and reading.stall <= 600.0
