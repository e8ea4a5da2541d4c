"""DecisionTally: counts decisions in plain numbers, and passes them on to the metrics in batches."""

from __future__ import annotations

from threading import Lock
from typing import Protocol

MOST_COUNTS = 4096
"""Counts that are remembered; at more, all of them are passed on and begin again."""


class BatchMetrics(Protocol):
    """Counts `n` decisions at once, and how long they took together."""

    def decisions(self, subject: str, role: str, action: str, would: str | None, n: int) -> None: ...
    def durations(self, n: int, seconds: float) -> None: ...


class Answers(Protocol):
    """What counts itself how many decisions it made, and how long they took together."""

    answered: int
    seconds: float


class Count:
    """Decisions with the same labels, since the process started to count them."""

    __slots__ = ("n", "passed_on")

    def __init__(self) -> None:
        self.n = self.passed_on = 0


class DecisionTally:
    """All decisions. The event loop counts; `pass_on` is called in the thread of a scrape too. Counts only rise, so
    that none is lost between the two: what was passed on is a number of its own, under a lock."""

    def __init__(self, metrics: BatchMetrics) -> None:
        self._metrics, self._lock = metrics, Lock()
        self._counts: dict[tuple[str, str, str, str | None], Count] = {}
        self.generation = 0
        """Rises when the counts begin again; counts of an earlier one must not be used."""
        self._timed: list[Answers] = []
        self._passed_on, self._seconds_passed_on = 0, 0.0

    def add(self, answers: Answers) -> None:
        """Pass on the durations of these too."""
        self._timed.append(answers)

    def count_of(self, subject: str, role: str, action: str, would: str | None) -> Count:
        """The count for these labels, to be raised at each such decision."""
        if len(self._counts) >= MOST_COUNTS:
            with self._lock:
                self._pass_on_counts()
                self._counts = {}
                self.generation += 1
        return self._counts.setdefault((subject, role, action, would), Count())

    def decision(self, subject: str, role: str, action: str, seconds: float, would: str | None) -> None:
        """Count one decision, with its own duration."""
        self.count_of(subject, role, action, would).n += 1
        with self._lock:
            self._metrics.durations(1, seconds)

    def pass_on(self) -> None:
        """Count with the metrics what was decided since the last time."""
        with self._lock:
            self._pass_on_counts()
            n = sum(each.answered for each in self._timed) - self._passed_on
            seconds = sum(each.seconds for each in self._timed) - self._seconds_passed_on
            if n:
                self._metrics.durations(n, seconds)
                self._passed_on += n
                self._seconds_passed_on += seconds

    def _pass_on_counts(self) -> None:
        for labels, count in tuple(self._counts.items()):
            if n := count.n - count.passed_on:
                self._metrics.decisions(*labels, n)
                count.passed_on += n
