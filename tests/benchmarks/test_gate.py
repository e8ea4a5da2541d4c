"""What the benchmark of PullGate makes of its measurements. Never their values."""

from __future__ import annotations

import pytest

from benchmarks.gate import EQUAL, MEDIAN, P95, RATE, REFUSED, SCALES, WORST, Measured, cases_of, figures_of
from benchmarks.gate_page import cases, summary
from benchmarks.gated_workers import SERVICE, Case, Side, rate_of
from benchmarks.results import Machine, Results, Run, kept_runs


def measured() -> Measured:
    """Each case as good as a plain fetch, but for one that drains less, and another one with a longer wait."""
    sides = {
        case: (Side(100.0, 0.01, 5, 0, 0), Side(100.0, 0.01, case.mark or 5, 100, 2))
        for case in cases_of(SCALES["full"])
    }
    return sides | {
        Case(5, 10, 8): (Side(100.0, 0.01, 5, 0, 0), Side(90.0, 0.01, 8, 100, 2)),
        Case(20, 1, 20): (Side(100.0, 0.01, 5, 0, 0), Side(100.0, 0.02, 22, 100, 2)),
    }


def test_the_worst_of_thirty_cases_has_the_aim_and_its_name() -> None:
    figures = figures_of(measured())
    worst = [figures[f"{WORST}: {what}"] for what in (RATE, P95, "in flight")]
    assert [figure.note for figure in worst] == [
        "5 workers, fetch(10), mark 8, of 30 cases",
        "20 workers, fetch(1), mark 20, of 30 cases",
        "20 workers, fetch(1), mark 20, of 30 cases",
    ]
    assert [figure.compared for figure in worst] == pytest.approx([0.9, 2.0, 1.1])
    assert [figure.reached for figure in worst] == [False, False, False]
    assert figures[f"{MEDIAN}: {RATE}"].ratio == 1
    assert figures[f"PullGate: {REFUSED}"].value == 2
    assert figures[f"{EQUAL}: {RATE}"].note.endswith("no gate, of 6 cases")


def test_the_page_has_both_ratios_of_each_case() -> None:
    header, rows = cases(figures_of(measured()))
    assert len(rows) == 9 and all(len(row) == len(header) for row in rows)
    cells = [cell for row in rows for cell in row[1:] if cell]
    assert len(cells) == 30
    assert sorted(cell for cell in cells if cell != "1 / 1") == ["0.9 / 1", "1 / 2"]
    assert len(summary(figures_of(measured()))[1]) == 6


def test_the_rate_of_a_worker_does_not_depend_on_where_the_window_cuts_and_a_stall_counts() -> None:
    acks = [n * SERVICE for n in range(1, 100)]
    for cut in (0.0, 0.07, 0.19):
        inside = [at for at in acks if cut <= at < 10 + cut]
        assert rate_of(inside, cut, 10 + cut) == pytest.approx(1 / SERVICE)
    stalled = [at for at in acks if at < 5]
    assert rate_of(stalled, 0.0, 10.0) == pytest.approx(0.5 / SERVICE, rel=0.05)
    assert rate_of([], 0.0, 10.0) == 0


def test_runs_that_are_kept_keep_the_commit_that_they_measured_and_the_processor() -> None:
    nobody = Machine("a processor", 2, "Linux", "3.11", "v2", {}, commit="old")
    runs = {name: Run("2026-11-26T00:00:00Z", (0, 0, 0), 1.0, {}, commit) for name, commit in (("a", ""), ("b", "new"))}
    kept = kept_runs(Results("full", nobody, runs))
    assert [(run.commit, run.processor) for run in kept.values()] == [("old", "a processor"), ("new", "a processor")]
