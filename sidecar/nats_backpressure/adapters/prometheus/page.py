"""Page: the lines of the gauges, in the order of the definitions; those of a subject are kept until they change."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from nats_backpressure.adapters.prometheus import shown as series
from nats_backpressure.adapters.prometheus.definitions import ACTIVE, GAUGES, OTHER, TIME_IN_STATUS, P
from nats_backpressure.adapters.prometheus.exposition import Labels, Series, header, joined, number
from nats_backpressure.adapters.prometheus.shown import Shown

SUMS = (
    "router_jetstream_pending_messages",
    "router_intake_inflight_messages",
    P + "pending_messages",
    P + "inflight_messages",
    P + "arrival_rate",
    P + "ack_rate",
    TIME_IN_STATUS[0],
)
MERGES: dict[str, Callable[[float, float], float]] = dict.fromkeys(SUMS, operator.add) | {P + "admit_ratio": min}
"""How values of series with the same labels become one; the others have their maximum."""
Values = dict[tuple[str, Labels], float]


class Page:
    """Made again by `begin`, `subject` and `add` for each scrape. Text is kept, and no tuples of labels: 100,000 of
    those would start a full garbage collection."""

    def __init__(self) -> None:
        self._shown: dict[str, Shown] = {}
        """By subject, where it has labels of its own."""
        self._kept: dict[str, dict[str, str]] = {name: {} for name in _SERIES}
        """The lines of these, by the name of the metric and the subject."""
        self._lines: dict[str, list[str]] = {}
        self._shared: Values = {}

    def begin(self, subjects: Iterable[str]) -> None:
        """A scrape begins; only these subjects are watched."""
        for gone in self._shown.keys() - subjects:
            self._drop(gone)
        self._lines, self._shared = {name: [] for name in _SERIES}, {}

    def subject(self, name: str, shown: Shown) -> None:
        """The series of a subject; those that share the label `_other` become one."""
        if shown.label == OTHER:
            self._drop(name)
            _merge(self._shared, shown.series())
        elif self._shown.get(name) != shown:
            self._drop(name)
            self._shown[name] = shown
            own: Values = {}
            _merge(own, shown.series())
            for (metric, labels), value in own.items():
                kept = self._kept[metric]
                kept[name] = kept.get(name, "") + _SERIES[metric](labels, value)

    def add(self, name: str, labels: Labels, value: float | None) -> None:
        """A series that is made at each scrape."""
        if value is None or not math.isfinite(value):
            return
        if OTHER in labels:
            _merge(self._shared, [(name, labels, value)])
        else:
            self._lines[name].append(_SERIES[name](labels, value))

    def _drop(self, subject: str) -> None:
        if self._shown.pop(subject, None) is not None:
            for kept in self._kept.values():
                kept.pop(subject, None)

    def text(self) -> Iterator[str]:
        for (name, labels), value in self._shared.items():
            self._lines[name].append(_SERIES[name](labels, value))
        # The largest first: the router's C gateway reads the number after the first occurrence of the metric's name,
        # which would be in its HELP; a comment before it, which Prometheus ignores, has that number.
        active = sorted(self._of(ACTIVE), key=_is_calm)
        if active:
            yield f"# {ACTIVE} {not _is_calm(active[0]):d} is the largest of all subjects\n"
        for name, (help_text, _) in GAUGES.items():
            yield header(name, "gauge", help_text)
            yield from joined(active if name == ACTIVE else self._of(name))
        yield header(TIME_IN_STATUS[0] + "_total", "counter", TIME_IN_STATUS[1])
        yield from joined(self._of(TIME_IN_STATUS[0]))

    def _of(self, name: str) -> Iterable[str]:
        return chain(self._kept[name].values(), self._lines[name])


def _merge(values: Values, added: Iterable[series.Series]) -> None:
    for name, labels, value in added:
        if value is None or not math.isfinite(value):
            continue
        key = name, labels
        values[key] = MERGES.get(name, max)(values[key], value) if key in values else value


def _is_calm(line: str) -> bool:
    return line.endswith(CALM)


CALM = f" {number(0.0)}\n"
_SERIES = {name: Series(name, names).line for name, (_, names) in GAUGES.items()} | {
    TIME_IN_STATUS[0]: Series(TIME_IN_STATUS[0] + "_total", TIME_IN_STATUS[2]).line
}
