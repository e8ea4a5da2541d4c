"""Windows over the statuses of a subject: against brute force, over a day, and in bounded memory."""

from __future__ import annotations

import random
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.time_windows import (
    MEASURES,
    MOST_WAITING,
    NOTHING,
    PACKED,
    SLOTS,
    TIERS,
    TimeWindows,
    Values,
    measures_of,
)
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Status

KEY = ConsumerKey("S", "c")


def values(pending: int | None = 0, p95: float | None = None) -> Values:
    return NOTHING if pending is None else (pending, 0, p95, float(pending), None)


def slots(window: TimeWindows) -> int:
    return sum(1 for tier in window._tiers for _ in tier.slots())


def test_the_measures_of_a_reading_are_in_the_order_of_their_names() -> None:
    reading = Reading(KEY, Now(1, 1), 1, 2, None, None, p95=3.0, arrival_rate=4.0, ack_rate=5.0)
    assert measures_of(reading) == tuple(getattr(reading, name) for name in MEASURES) == (1, 2, 3.0, 4.0, 5.0)
    assert measures_of(None) == NOTHING


def test_a_minute_is_exact_while_nothing_is_dropped_from_it() -> None:
    window = TimeWindows()
    for second in range(40):
        status = Status.ACTIVE if 10 <= second < 25 else Status.INACTIVE
        window.add(1000.0 + second, status, values(second))
    view = window.window(1040.0, 60)
    assert view.seconds == pytest.approx({Status.UNKNOWN: 0, Status.INACTIVE: 25, Status.WARNING: 0, Status.ACTIVE: 15})
    assert view.coverage == pytest.approx(40 / 60)
    pending = view.measures["pending"]
    assert (pending.low, pending.mean, pending.high) == (0, 19.5, 39)
    assert view.measures["p95"].mean is None is view.measures["ack_rate"].mean


def test_a_day_with_one_bad_hour_is_in_every_window() -> None:
    window = TimeWindows()
    for second in range(0, 86_400, 5):
        bad = 43_200 <= second < 46_800
        window.add(second, Status.ACTIVE if bad else Status.INACTIVE, values(2000 if bad else 3))
    day, hour = window.window(86_400, 86_400), window.window(86_400, 3600)
    assert day.seconds[Status.ACTIVE] == pytest.approx(3600)
    assert sum(day.seconds.values()) == pytest.approx(86_400)
    assert (day.measures["pending"].low, day.measures["pending"].high) == (3, 2000)
    assert day.measures["pending"].mean == pytest.approx((23 * 3 + 2000) / 24)
    assert hour.seconds[Status.ACTIVE] == 0 and hour.measures["pending"].high == 3
    assert hour.coverage == day.coverage == pytest.approx(1.0)


def test_what_is_older_than_the_window_is_forgotten_and_a_gap_is_no_coverage() -> None:
    window = TimeWindows()
    window.add(0.0, Status.ACTIVE, values(9))
    window.add(30.0, Status.UNKNOWN)
    window.add(100_000.0, Status.INACTIVE, values())
    view = window.window(100_030.0, 60)
    assert view.seconds[Status.INACTIVE] == pytest.approx(30)
    assert view.coverage == pytest.approx(0.5)
    assert window.window(100_030.0, 86_400).seconds[Status.ACTIVE] == 0


@pytest.mark.no_cover  # traced, it takes four times as long
def test_one_that_is_idle_takes_a_handful_of_slots_and_one_that_never_rests_no_more_than_the_bound() -> None:
    idle, busy = TimeWindows(), TimeWindows()
    for second in range(0, 200_000, 3):
        idle.add(second, Status.INACTIVE, values())
        busy.add(second, Status(second // 3 % 3), values(second))
    assert slots(idle) <= 2 * len(TIERS) + 3
    assert SLOTS - len(TIERS) <= slots(busy) <= SLOTS + len(TIERS)


@pytest.mark.no_cover  # traced, it takes four times as long
def test_a_day_of_numbers_without_any_pattern_takes_9_kb() -> None:
    window, dice = TimeWindows(), random.Random(1)
    for second in range(0, 90_000, 5):
        window.add(second, Status.INACTIVE, (dice.randrange(100_000), *(1000 * dice.random() for _ in MEASURES[1:])))
    assert sum(sys.getsizeof(tier._closed) for tier in window._tiers) < 9000 < SLOTS * PACKED.size


MOMENTS = st.lists(
    st.tuples(st.floats(0.1, 200) | st.floats(1e3, 2e4), st.sampled_from(list(Status)), st.integers(0, 50) | st.none()),
    max_size=60,
)


@given(MOMENTS, st.sampled_from([60, 300, 3600, 86_400]))
def test_it_agrees_with_brute_force_but_for_one_slot_at_the_windows_edge(
    moments: list[tuple[float, Status, int | None]], seconds: int
) -> None:
    window, now, seen = TimeWindows(), 1e5, []
    for step, status, pending in moments:
        now += step
        window.add(now, status, values(pending))
        seen.append((now, status, pending))
    view = window.window(now, seconds)
    slot = next(width for width, kept in TIERS if seconds <= width * (kept - 1))
    exact = dict.fromkeys(Status, 0.0)
    for (at, status, _), (until, _, _) in pairwise(seen):
        exact[status] += max(0.0, until - max(at, now - seconds))
    assert all(abs(view.seconds[s] - exact[s]) <= slot + 1e-2 for s in Status)
    assert sum(view.seconds.values()) <= seconds + 1e-2
    held = [(at, until, p) for (at, _, p), (until, _, _) in pairwise(seen)] + [(now, now, p) for _, _, p in seen[-1:]]
    inside = [
        p for _, until, p in held if (p is not None and until > now - seconds) or (until == now and p is not None)
    ]
    wider = [p for _, until, p in held if p is not None and until >= now - seconds - slot]
    pending = view.measures["pending"]
    if inside:
        assert min(wider) <= pending.low <= min(inside) <= max(inside) <= pending.high <= max(wider)
        assert pending.mean is not None and pending.low - 1e-3 <= pending.mean <= pending.high + 1e-3
    assert set(view.measures) == set(MEASURES)


@given(MOMENTS, st.integers(1, 20), st.sampled_from([60, 300, 3600, 86_400]))
def test_what_holds_need_not_be_added_again(
    moments: list[tuple[float, Status, int | None]], times: int, seconds: int
) -> None:
    once, often, now = TimeWindows(), TimeWindows(), 1e5
    for step, status, pending in moments:
        for n in range(times):
            often.add(now + step * n / times, status, values(pending))
        once.add(now, status, values(pending))
        now += step
    a, b = once.window(now, seconds), often.window(now, seconds)
    assert a.coverage == pytest.approx(b.coverage, abs=1e-4)
    assert a.seconds == pytest.approx(b.seconds, abs=1e-2)
    for name in MEASURES:
        one, other = a.measures[name], b.measures[name]
        assert (one.low, one.high) == (other.low, other.high)
        assert (one.mean or 0.0) == pytest.approx(other.mean or 0.0, rel=1e-4, abs=1e-4)


@given(MOMENTS, st.sampled_from([60, 3600, 86_400]))
def test_first_changes_that_only_wait_count_like_those_that_were_counted_at_once(
    moments: list[tuple[float, Status, int | None]], seconds: int
) -> None:
    waiting, counted, now = TimeWindows(), TimeWindows(), 1e5
    counted.window(now, 60)
    for step, status, pending in moments:
        now += step
        for window in (waiting, counted):
            window.add(now, status, values(pending))
    now += 7.0
    assert waiting.window(now, seconds) == counted.window(now, seconds)


def test_a_subject_that_comes_to_rest_has_no_slots_and_what_waits_is_bounded() -> None:
    window = TimeWindows()
    for second in range(MOST_WAITING):
        window.add(second, Status.INACTIVE, values(second))
    assert not window._tiers and len(window._waiting) == MOST_WAITING
    window.add(MOST_WAITING, Status.INACTIVE, values())
    assert window._tiers and not window._waiting


def test_a_mean_is_one_over_time_however_often_it_was_read() -> None:
    window = TimeWindows()
    for n in range(100):
        window.add(1000.0 + n / 100, Status.ACTIVE, values(100))
    window.add(1001.0, Status.INACTIVE, values(0))
    assert window.window(1010.0, 60).measures["pending"].mean == pytest.approx(10.0)


def test_a_measure_counts_until_it_is_unknown_and_at_once() -> None:
    window = TimeWindows()
    window.add(1000.0, Status.INACTIVE, values(4))
    measure = window.window(1000.0, 60).measures["pending"]
    assert (measure.low, measure.mean, measure.high) == (4, 4, 4)
    window.add(1010.0, Status.UNKNOWN)
    assert window.window(1030.0, 60).measures["pending"].n == 10.0


def test_the_largest_numbers_are_exact() -> None:
    window = TimeWindows()
    for n in range(40):
        window.add(1000.0 + n, Status.INACTIVE, values(2**40 + n))
    measure = window.window(1040.0, 60).measures["pending"]
    assert (measure.low, measure.high) == (2**40, 2**40 + 39)
