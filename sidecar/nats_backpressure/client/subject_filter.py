"""Which states a client keeps: those that govern a subject given to `watch`, or overlap a pattern given to it."""

from __future__ import annotations

from collections.abc import Iterable

from nats_backpressure.protocol.patterns import covers, overlap, pattern_problem
from nats_backpressure.protocol.subjects import is_literal

MAX_WATCHED = 10_000
"""Subjects and patterns; more raise ValueError. One pattern replaces many subjects."""


class SubjectFilter:
    """Subjects and patterns. It only grows."""

    def __init__(self) -> None:
        self._literals: set[str] = set()
        self._patterns: list[str] = []

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
        self._patterns += [s for s in new if not is_literal(s)]
        return bool(new)

    def covers(self, subject: str) -> bool:
        """Whether every state that governs this subject is kept already."""
        return subject in self._literals or any(covers(pattern, subject) for pattern in self._patterns)

    def keeps(self, watched: str) -> bool:
        """Whether the state of this watched subject is kept."""
        if any(overlap(pattern, watched) for pattern in self._patterns):
            return True
        return watched in self._literals or (
            not is_literal(watched) and any(covers(watched, subject) for subject in self._literals)
        )
