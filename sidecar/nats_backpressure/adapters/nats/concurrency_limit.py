"""ConcurrencyLimit: limits how many do something at once, where one that hangs must not keep the others waiting."""

from __future__ import annotations

import asyncio
from itertools import count


class ConcurrencyLimit:
    """At most `most` at once, in the order in which they ask; one that has had its turn for `held` seconds does not
    count any more. There is a timer only while somebody has to wait: most requests need none."""

    def __init__(self, most: int, held: float) -> None:
        self._free, self._held = asyncio.Semaphore(most), held
        self._since: dict[int, float] = {}
        """When each that counts had its turn, the oldest first."""
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None

    async def acquire(self) -> int:
        """Wait for a turn; returns its number, for `release`."""
        if self._free.locked():
            self._watch()
        await self._free.acquire()
        number = next(self._numbers)
        self._since[number] = asyncio.get_running_loop().time()
        return number

    def release(self, number: int) -> None:
        """It ended; again for one that does not count any more, which changes nothing."""
        if self._since.pop(number, None) is not None:
            self._free.release()

    def _watch(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            oldest = next(iter(self._since.values()), loop.time())
            self._timer = loop.call_at(oldest + self._held, self._release_old)

    def _release_old(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for number in [number for number, since in self._since.items() if now - since >= self._held]:
            self.release(number)
        if self._free.locked():
            self._watch()
