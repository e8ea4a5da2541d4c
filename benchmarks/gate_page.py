"""The part of docs/performance.md about PullGate: what all cases come to, and the two ratios of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.figures import Figure, number
from benchmarks.gate import EQUAL, MEDIAN, P95, RATE, SCALES, WORST
from benchmarks.gated_workers import Case

FULL = SCALES["full"]
MARKS = sorted({mark for marks in FULL.marks.values() for mark in marks})
Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def summary(figures: Mapping[str, Figure]) -> Table:
    """Of the drain rate and of p95: the worst and the median case, and how far two equal sides differ."""
    rows = []
    for what in (RATE, P95):
        for label in (WORST, MEDIAN, EQUAL):
            if (figure := figures.get(f"{label}: {what}")) is None:
                continue
            span = figure.spread
            ratios = f"{number(span['min'])} to {number(span['max'])}" if span else number(figure.ratio)
            rows.append(
                [
                    f"{label}: {what}",
                    f"{number(figure.value)} {figure.unit}",
                    number(figure.beside),
                    ratios,
                    figure.note,
                ]
            )
    return ("figure", "value", "plain fetch", "ratio", "case"), rows


def cases(figures: Mapping[str, Figure]) -> Table:
    """A row for each number of workers and batch, a column for each mark: ratio of the drain rate / of p95."""
    rows = []
    for workers, marks in FULL.marks.items():
        for batch in FULL.batches:
            cells = [_cell(figures, workers, batch, mark) if mark in marks else "" for mark in MARKS]
            rows.append([f"{workers}, fetch({batch})", *cells])
    return ("workers", *(f"mark {number(mark)} x workers" for mark in MARKS)), rows


def _cell(figures: Mapping[str, Figure], workers: int, batch: int, mark: float) -> str:
    case = Case(workers, batch, round(mark * workers))
    found = [figures.get(f"{case.text}: {what}") for what in (RATE, P95)]
    return " / ".join(number(figure.ratio if figure else None) for figure in found)
