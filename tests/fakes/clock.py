"""FakeClock: its time passes only when a test lets it, so a simulated day takes as long as its work."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

from nats_backpressure.protocol.timestamps import Now

Waiter = asyncio.Future[bool]


class FakeClock:
    """The Clock of the tests. Sleepers wake in the order of their moments; those with the same moment, in the order in
    which they began. Random numbers are the same in every run."""

    def __init__(self, mono: float = 1000.0, wall: float = 1_800_000_000.0, seed: int = 1) -> None:
        self._now, self._offset = Now(mono, wall), wall - mono
        self._random = random.Random(seed)
        self._sleepers: list[tuple[float, int, Waiter]] = []
        self._order = count()

    def now(self) -> Now:
        return self._now

    def mono(self) -> float:
        return self.now().mono

    @property
    def sleeping(self) -> bool:
        """Whether a task sleeps."""
        return self._next() is not None

    def random(self) -> float:
        return self._random.random()

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        await self.alarm(seconds)

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        if event.is_set() or seconds <= 0:
            await asyncio.sleep(0)
            return
        woken = self.alarm(seconds)
        event._waiters.append(woken)  # as the real clock does; a task for each of the two took half of a simulation
        try:
            await woken
        finally:
            event._waiters.remove(woken)

    def alarm(self, seconds: float) -> Waiter:
        """What is done after so many seconds."""
        woken: Waiter = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now.mono + seconds, next(self._order), woken))
        return woken

    def end_sleeps(self) -> None: ...

    def lateness(self) -> float | None:
        return 0.0

    def advance(self, seconds: float) -> None:
        """Time passes in one leap; sleepers whose moment it passed wake at its end."""
        self._move_to(self._now.mono + seconds)

    async def run(self, seconds: float) -> None:
        """Time passes; each sleeper wakes at its own moment, and everything that can go on goes on before the next."""
        end = self._now.mono + seconds
        await settled()
        while (moment := self._next()) is not None and moment <= end:
            self._move_to(moment)
            await settled()
        self._move_to(end)

    async def until(self, look: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
        """Let time pass until `look` returns something true, which is returned; fails after `seconds` of it."""
        end = self._now.mono + seconds
        await settled()
        while not (result := look()):
            moment = self._next()
            if moment is None or moment > end:
                raise AssertionError(f"waited {seconds} simulated seconds for {what}; last: {result!r}")
            self._move_to(moment)
            await settled()
        return result

    async def finish(self, work: Awaitable[Any], seconds: float = 60.0) -> Any:
        """Let time pass until `work` is done; its result."""
        task = asyncio.ensure_future(work)
        await self.until(task.done, f"{work} to end", seconds)
        return task.result()

    def _next(self) -> float | None:
        while self._sleepers and self._sleepers[0][2].done():  # cancelled
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    def _move_to(self, moment: float) -> None:
        self._now = Now(moment, moment + self._offset)
        while (due := self._next()) is not None and due <= moment:
            heapq.heappop(self._sleepers)[2].set_result(False)


async def settled() -> None:
    """Return once no task can go on without time, or something from outside."""
    ready = asyncio.get_running_loop()._ready  # type: ignore[attr-defined]  # no public method shows that a loop is idle
    await asyncio.sleep(0)
    while ready:
        await asyncio.sleep(0)
