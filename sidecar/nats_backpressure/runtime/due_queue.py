"""DueQueue: of which stream a reading is due next, and which of those that are late is read first."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from itertools import count

from nats_backpressure.core.reading.due import Due
from nats_backpressure.runtime.stream_poll import StreamPoll

SPARE = 1000
"""Entries that do not count any more, besides three for each stream, after which the queue is made anew."""


class DueQueue:
    """Of the streams in `polls`, which changes: what is not in it any more is passed over."""

    def __init__(self, polls: Mapping[str, StreamPoll]) -> None:
        self._polls = polls
        self._queue: list[tuple[float, int, StreamPoll, Due]] = []
        """When a reading of each stream is due; an entry counts only while it is the newest of its stream."""
        self._order = count()
        self._late: dict[str, StreamPoll] = {}
        """Streams of which a reading is due."""
        self._first_reading_next = False
        """Whether the next reading to start is a first one, where one is due."""

    def plan(self, poll: StreamPoll) -> None:
        """The next reading of a stream is due at `poll.due`, and at no other time that was planned before."""
        self._late.pop(poll.name, None)
        heapq.heappush(self._queue, (poll.due.at, next(self._order), poll, poll.due))
        if len(self._queue) > SPARE + 4 * len(self._polls):
            self._queue = [(one.due.at, next(self._order), one, one.due) for one in self._polls.values()]
            heapq.heapify(self._queue)

    def collect(self, now: float) -> None:
        """Find what is late by now."""
        while self._queue and self._queue[0][0] <= now:
            _, _, poll, due = heapq.heappop(self._queue)
            if poll.due is due and self._polls.get(poll.name) is poll:
                self._late[poll.name] = poll

    @property
    def is_late(self) -> bool:
        """Whether a reading is late that was collected."""
        return bool(self._late)

    def next_at(self) -> float:
        """Monotonic time at which the next reading is due that is not late; inf if there is none."""
        return self._queue[0][0] if self._queue else math.inf

    def most_late(self, now: float) -> StreamPoll | None:
        """The stream that is most late for its interval. Every other time it is one that was never read and has
        consumers, if there is any: so after a start each of them is read after twice the time that all first readings
        take, however many of those already read are overloaded. None if none is late."""
        if not self._late:
            return None
        self._first_reading_next = not self._first_reading_next
        while late := list(self._late.values()):
            if self._first_reading_next:
                late = [poll for poll in late if poll.plan.awaits_first_reading] or late
            poll = max(late, key=lambda one: one.due.lateness(now))
            if self._polls.get(poll.name) is poll:
                return poll
            del self._late[poll.name]  # it was found gone since then
        return None
