"""Long loops share the turns of the event loop."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from nats_backpressure.runtime.slices import SLICE, Slices
from nats_backpressure.runtime.tasks import cancel_and_wait
from tests.fakes.clock import FakeClock

PIECE = 0.3 * SLICE
"""Seconds of each piece of work."""
PIECES = 4
"""Pieces in a slice: the last begins within it."""


class World:
    """Tasks that work in slices; the time passes only by their work."""

    def __init__(self) -> None:
        self.clock, self.done, self.order = FakeClock(), Counter[str](), list[str]()

    async def work(self, name: str, pieces: int) -> None:
        slices = Slices(self.clock)
        for _ in range(pieces):
            await slices.pause()
            self.clock.advance(PIECE)
            self.done[name] += 1
            self.order.append(name)

    def start(self, name: str, pieces: int = 1_000_000) -> asyncio.Task[None]:
        return asyncio.create_task(self.work(name, pieces))

    async def turns(self, most: int) -> list[float]:
        """Seconds of work in each turn of the loop."""
        seconds = []
        for _ in range(most):
            before = self.clock.mono()
            await asyncio.sleep(0)
            seconds.append(self.clock.mono() - before)
        return seconds


@pytest.mark.parametrize("tasks", [1, 2, 20, 300])
async def test_long_loops_work_one_slice_in_each_turn_of_the_event_loop_however_many_there_are(tasks: int) -> None:
    world = World()
    running = [world.start(f"list {n}") for n in range(tasks)]
    worked = await world.turns(2 * tasks + 5)
    assert len(world.done) == tasks
    world.done.clear()
    worked += await world.turns(3 * tasks)
    await cancel_and_wait(running)
    assert max(worked) <= SLICE + PIECE
    assert sum(worked) >= SLICE * (len(worked) - 3)  # no turn is left unused after the first ones
    assert set(world.done.values()) == {3 * PIECES}


async def test_short_loops_that_come_together_keep_a_turn_short_and_all_end() -> None:
    """Each ends within its slice, so that none of them ever has to pause for itself."""
    world = World()
    running = [world.start(f"look {n}", pieces=3) for n in range(50)]
    worked = await world.turns(120)
    assert max(worked) <= 2 * (SLICE + PIECE)
    assert all(task.done() for task in running) and set(world.done.values()) == {3}


async def test_a_few_samples_wait_for_one_slice_of_the_long_lists_and_not_for_each_of_them() -> None:
    world = World()
    running = [world.start(f"list {n}") for n in range(20)]
    await world.turns(50)
    begun = len(world.order)
    running.append(world.start("hot", pieces=3))
    await world.turns(6)
    await cancel_and_wait(running)
    assert world.done["hot"] == 3
    assert world.order.index("hot") - begun <= 3 * PIECES


async def test_a_stream_of_new_loops_does_not_keep_a_long_one_from_its_turns() -> None:
    world = World()
    running = [world.start("list")]
    for n in range(40):
        running += [world.start(f"hot {n} {m}", pieces=4) for m in range(2)]
        await asyncio.sleep(0)
    await cancel_and_wait(running)
    assert world.done["list"] >= 15 * PIECES


async def test_a_loop_that_is_cancelled_while_it_waits_costs_the_others_no_turn() -> None:
    world = World()
    running = [world.start(f"list {n}") for n in range(10)]
    await world.turns(20)
    await cancel_and_wait(running[:9])
    worked = await world.turns(10)
    await cancel_and_wait(running)
    assert sum(worked) >= SLICE * 9 and not any(f"list {n}" in world.order[-40:] for n in range(9))


async def test_one_begins_at_once_where_no_other_works() -> None:
    world = World()
    for n in range(3):
        task = world.start(f"hot {n}", pieces=2)
        assert await world.turns(1) == pytest.approx([2 * PIECE])
        assert task.done()
        await world.turns(2)
