"""The summary of a run is computed from its rows, events and reports."""

from __future__ import annotations

from collections import Counter

from nats_backpressure.demo.summary import summarize
from tests.demo.run_data import ACTIVE, FIRING, RECOVERY, run_data


def test_goodput_counts_messages_done_in_time_during_the_overload() -> None:
    in_time = [(2.0 + n / 100, 1.0) for n in range(500)]
    late, before, after = [(3.0, 5.1)] * 100, [(1.9, 1.0)] * 50, [(12.0, 1.0)] * 50
    assert summarize(run_data(latencies=[*in_time, *late, *before, *after])).goodput == 0.5


def test_latencies_are_of_all_messages_done_and_unknown_without_any() -> None:
    summary = summarize(run_data(latencies=[(3.0, n / 100) for n in range(1, 101)]))
    assert (summary.p50_seconds, summary.p99_seconds) == (0.5, 0.99)
    assert (summarize(run_data()).p50_seconds, summarize(run_data()).goodput) == (None, 0.0)


def test_counts_come_from_the_reports_of_the_processes() -> None:
    summary = summarize(
        run_data(
            callers=Counter(offered=1000, admitted=90, shed=900, failed=7, missed=3),
            worker=Counter(done=90, redelivered=4, naked=2),
            events=[ACTIVE, FIRING, RECOVERY],
            lost=1,
        )
    )
    assert (summary.shed, summary.failed, summary.done, summary.redelivered, summary.naked, summary.lost) == (
        0.9,
        10,
        90,
        4,
        2,
        1,
    )
    assert (summary.status_changes, summary.status_changes_per_minute) == (2, round(60 * 2 / 14, 1))
    assert (summary.events, summary.largest_backlog) == (
        {"alert_firing": 1, "backpressure_active": 1, "recovery": 1},
        300,
    )
