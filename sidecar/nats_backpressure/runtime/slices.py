"""Slices: divides long loops, so that all of them together hold the event loop for a bounded time per turn.

With a slice for each of them, twenty streams whose first lists were judged together held it for more than 20 ms.
"""

from __future__ import annotations

import asyncio
from collections import deque
from weakref import WeakKeyDictionary

from nats_backpressure.runtime.ports import Clock

SLICE = 0.001
"""Seconds of work after which long loops let other tasks have a turn. A request waits for up to three slices: to be
received, read and answered."""


class Slices:
    """Divides a long loop into slices, between which other tasks have a turn. The long loops of one event loop share
    SLICE seconds of each of its turns; two such slices where one ends its work and another begins."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._again = clock, False
        loop = asyncio.get_running_loop()
        if (turns := _TURNS.get(loop)) is None:
            turns = _TURNS[loop] = _Turns()
        self._turns = turns

    @property
    def over(self) -> bool:
        """Whether it is time to let others have a turn. Asking costs less than `pause` does where nothing is to do."""
        return self._clock.mono() >= self._turns.ends_at

    async def pause(self) -> None:
        """To be called between two pieces of work, which must be short: lets others have a turn when it is time."""
        if self.over:
            await self._turns.wait(self._again)
            self._again = True
            self._turns.ends_at = self._clock.mono() + SLICE


class _Turns:
    """Whose slice is next: first come, first served. Those that had none yet alternate with those that had, so that
    a short reading does not wait for every long list, and none waits for ever."""

    def __init__(self) -> None:
        self.ends_at = 0.0
        self._busy = False
        self._new, self._begun = deque[asyncio.Future[None]](), deque[asyncio.Future[None]]()
        self._order = deque((self._new, self._begun))

    async def wait(self, again: bool) -> None:
        loop = asyncio.get_running_loop()
        if not self._busy:
            self._busy = True
            loop.call_soon(self._next)
            return
        turn = loop.create_future()
        (self._begun if again else self._new).append(turn)
        await turn

    def _next(self) -> None:
        """Called once in each turn of the event loop while there is work: one goes on in the next turn."""
        self._order.rotate()
        for waiting in self._order:
            while waiting:
                if not (turn := waiting.popleft()).done():  # otherwise its task was cancelled
                    turn.set_result(None)
                    asyncio.get_running_loop().call_soon(self._next)
                    return
        self._busy = False


_TURNS: WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns] = WeakKeyDictionary()
