"""Wakeups: what the subscription to the state bucket noticed since the last look."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from nats.aio.msg import Msg

MOST_NOTICED = 1024
"""Keys that are remembered at once; the writes of others are found by reading on, which does not wait for them."""


class WatchRestart(Exception):
    """The watch is replaced by another one though nothing is wrong with it."""


class Wakeups:
    """What the subscription noticed since the last look, and whether to begin again."""

    def __init__(self, prefix: str) -> None:
        """`prefix` is what the subject of each key begins with."""
        self._prefix = prefix
        self._event = asyncio.Event()
        self._values: dict[str, int] = {}
        self._noticed_at = 0.0
        self._restart = False

    async def receive(self, message: Msg) -> None:
        if not self._values:
            self._noticed_at = time.monotonic()
            self._event.set()
        key = message.subject.removeprefix(self._prefix)
        if key in self._values or len(self._values) < MOST_NOTICED:
            self._values[key] = hash(message.data)

    def restart(self) -> None:
        self._restart = True
        self._event.set()

    def check_restart(self) -> None:
        """Raises WatchRestart."""
        if self._restart:
            raise WatchRestart

    async def wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()

    def take(self) -> tuple[dict[str, int], float]:
        """The keys whose writes were noticed since the last call, each with the hash of the last value, and when the
        first of them was."""
        values, self._values = self._values, {}
        self._event.clear()
        return values, self._noticed_at
