"""Compares two replays of one recording: where their statuses differ, and for how long."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import groupby

from msgspec import Struct

from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.protocol.values import EventType, Status


class Difference(Struct, frozen=True):
    """The two statuses of a subject from this moment on."""

    at: float
    """Unix seconds."""
    subject: str
    statuses: tuple[Status, Status]
    reasons: tuple[tuple[str, ...], tuple[str, ...]]
    lasted: float | None = None
    """Seconds for which they differed; None unless they are equal again."""


class _BothStatuses(Struct):
    statuses: list[Status]
    reasons: list[tuple[str, ...]]
    differ_since: float | None = None
    """Monotonic time since which they differ; None while they are equal."""


class StatusComparison:
    """Collects the events of both replays; call `compare` when both have processed the same line."""

    def __init__(self, on_difference: Callable[[Difference], None]) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """Seconds for which the statuses differed, by subject."""
        self._on_difference = on_difference
        self._events: list[tuple[int, SubjectEvent, float]] = []
        self._statuses: dict[str, _BothStatuses] = {}

    def add_event(self, which: int, event: SubjectEvent, at: float) -> None:
        """An event of the first (0) or the second (1) replay, at this monotonic time of it."""
        self._events.append((which, event, at))

    def compare(self) -> None:
        if not self._events:
            return
        ordered = sorted(self._events, key=_time_and_subject)
        self._events.clear()
        for (at, subject), events in groupby(ordered, key=_time_and_subject):
            self._apply_events(at, subject, [(which, event) for which, event, _ in events])

    def finish(self, at: float) -> None:
        """The recording ended at this monotonic time."""
        self.compare()
        for subject, both in self._statuses.items():
            if both.differ_since is not None:
                self.seconds[subject] += at - both.differ_since
                both.differ_since = at

    def _apply_events(self, at: float, subject: str, events: list[tuple[int, SubjectEvent]]) -> None:
        both = self._statuses.setdefault(subject, _BothStatuses([Status.INACTIVE] * 2, [(), ()]))
        before = tuple(both.statuses)
        for which, event in events:
            lost = event.type is EventType.MONITORING_LOST
            both.statuses[which] = Status.UNKNOWN if lost else event.now
            both.reasons[which] = event.reasons
        one, other = both.statuses
        if (one, other) == before:
            return
        lasted = None
        if one is other and both.differ_since is not None:
            lasted = at - both.differ_since
            self.seconds[subject] += lasted
            both.differ_since = None
        elif one is not other and both.differ_since is None:
            both.differ_since = at
        if one is not other or lasted is not None:
            reasons = both.reasons[0], both.reasons[1]
            self._on_difference(Difference(events[0][1].at, subject, (one, other), reasons, lasted))


def _time_and_subject(one: tuple[int, SubjectEvent, float]) -> tuple[float, str]:
    return one[2], one[1].subject
