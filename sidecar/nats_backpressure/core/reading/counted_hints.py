"""CountedHints: which batches of ack metrics and advisories of other replicas count, so that none counts twice when
another replica begins to read a stream."""

from __future__ import annotations

import math

APART = 0.12
"""Seconds that must lie between what was counted last and the first hint of another source: the same hint reaches two
replicas at different times, and after a start clocks are related by two messages, which may have taken 0.1 s."""


class CountedHints:
    """What was counted of one stream, and whose it was. Times are monotonic, of the own clock."""

    __slots__ = ("_n", "_until", "source")

    def __init__(self) -> None:
        self.source = ""
        """The process that counted the newest batch; empty where this one counted since."""
        self._n = -1
        """The number of that batch."""
        self._until = -math.inf
        """Nothing that a replica received later is counted yet."""

    def count_own(self, now: float) -> None:
        """This replica counted a hint that it received itself."""
        self.source, self._until = "", now

    def count(self, source: str, n: int, since: float | None, now: float) -> bool:
        """Whether batch `n` of a source counts. `since`: when its first hint came there; None if that is not known."""
        if source == self.source:
            if n <= self._n:
                return False
        elif since is None or since < self._until + APART:
            return False
        self.source, self._n, self._until = source, n, now
        return True
