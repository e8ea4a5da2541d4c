"""Where two judgements of one recording differ in status, and for how long."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import groupby

from msgspec import Struct

from nats_backpressure.core.model import Event
from nats_backpressure.protocol.values import EventType, Status


class Difference(Struct, frozen=True):
    """The statuses of a subject under one policy and the other, from this moment on."""

    at: float
    """Unix seconds."""
    subject: str
    statuses: tuple[Status, Status]
    reasons: tuple[tuple[str, ...], tuple[str, ...]]
    lasted: float | None = None
    """Seconds for which they had differed; None unless they are the same again."""


class _Standing(Struct):
    statuses: list[Status]
    reasons: list[tuple[str, ...]]
    differ: float | None = None
    """Since when; None while they do not."""


class Differences:
    """Hears the events of both; `settle` once both have taken the same line, since one runs ahead of the other."""

    def __init__(self, tell: Callable[[Difference], None]) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """For which the statuses of each subject differed."""
        self._tell = tell
        self._heard: list[tuple[int, Event]] = []
        self._standing: dict[str, _Standing] = {}

    def hear(self, which: int, event: Event) -> None:
        """An event of the first (0) or the second (1) judgement."""
        self._heard.append((which, event))

    def settle(self) -> None:
        if not self._heard:
            return
        heard = sorted(self._heard, key=lambda pair: (pair[1].at, pair[1].subject))
        self._heard.clear()
        for (at, subject), events in groupby(heard, key=lambda pair: (pair[1].at, pair[1].subject)):
            self._moved(at, subject, list(events))

    def end(self, at: float) -> None:
        """The recording ended at this time (Unix seconds)."""
        self.settle()
        for subject, standing in self._standing.items():
            if standing.differ is not None:
                self.seconds[subject] += at - standing.differ
                standing.differ = at

    def _moved(self, at: float, subject: str, events: list[tuple[int, Event]]) -> None:
        standing = self._standing.setdefault(subject, _Standing([Status.INACTIVE] * 2, [(), ()]))
        before = tuple(standing.statuses)
        for which, event in events:
            lost = event.type is EventType.MONITORING_LOST
            standing.statuses[which] = Status.UNKNOWN if lost else event.now
            standing.reasons[which] = event.reasons
        one, other = standing.statuses
        if (one, other) == before:
            return
        lasted = None
        if one is other and standing.differ is not None:
            lasted = at - standing.differ
            self.seconds[subject] += lasted
            standing.differ = None
        elif one is not other and standing.differ is None:
            standing.differ = at
        if one is not other or lasted is not None:
            reasons = standing.reasons[0], standing.reasons[1]
            self._tell(Difference(at, subject, (one, other), reasons, lasted))
