"""The real clock: the only place where the service reads time, sleeps and draws random numbers."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress

from nats_backpressure.protocol.timestamps import Now


class SystemClock:
    """The Clock of the operating system and of the event loop."""

    def now(self) -> Now:
        return Now(time.monotonic(), time.time())

    def mono(self) -> float:
        """The monotonic part of `now`."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        # Half of what two tasks would cost, a sleep and a wait; it is most of what an idle process does.
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()

    def random(self) -> float:
        return random.random()
