"""TimeInStatus: how long a subject was in each status, and what it was like over the last minute, hour and day."""

from __future__ import annotations

from collections.abc import Mapping

from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.core.time_windows import NOTHING, TimeWindows, WindowSummary, measures_of
from nats_backpressure.protocol.values import Status


class TimeInStatus:
    """Of one subject, since this process first knew it. Times are monotonic."""

    __slots__ = ("_seconds", "_since", "_status", "_windows")

    def __init__(self, now: float) -> None:
        self._since, self._status = now, Status.UNKNOWN
        self._seconds: dict[str, float] = {}
        """In each status, up to `_since`."""
        self._windows = TimeWindows()

    def account(self, state: SubjectState, now: float) -> None:
        """Count the status and the measures of the worst member, where they are others now."""
        known = state.record is not None and not state.record.unknown and state.revision > 0
        status = state.record.status if state.record is not None and known else Status.UNKNOWN
        values = measures_of(state.worst.reading) if known and state.worst is not None else NOTHING
        if status is self._status and values == self._windows.values:
            return
        if status is not self._status:
            word = self._status.word
            self._seconds[word] = self._seconds.get(word, 0.0) + now - self._since
            self._since, self._status = now, status
        self._windows.add(now, status, values)

    def seconds(self, now: float) -> Mapping[str, float]:
        """Spent in each status, by its word."""
        word = self._status.word
        return {**self._seconds, word: self._seconds.get(word, 0.0) + max(0.0, now - self._since)}

    def window(self, now: float, seconds: float) -> WindowSummary:
        """What the subject was like over the last `seconds`."""
        return self._windows.window(now, seconds)
