"""CounterLines: one counter, with the text of its series, which is made again only where one of them was counted."""

from __future__ import annotations

from collections.abc import Iterator

from nats_backpressure.adapters.prometheus.exposition import Labels, Series, header


class _Group:
    __slots__ = ("changes", "text", "text_of", "values")

    def __init__(self) -> None:
        self.values: dict[Labels, float] = {}
        self.changes = 0
        self.text, self.text_of = "", -1
        """Their lines, as they were after so many changes."""


class CounterLines:
    """The series by their first label. They are counted in one thread, and shown in another one."""

    def __init__(self, name: str, text: str, names: Labels) -> None:
        self.header = header(name, "counter", text)
        self._line = Series(name, names).line
        self._groups: dict[str, _Group] = {}

    def add(self, labels: Labels, n: int) -> None:
        """Count `n`; with 0 the series starts."""
        group = self._groups.get(labels[0])
        if group is None:
            group = self._groups[labels[0]] = _Group()
        if n or labels not in group.values:
            group.values[labels] = group.values.get(labels, 0.0) + n
            group.changes += 1

    def drop(self, label: str) -> None:
        """Drop the series with this first label."""
        self._groups.pop(label, None)

    def texts(self) -> Iterator[str]:
        """All lines, by first label."""
        for group in tuple(self._groups.values()):
            if group.text_of != group.changes:
                # First the number: what is counted meanwhile is shown next time.
                changes, values = group.changes, dict(group.values)
                group.text, group.text_of = "".join(self._line(*series) for series in values.items()), changes
            yield group.text
