"""The real clock: the only place where the loops of the service read the time, sleep and draw random numbers.

An adapter may read the time for itself: to limit one request, to remember for a while what a server cannot do, or for a
fact that a command shows. Its timers run by the time of the event loop; no status, decision or event depends on it.
"""

from __future__ import annotations

import asyncio
import random
import time

from nats_backpressure.core.reading.server_time import ServerTime
from nats_backpressure.protocol.timestamps import Now

LONG, LATER = 0.4, 0.2
"""A sleep of at least so many seconds may take LATER seconds longer, to end together with other work, the next look
at the latest: of what a process at rest does, waking up is a large part (some 0.1 ms of CPU time each), and all its
loops together make twenty a second."""
Waiter = asyncio.Future[bool]


class SystemClock:
    """The Clock of the operating system and of the event loop. With `server` it shows the server's time of day."""

    def __init__(self, server: ServerTime | None = None) -> None:
        self._server = server or ServerTime()
        self._sleepers: dict[Waiter, float] = {}
        """Long sleeps, with the monotonic time at which each should end."""
        self._late: float | None = None

    def now(self) -> Now:
        mono = time.monotonic()
        return Now(mono, self._server.wall(mono, time.time()))

    mono = staticmethod(time.monotonic)
    """The monotonic part of `now`; asked for twice with each decision."""

    async def sleep(self, seconds: float) -> None:
        if seconds < LONG:
            await asyncio.sleep(max(0.0, seconds))
        else:
            await self._wait(asyncio.get_running_loop().create_future(), seconds)

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        if event.is_set():
            return
        # As `event.wait` does. Under `asyncio.timeout` an exception would end it, which costs three times as much.
        waiter: Waiter = asyncio.get_running_loop().create_future()
        event._waiters.append(waiter)
        try:
            await self._wait(waiter, seconds)
        finally:
            event._waiters.remove(waiter)

    async def _wait(self, waiter: Waiter, seconds: float) -> None:
        if seconds >= LONG:
            self._sleepers[waiter] = time.monotonic() + seconds
            seconds += LATER
        seconds = max(0.0, seconds)
        timer = asyncio.get_running_loop().call_later(seconds, self._time_out, waiter, time.monotonic() + seconds)
        try:
            await waiter
        finally:
            timer.cancel()
            self._sleepers.pop(waiter, None)

    def end_sleeps(self) -> None:
        now = time.monotonic()
        for waiter, at in self._sleepers.items():
            if at <= now:
                _end(waiter)

    def _time_out(self, waiter: Waiter, due_at: float) -> None:
        self._late = max(0.0, time.monotonic() - due_at)
        _end(waiter)

    def lateness(self) -> float | None:
        late, self._late = self._late, None
        return late

    def random(self) -> float:
        return random.random()


def _end(waiter: Waiter) -> None:
    if not waiter.done():
        waiter.set_result(False)
