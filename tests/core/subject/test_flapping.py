"""A load near a mark: one rise and one fall each time it crosses both marks, and none in between."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nats_backpressure.core.model.member import Latches
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.status import latches, thresholds
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Status
from tests.support.exploring import examples

KEY = ConsumerKey("S", "c")
SEEDS = st.integers(0, 2**32)
SAMPLES = 150
INTERVAL = 0.5
POLICY = Policy()
MARK, ALONE = POLICY.pending.overload, POLICY.pending.overload * POLICY.alone_factor

Load = Callable[[random.Random, float], Iterator[int]]


def sine(chance: random.Random, mark: float) -> Iterator[int]:
    size, period, middle = chance.uniform(0.05, 1.2), chance.uniform(3, 60), chance.uniform(0.5, 1.2)
    for n in range(SAMPLES):
        noise = chance.uniform(-0.1, 0.1)
        yield max(0, round(mark * (middle + size * math.sin(2 * math.pi * n / period) + noise)))


def sawtooth(chance: random.Random, mark: float) -> Iterator[int]:
    period, top, bottom = chance.randrange(2, 50), chance.uniform(0.9, 1.5), chance.uniform(0.2, 0.9)
    for n in range(SAMPLES):
        yield round(mark * (bottom + (top - bottom) * (n % period) / period))


def walk(chance: random.Random, mark: float) -> Iterator[int]:
    at, step = chance.uniform(0.4, 1.2), chance.uniform(0.01, 0.5)
    for _ in range(SAMPLES):
        at = abs(at + chance.uniform(-step, step))
        yield round(mark * at)


def crossings(values: list[int], mark: float) -> tuple[int, int]:
    """How often the load went from at or below the release mark to above the mark, and back."""
    rises = falls = 0
    high = False
    for value in values:
        if not high and value > mark:
            rises, high = rises + 1, True
        elif high and value <= mark * POLICY.recovery_threshold:
            falls, high = falls + 1, False
    return rises, falls


def statuses(values: list[int]) -> list[Status]:
    current, results = Latches(), []
    for n, pending in enumerate(values):
        at = 1000.0 + n * INTERVAL
        reading = Reading(KEY, Now(at, at), pending, 0, 0.0, None, latency_evidence=True)
        current = latches.next_latches(current, reading, thresholds.marks(POLICY, reading), POLICY)
        results.append(latches.status(current, POLICY))
    return results


def changes(seen: list[Status], level: Status) -> tuple[int, int]:
    """How often the status rose to `level` or above, and fell below it."""
    above = [False, *(s >= level for s in seen)]
    pairs = list(pairwise(above))
    return pairs.count((False, True)), pairs.count((True, False))


LEVELS = pytest.mark.parametrize(
    ("mark", "level"), [(MARK, Status.WARNING), (ALONE, Status.ACTIVE)], ids=["mark", "alone"]
)
LOADS = pytest.mark.parametrize("load", [sine, sawtooth, walk])


@LEVELS
@LOADS
@settings(max_examples=examples(300))
@given(seed=SEEDS)
def test_the_status_changes_only_when_the_load_crosses_both_marks(
    load: Load, mark: float, level: Status, seed: int
) -> None:
    values = list(load(random.Random(seed), mark))
    rises, falls = changes(statuses(values), level)
    expected_rises, expected_falls = crossings(values, mark)
    assert rises <= expected_rises and falls <= expected_falls
    assert rises - falls in (0, 1)


@LEVELS
@LOADS
def test_the_loads_do_cross_the_mark(load: Load, mark: float, level: Status) -> None:
    moved = [changes(statuses(list(load(random.Random(seed), mark))), level)[0] for seed in range(20)]
    assert sum(moved) > len(moved) / 2


@settings(max_examples=examples(300))
@given(seed=SEEDS)
def test_a_fall_takes_the_whole_hold_at_or_below_the_release_mark(seed: int) -> None:
    values = list(walk(random.Random(seed), MARK))
    seen = statuses(values)
    for n in range(1, SAMPLES):
        if seen[n] < seen[n - 1]:
            held = math.ceil(POLICY.recovery_hold_seconds / INTERVAL) + 1
            assert all(value <= MARK * POLICY.recovery_threshold for value in values[n - held + 1 : n + 1])
