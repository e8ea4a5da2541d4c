"""Windows over the statuses of a subject: against brute force, over a day, and in bounded memory."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.time_windows import MEASURES, SLOTS, TIERS, TimeWindows
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Status

KEY = ConsumerKey("S", "c")


def reading(at: float, pending: int = 0, p95: float | None = None) -> Reading:
    return Reading(KEY, Now(at, at), pending, 0, None, None, p95=p95, arrival_rate=float(pending), ack_rate=None)


def slots(window: TimeWindows) -> int:
    return sum(len(tier.closed) + (tier.open is not None) for tier in window._tiers)


def test_a_minute_is_exact_while_nothing_is_dropped_from_it() -> None:
    window = TimeWindows()
    for second in range(40):
        status = Status.ACTIVE if 10 <= second < 25 else Status.INACTIVE
        window.add(1000.0 + second, status, reading(1000.0 + second, pending=second, p95=None))
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
        window.add(second, Status.ACTIVE if bad else Status.INACTIVE, reading(second, pending=2000 if bad else 3))
    day, hour = window.window(86_400, 86_400), window.window(86_400, 3600)
    assert day.seconds[Status.ACTIVE] == pytest.approx(3600)
    assert sum(day.seconds.values()) == pytest.approx(86_400)
    assert (day.measures["pending"].low, day.measures["pending"].high) == (3, 2000)
    assert day.measures["pending"].mean == pytest.approx((23 * 3 + 2000) / 24)
    assert hour.seconds[Status.ACTIVE] == 0 and hour.measures["pending"].high == 3
    assert hour.coverage == day.coverage == pytest.approx(1.0)


def test_what_is_older_than_the_window_is_forgotten_and_a_gap_is_no_coverage() -> None:
    window = TimeWindows()
    window.add(0.0, Status.ACTIVE, reading(0.0, pending=9))
    window.add(30.0, Status.UNKNOWN)
    window.add(100_000.0, Status.INACTIVE, reading(100_000.0))
    view = window.window(100_030.0, 60)
    assert view.seconds[Status.INACTIVE] == pytest.approx(30)
    assert view.coverage == pytest.approx(0.5)
    assert window.window(100_030.0, 86_400).seconds[Status.ACTIVE] == 0


def test_one_that_is_idle_takes_a_handful_of_slots_and_one_that_never_rests_no_more_than_the_bound() -> None:
    idle, busy = TimeWindows(), TimeWindows()
    for second in range(0, 200_000, 3):
        idle.add(second, Status.INACTIVE, reading(second))
        busy.add(second, Status(second // 3 % 3), reading(second, pending=second))
    assert slots(idle) <= 2 * len(TIERS) + 3
    assert SLOTS - len(TIERS) <= slots(busy) <= SLOTS + len(TIERS)


MOMENTS = st.lists(
    st.tuples(st.floats(0.1, 200), st.sampled_from(list(Status)), st.integers(0, 50) | st.none()), max_size=60
)


@given(MOMENTS, st.sampled_from([60, 300, 3600, 86_400]))
def test_it_agrees_with_brute_force_but_for_one_slot_at_the_windows_edge(
    moments: list[tuple[float, Status, int | None]], seconds: int
) -> None:
    window, now, seen = TimeWindows(), 1e5, []
    for step, status, pending in moments:
        now += step
        window.add(now, status, None if pending is None else reading(now, pending))
        seen.append((now, status, pending))
    view = window.window(now, seconds)
    slot = next(width for width, kept in TIERS if seconds <= width * (kept - 1))
    exact = dict.fromkeys(Status, 0.0)
    for (at, status, _), (until, _, _) in pairwise(seen):
        exact[status] += max(0.0, until - max(at, now - seconds))
    assert all(abs(view.seconds[s] - exact[s]) <= slot + 1e-6 for s in Status)
    assert sum(view.seconds.values()) <= seconds + 1e-6
    values = [p for at, _, p in seen if p is not None and at > now - seconds]
    wider = [p for at, _, p in seen if p is not None and at > now - seconds - slot]
    pending = view.measures["pending"]
    if values:
        assert min(wider) <= pending.low <= min(values) <= max(values) <= pending.high <= max(wider)
    assert set(view.measures) == set(MEASURES)
