"""Reports two entries of one layer that name the same pattern for some of the same consumers."""

from __future__ import annotations

from collections.abc import Sequence

from nats_backpressure.policy.validation import Problems
from nats_backpressure.protocol.patterns import glob, globs_meet


class PatternClaims:
    """The patterns that the entries so far name, and for which consumers: by exact name and by glob."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, str]] = {}
        self._globs: dict[str, list[tuple[str, str]]] = {}

    def add(self, subjects: Sequence[str], consumers: Sequence[str], path: str, problems: Problems) -> None:
        """Add the entry at `path`, and a problem for each pattern that is already taken."""
        for i, pattern in enumerate(subjects):
            taken = next((t for t in (self._taken(pattern, c) for c in consumers) if t), None)
            if pattern in subjects[:i] or taken:
                where = f"{path}.subjects[{i}]"
                problems.add(
                    where,
                    f"the same pattern is in {taken or path}, for some of the same consumers; keep one of the two",
                )
        for pattern in subjects:
            for consumer in consumers:
                if "*" in consumer:
                    self._globs.setdefault(pattern, []).append((consumer, path))
                else:
                    self._names.setdefault(pattern, {})[consumer] = path

    def _taken(self, pattern: str, consumer: str) -> str | None:
        """The path of an earlier entry that names the pattern for some of the same consumers."""
        names, globs = self._names.get(pattern, {}), self._globs.get(pattern, ())
        if "*" not in consumer:
            return names.get(consumer) or next((p for other, p in globs if glob(other, consumer)), None)
        by_name = next((p for name, p in names.items() if glob(consumer, name)), None)
        return by_name or next((p for other, p in globs if globs_meet(other, consumer)), None)
