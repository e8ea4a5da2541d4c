"""Page: the lines of the gauges of one scrape, in the order of the definitions."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from itertools import chain

from nats_backpressure.adapters.prometheus.definitions import ACTIVE, GAUGES, OTHER, TIME_IN_STATUS
from nats_backpressure.adapters.prometheus.exposition import Labels, Series, header, joined


class Page:
    """The lines of one scrape. Values of subjects or consumers that share the label `_other` become one: their sum,
    maximum or minimum."""

    def __init__(self) -> None:
        # Text, and no tuples of labels: 100,000 of those would start a full garbage collection.
        self._lines: dict[str, list[str]] = {name: [] for name in _SERIES}
        self._shared: dict[str, dict[Labels, float]] = {name: {} for name in _SERIES}
        self._active: list[str] = []
        """The lines of the subjects that are active."""

    def add(self, name: str, labels: Labels, value: float | None) -> None:
        self._put(name, labels, value, operator.add)

    def maximum(self, name: str, labels: Labels, value: float | None) -> None:
        self._put(name, labels, value, max)

    def minimum(self, name: str, labels: Labels, value: float | None) -> None:
        self._put(name, labels, value, min)

    def _put(self, name: str, labels: Labels, value: float | None, merge: Callable[[float, float], float]) -> None:
        if value is None or not math.isfinite(value):
            return
        if OTHER in labels:
            shared = self._shared[name]
            shared[labels] = merge(shared[labels], value) if labels in shared else value
        else:
            self._put_line(name, labels, value)

    def text(self) -> Iterator[str]:
        for name, shared in self._shared.items():
            for labels, value in shared.items():
                self._put_line(name, labels, value)
        # The largest first: the router's C gateway reads the number after the first occurrence of the metric's name,
        # which would be in its HELP; a comment before it, which Prometheus ignores, has that number.
        if self._active or self._lines[ACTIVE]:
            yield f"# {ACTIVE} {bool(self._active):d} is the largest of all subjects\n"
        for name, (help_text, _) in GAUGES.items():
            yield header(name, "gauge", help_text)
            yield from joined(chain(self._active if name == ACTIVE else (), self._lines[name]))
        yield header(TIME_IN_STATUS[0] + "_total", "counter", TIME_IN_STATUS[1])
        yield from joined(self._lines[TIME_IN_STATUS[0]])

    def _put_line(self, name: str, labels: Labels, value: float) -> None:
        lines = self._active if value and name == ACTIVE else self._lines[name]
        lines.append(_SERIES[name](labels, value))


_SERIES = {name: Series(name, names).line for name, (_, names) in GAUGES.items()} | {
    TIME_IN_STATUS[0]: Series(TIME_IN_STATUS[0] + "_total", TIME_IN_STATUS[2]).line
}
