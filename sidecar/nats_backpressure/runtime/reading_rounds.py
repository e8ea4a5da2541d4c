"""Counts when all streams are read or tried: at the start, and when readings come again after an outage."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nats_backpressure.runtime.ports import Clock
from nats_backpressure.runtime.subject_registry import SubjectRegistry

ROUND_WITHIN = 5.0
"""Seconds for reading or trying every stream, before what is known is answered."""


class ReadingRounds:
    """Writes down `newest_reading` in the registry: at the start, and when readings come again after an outage, that
    waits until each stream was read or tried, because readers take it as proof of all streams. `complete` is set once
    each was, after ROUND_WITHIN at most."""

    def __init__(
        self,
        registry: SubjectRegistry,
        clock: Clock,
        stale_after: float,
        max_interval: float,
        read_all: Callable[[], None],
    ) -> None:
        """`stale_after`: seconds without a reading of any stream that are no outage of all yet; `max_interval`: seconds
        between two readings where none is planned. `read_all`: read each soon."""
        self._registry, self._clock, self._read_all = registry, clock, read_all
        self._stale_after, self._max_interval = stale_after, max_interval
        self.tasks: asyncio.TaskGroup | None = None
        self.began_at: float | None = None
        """Monotonic time at which the first list of streams was answered."""
        self.complete = asyncio.Event()
        self._read_at: float | None = None
        self._number = 0
        self._untried: set[str] | None = None
        """Streams of the present round that were not tried in it yet; None while there is no round."""

    def listed(self, new: set[str]) -> None:
        """A list of streams was answered, with these new ones."""
        if self.began_at is None:
            self.began_at = self._clock.mono()
            self._begin()
        if self._untried is not None:
            self._untried |= new

    def tried(self, stream: str = "") -> None:
        """A stream was read, or cannot be read."""
        if self._untried is not None:
            self._untried.discard(stream)
            if self._registry.streams.listed and not self._untried:
                self._end(self._number)

    def was_read(self, at: float | None = None) -> None:
        """Anything was read, now or `at` this monotonic time."""
        now, last = self._clock.mono() if at is None else at, self._read_at
        if last is not None and now < last:
            return
        self._read_at = now
        quiet = 0.0 if last is None else now - last
        if self._untried is None and quiet >= self._stale_after and quiet >= self._outage():
            self._begin()
        if self._untried is None and self.complete.is_set():
            self._registry.streams.newest_reading = now

    def _outage(self) -> float:
        """Seconds without a reading of any stream that are an outage of all. Looks at every stream."""
        intervals = [stream.interval for stream in self._registry.streams.values() if stream.under]
        return 3 * min(intervals, default=self._max_interval)

    def _begin(self) -> None:
        self._number += 1
        self._untried = set(self._registry.streams)
        if self.tasks is not None:
            self.tasks.create_task(self._time_out(self._number), name="time out the round")
        self._read_all()

    async def _time_out(self, number: int) -> None:
        await self._clock.sleep(ROUND_WITHIN)
        self._end(number)

    def _end(self, number: int) -> None:
        if self._untried is None or number != self._number:
            return
        self._untried, self._registry.streams.newest_reading = None, self._read_at
        self.complete.set()
