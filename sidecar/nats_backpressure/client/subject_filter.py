"""Which states a client keeps: those that govern a subject given to `watch`, or overlap a pattern given to it."""

from __future__ import annotations

from collections.abc import Iterable

from nats_backpressure.client.newest import put_newest
from nats_backpressure.protocol.patterns import PatternIndex, covers, overlap, pattern_problem
from nats_backpressure.protocol.subjects import is_literal

MAX_WATCHED = 10_000
"""Subjects and patterns; more raise ValueError. One pattern replaces many subjects."""


class SubjectFilter:
    """Subjects and patterns. It only grows. Each write of the bucket is looked up here, so the cost of that does not
    depend on how many there are."""

    def __init__(self) -> None:
        self._literals: set[str] = set()
        self._patterns: list[str] = []
        self._index: PatternIndex[str] = PatternIndex()
        """The patterns again."""
        self._kept: dict[str, bool] = {}
        """Whether the states of these watched patterns are kept: to find that, all are compared."""

    def add(self, subjects: Iterable[str]) -> bool:
        """Whether any was new. Raises ValueError for too many or for what is no subject, and then adds none."""
        subjects = tuple(dict.fromkeys(subjects))
        for subject in subjects:
            if problem := pattern_problem(subject):
                raise ValueError(f"the subject {subject[:120]!r} to watch {problem}")
        new = [s for s in subjects if not self.covers(s)]
        if len(self._literals) + len(self._patterns) + len(new) > MAX_WATCHED:
            raise ValueError(f"more than {MAX_WATCHED} subjects to watch: use a pattern such as `orders.>` instead")
        self._literals.update(s for s in new if is_literal(s))
        for pattern in (s for s in new if not is_literal(s)):
            self._patterns.append(pattern)
            self._index.add(pattern, pattern)
        self._kept.clear()
        return bool(new)

    def covers(self, subject: str) -> bool:
        """Whether every state that governs this subject is kept already."""
        return subject in self._literals or any(True for _ in self._index.covering(subject))

    def keeps(self, watched: str) -> bool:
        """Whether the state of this watched subject is kept."""
        if is_literal(watched):
            return self.covers(watched)
        if (kept := self._kept.get(watched)) is None:
            kept = any(overlap(pattern, watched) for pattern in self._patterns)
            kept = kept or any(covers(watched, subject) for subject in self._literals)
            put_newest(self._kept, watched, kept, MAX_WATCHED)
        return kept
