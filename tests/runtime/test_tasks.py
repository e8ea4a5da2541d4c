"""Whatever becomes of a cancellation, what is ended does end."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from nats_backpressure.runtime import tasks
from nats_backpressure.runtime.tasks import cancel_and_wait


async def test_a_loop_that_loses_a_cancellation_is_ended_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "AGAIN_AFTER", 0.01)
    lost = asyncio.Event()

    async def loop() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        lost.set()
        await asyncio.sleep(60)

    task = asyncio.create_task(loop())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await cancel_and_wait([task])
    assert lost.is_set() and task.cancelled()


async def test_one_that_is_done_is_left_alone() -> None:
    task = asyncio.create_task(asyncio.sleep(0))
    await task
    await cancel_and_wait([task])
    assert not task.cancelled()
