"""Tasks are cancelled until they are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

AGAIN_AFTER = 2.0
"""Seconds: longer than it takes any task to clean up behind itself (a connection waits a second for its end)."""


async def cancel_and_wait(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Returns when all are done. Once is not enough: before Python 3.12 asyncio.wait_for, which nats-py stands on,
    loses a cancellation that comes together with an answer, and a loop would go on for ever."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN_AFTER)
