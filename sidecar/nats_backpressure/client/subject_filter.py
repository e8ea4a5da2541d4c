"""Which states a client wants: those that govern a subject it named, or that a pattern it named may meet."""

from __future__ import annotations

from collections.abc import Iterable

from nats_backpressure.protocol.subjects import covers, is_literal

MOST_WATCHED = 10_000
"""Subjects and patterns; more are a ValueError, one pattern does for many."""


class SubjectFilter:
    """Grows only."""

    def __init__(self) -> None:
        self._literals: set[str] = set()
        self._patterns: list[str] = []

    def add(self, subjects: Iterable[str]) -> bool:
        """Whether anything was new. Raises ValueError for too many, and then nothing was added."""
        new = [s for s in dict.fromkeys(subjects) if not self.covers(s)]
        if len(self._literals) + len(self._patterns) + len(new) > MOST_WATCHED:
            raise ValueError(f"more than {MOST_WATCHED} subjects to watch: a pattern such as `orders.>` does for many")
        self._literals.update(s for s in new if is_literal(s))
        self._patterns += [s for s in new if not is_literal(s)]
        return bool(new)

    def covers(self, subject: str) -> bool:
        """Whether every state that governs this subject is wanted already."""
        return subject in self._literals or any(covers(pattern, subject) for pattern in self._patterns)

    def wants(self, watched: str) -> bool:
        """Whether the state of this watched subject is wanted."""
        if any(overlap(pattern, watched) for pattern in self._patterns):
            return True
        return watched in self._literals or (
            not is_literal(watched) and any(covers(watched, subject) for subject in self._literals)
        )


def overlap(one: str, other: str) -> bool:
    """Whether some subject is matched by both patterns."""
    a, b = one.split("."), other.split(".")
    for x, y in zip(a, b, strict=False):
        if ">" in (x, y):
            return True
        if x != y and "*" not in (x, y):
            return False
    return len(a) == len(b)
