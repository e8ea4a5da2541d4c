"""SharedTime: the seconds in each status of all subjects that share one label, as a counter that never falls."""

from __future__ import annotations

from collections.abc import Mapping


class SharedTime:
    """What subjects had spent before they went stays in the sum, but for the time since the last scrape."""

    def __init__(self) -> None:
        self._last: Mapping[str, Mapping[str, float]] = {}
        """The seconds of each subject at the last scrape."""
        self._sum: dict[str, float] = {}

    def total(self, subjects: Mapping[str, Mapping[str, float]]) -> Mapping[str, float]:
        """The seconds in each status, given those of each subject that shares the label now."""
        for subject, seconds in subjects.items():
            before = self._last.get(subject, {})
            for status, now in seconds.items():
                was = before.get(status, 0.0)
                # Less than before: the subject was dropped meanwhile, and counts from 0 again.
                self._sum[status] = self._sum.get(status, 0.0) + (now - was if now >= was else now)
        self._last = subjects
        return self._sum
