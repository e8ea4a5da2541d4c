"""A task that runs in the background of a test, and is cancelled after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from nats_backpressure.runtime.tasks import cancel_and_wait


@asynccontextmanager
async def meanwhile(*works: Coroutine[Any, Any, object]) -> AsyncIterator[None]:
    """These run until the block ends."""
    tasks = {asyncio.create_task(work) for work in works}
    try:
        yield
    finally:
        await cancel_and_wait(tasks)
