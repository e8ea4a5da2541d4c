"""Turns: as many at once as allowed, in order; one that hangs is not waited for."""

from __future__ import annotations

import asyncio

from nats_backpressure.adapters.nats.concurrency_limit import ConcurrencyLimit


async def test_as_many_at_once_as_allowed_and_the_others_in_order() -> None:
    turns, order = ConcurrencyLimit(2, held=3600.0), list[str]()
    first, second = await turns.acquire(), await turns.acquire()

    async def take(name: str) -> None:
        turn = await turns.acquire()
        order.append(name)
        turns.release(turn)

    waiting = [asyncio.create_task(take(name)) for name in "abc"]
    await asyncio.sleep(0)
    assert order == []
    turns.release(first)
    await asyncio.gather(*waiting)
    assert order == ["a", "b", "c"]
    turns.release(second)


async def test_those_that_hang_are_not_waited_for_and_their_end_frees_nothing_twice() -> None:
    turns = ConcurrencyLimit(2, held=0.02)
    hanging = [await turns.acquire() for _ in range(5)]
    for turn in hanging * 2:
        turns.release(turn)
    assert turns._free._value == 2
