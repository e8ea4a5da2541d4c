"""A sample that says the same as the last one is not computed, and nothing shows it: against one that computes all."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.model.samples import ConsumerConfig, Retention, Sample, StreamLook
from nats_backpressure.core.signals.rest import MOST_TIMES, Rest
from nats_backpressure.core.signals.tracker import ConsumerTracker
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Diagnosis

KEY = ConsumerKey("S", "c")
CONFIG = ConsumerConfig(filters=("orders",), max_ack_pending=100)
RESTING = Sample(KEY, "then", CONFIG, Now(0.0, 0.0), 0, 0, 0, 1, 500, 50, 500, 50, 9.0, 8.0)
LOOK = StreamLook("S", "then", 1, 1000, 1000, ("orders", "bills"), retention=Retention(max_age=60.0), oldest_age=30.0)


class PlainTracker(ConsumerTracker):
    """Computes every sample."""

    def add_sample(self, sample: Sample, look: StreamLook, *, early: bool = False) -> Reading | str:
        self.rest = None
        return super().add_sample(sample, look, early=early)


class Pair:
    """The same samples and hints for a tracker that rests and for one that does not."""

    def __init__(self) -> None:
        self.rests, self.computes = ConsumerTracker(), PlainTracker()
        self.repeated = 0

    def add(self, sample: Sample, look: StreamLook, *, early: bool = False) -> Reading | str:
        before = self.rests.rest
        reading = self.rests.add_sample(sample, look, early=early)
        self.repeated += before is not None and self.rests.rest is before
        assert reading == self.computes.add_sample(sample, look, early=early)
        return reading

    def hint(self, kind: str, now: Now) -> None:
        for tracker in (self.rests, self.computes):
            match kind:
                case "ack":
                    tracker.ack_seen(0.05, 1, now)
                case "nak":
                    tracker.nak_seen(now)
                case _:
                    tracker.dropped_seen(now)


def samples(dice: random.Random, seconds: float) -> Iterator[tuple[str, Sample, StreamLook]]:
    """What a server shows of a consumer that works now and then, and what it publishes."""
    sample, look, at, traffic = RESTING, LOOK, 100.0, dice.random() < 0.7
    if dice.random() < 0.3:
        look = replace(LOOK, subjects=("orders",), retention=dice.choice((None, LOOK.retention)))
    acked = delivered = 90.0
    while at < 100.0 + seconds:
        interval = dice.choice((0.05, 0.1, 0.1, 0.5, 1.0, 5.0))
        calm = dice.random() < 0.8
        for _ in range(dice.choice((1, 3, 10, 60, 150)) if calm else dice.randrange(1, 8)):
            at += interval * dice.uniform(0.9, 1.1)
            if dice.random() < 0.004:
                at += dice.choice((9.0, 12.0, 40.0))
            if not calm:
                sample, look, acked, delivered = moved(dice, sample, look, at, acked, delivered)
            else:
                sample = replace(sample, pending=0, inflight=0, floor_stream=sample.delivered_stream)
            odd = dice.random()
            shown = sample
            if odd < 0.01:
                shown = replace(sample, pending=10**9)
            elif odd < 0.02:
                shown = replace(sample, delivered_stream=0, delivered_consumer=0, floor_stream=0, floor_consumer=0)
            elif odd < 0.03:
                sample = shown = replace(sample, waiting=dice.randrange(3))
            elif odd < 0.035:
                sample = shown = replace(sample, paused=not sample.paused)
            elif odd < 0.04:
                yield dice.choice(("ack", "nak", "dropped")), replace(sample, at=Now(at, at)), look
            elif odd < 0.05:
                look = replace(look, last_seq=look.last_seq + 5, messages=look.messages + 5)
            elif odd < 0.055:
                look = replace(look, fill=dice.choice((None, 0.5, 0.7, 0.99, 1.0)))
            elif odd < 0.15 and traffic:
                look = elsewhere(dice, look)
            elif odd < 0.06:
                sample = shown = replace(sample, created=sample.created + "!")
            times = {"since_delivery": at - delivered, "since_ack": at - acked + dice.uniform(0, 0.01)}
            shown = replace(shown, at=Now(at, at + 1e9), **times)
            yield "early" if odd > 0.995 else "sample", shown, replace(look, oldest_age=at % 60)


def elsewhere(dice: random.Random, look: StreamLook) -> StreamLook:
    """Messages of other subjects come and go, or are purged."""
    come, gone = dice.randrange(50), dice.randrange(50)
    if dice.random() < 0.05:
        gone = look.messages
    gone = min(gone, look.last_seq + come - look.first_seq)
    holes = dice.randrange(3) if dice.random() < 0.1 else 0
    last, first = look.last_seq + come, look.first_seq + gone
    return replace(look, first_seq=first, last_seq=last, messages=max(0, last - first + 1 - holes))


def moved(
    dice: random.Random, sample: Sample, look: StreamLook, at: float, acked: float, delivered: float
) -> tuple[Sample, StreamLook, float, float]:
    """Messages come, are delivered and acknowledged, or not."""
    come = dice.randrange(30)
    look = replace(look, last_seq=look.last_seq + come, messages=look.messages + come)
    given = dice.randrange(sample.pending + come + 1)
    done = dice.randrange(sample.inflight + given + 1)
    place = sample.delivered_stream + given
    sample = replace(
        sample,
        pending=sample.pending + come - given,
        inflight=sample.inflight + given - done,
        delivered_stream=place,
        delivered_consumer=sample.delivered_consumer + given,
        floor_stream=max(sample.floor_stream, place - (sample.inflight + given - done)),
        redelivered=dice.choice((0, 0, 0, 1)),
    )
    return sample, look, at if done else acked, at if given else delivered


@given(st.integers(0, 2**32))
def test_readings_are_the_same_as_if_every_sample_were_computed(seed: int) -> None:
    pair = Pair()
    for kind, sample, look in samples(random.Random(seed), 300.0):
        if kind in ("sample", "early"):
            pair.add(sample, look, early=kind == "early")
        else:
            pair.hint(kind, sample.at)


def test_the_property_repeats_many_samples() -> None:
    pairs = [Pair() for _ in range(5)]
    for seed, pair in enumerate(pairs):
        for kind, sample, look in samples(random.Random(seed), 600.0):
            if kind == "sample":
                pair.add(sample, look)
    assert all(pair.repeated > 50 for pair in pairs)


def resting(pair: Pair, at: float = 100.0) -> float:
    """Feed equal samples until the tracker rests; the time of the last one."""
    for _ in range(300):
        pair.add(replace(RESTING, at=Now(at, at)), LOOK)
        if pair.rests.rest is not None:
            return at
        at += 0.1
    raise AssertionError("it never rests")


def test_a_consumer_at_rest_holds_no_slots_and_few_times() -> None:
    pair = Pair()
    at = resting(pair)
    for n in range(1, 720):
        pair.add(replace(RESTING, at=Now(at + 5 * n, at)), LOOK)
    assert pair.repeated == 719
    rest = pair.rests.rest
    assert rest is not None and len(rest.times) <= 6 and len(rest.points) <= 16
    assert not pair.rests._flow._slots and pair.rests._latency.is_empty


@pytest.mark.parametrize(
    "change",
    [
        {"pending": 1, "delivered_stream": 499, "created": "new"},
        {"delivered_consumer": 51, "delivered_stream": 501},
        {"waiting": 2},
        {"paused": True},
        {"config": replace(CONFIG, ack_wait=3.0)},
        {"created": "later"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_sample_that_differs_is_computed(change: dict[str, object]) -> None:
    pair = Pair()
    at = resting(pair)
    pair.add(replace(RESTING, at=Now(at + 0.1, at), **change), LOOK)
    assert pair.rests.rest is None and pair.repeated == 0


def test_a_stream_that_moved_costs_no_more_than_counting_losses() -> None:
    pair = Pair()
    at = resting(pair)
    for n in range(1, 100):
        look = replace(LOOK, first_seq=n, last_seq=1000 + 2 * n, messages=1001 + n, fill=0.5 + n / 1000)
        reading = pair.add(replace(RESTING, at=Now(at + 0.1 * n, at)), look)
        assert not isinstance(reading, str) and reading.stream_fill == look.fill
    assert pair.repeated == 99


def test_a_stream_that_is_full_or_has_other_subjects_is_computed() -> None:
    for look in (replace(LOOK, fill=1.0), replace(LOOK, at_limit=True), replace(LOOK, subjects=("a",))):
        pair = Pair()
        at = resting(pair)
        pair.add(replace(RESTING, at=Now(at + 0.1, at)), look)
        assert pair.rests.rest is None


def test_a_gap_longer_than_the_rate_window_is_computed() -> None:
    pair = Pair()
    at = resting(pair)
    pair.add(replace(RESTING, at=Now(at + 11.0, at)), LOOK)
    assert pair.rests.rest is None


def test_a_message_given_up_is_diagnosed_until_it_is_old() -> None:
    pair, at = Pair(), 100.0
    pair.add(replace(RESTING, at=Now(at, at)), LOOK)
    pair.hint("dropped", Now(at, at))
    shown = set()
    for n in range(1, 90):
        reading = pair.add(replace(RESTING, at=Now(at + n, at)), LOOK)
        assert not isinstance(reading, str)
        shown.add(reading.diagnosis)
        assert pair.rests.rest is None or n > 60
    assert shown >= {Diagnosis.POISON, Diagnosis.IDLE} and pair.rests.rest is not None


def test_the_times_of_very_many_readings_are_bounded() -> None:
    pair = Pair()
    at = resting(pair)
    for n in range(1, 3 * MOST_TIMES):
        pair.add(replace(RESTING, at=Now(at + 0.002 * n, at)), LOOK)
        assert pair.rests.rest is None or len(pair.rests.rest.times) <= MOST_TIMES
    assert pair.repeated > 2 * MOST_TIMES


def test_what_is_trimmed_is_not_needed() -> None:
    rest = Rest(100.0, 100.0)
    for n in range(1, 2000):
        rest.add(100.0 + 0.1 * n)
    intervals = rest.intervals
    assert sum(seconds for _, seconds in intervals) >= 10.0 and len(intervals) < 220
    assert intervals[-1] == (rest.newest, pytest.approx(0.1))
