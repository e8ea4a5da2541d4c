"""Waiting, backoff, running once, bounding a dict, and cancelling."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import islice, pairwise

import pytest

from nats_backpressure.runtime.tasks import (
    LEAST_JITTER,
    Bounded,
    Once,
    backoff,
    cancel_and_wait,
    sleep_until,
    within,
)
from tests.fakes.clock import FakeClock, settled


async def test_a_loop_that_loses_a_cancellation_is_ended_all_the_same() -> None:
    lost = asyncio.Event()

    async def loop() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        lost.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(loop())
    await asyncio.sleep(0)
    await cancel_and_wait([task], again_after=0.01)
    assert lost.is_set() and task.cancelled()


async def test_one_that_is_done_is_left_alone() -> None:
    task = asyncio.create_task(asyncio.sleep(0))
    await task
    await cancel_and_wait([task])
    assert not task.cancelled()


def test_delays_double_up_to_the_last_with_jitter() -> None:
    delays = list(islice(backoff(FakeClock(), 0.1, 5.0), 200))
    full = [min(5.0, 0.1 * 2**n) for n in range(200)]
    parts = [delay / most for delay, most in zip(delays, full, strict=True)]
    assert min(parts) >= LEAST_JITTER and max(parts) <= 1.0
    assert max(parts) - min(parts) > 0.5  # spread, so that those that fail together do not retry together


def test_a_thing_is_first_once_until_it_is_forgotten() -> None:
    once = Once(most=2)
    assert [once.first("a"), once.first("a"), once.first("b")] == [True, False, True]
    once.forget("a")
    assert once.first("a")
    assert [once.first(key) for key in ("c", "d", "b")] == [True, True, True]  # beyond two the oldest counts as new


def test_a_bounded_dict_drops_its_oldest() -> None:
    entries: Bounded[str, int] = Bounded(2)
    entries["a"] = entries["b"] = 1
    entries["a"] = 2  # it stays the oldest
    entries["c"] = 3
    assert entries == {"b": 1, "c": 3}
    entries.move_to_end("b")
    entries["d"] = 4
    assert list(entries) == ["b", "d"]


async def test_what_does_not_end_in_time_is_cancelled() -> None:
    clock = FakeClock()
    work = asyncio.ensure_future(asyncio.Event().wait())
    with pytest.raises(TimeoutError):
        await clock.finish(within(clock, 5.0, work))
    assert work.cancelled() and clock.now().mono == FakeClock().now().mono + 5.0


async def test_what_ends_in_time_gives_its_result_or_its_error() -> None:
    async def work(*, fail: bool) -> str:
        await clock.sleep(1.0)
        if fail:
            raise ValueError("no")
        return "done"

    clock = FakeClock()
    assert await clock.finish(within(clock, 5.0, work(fail=False))) == "done"
    with pytest.raises(ValueError, match="no"):
        await clock.finish(within(clock, 5.0, work(fail=True)))


async def test_a_cancelled_wait_leaves_nothing_running() -> None:
    clock = FakeClock()
    work = asyncio.ensure_future(asyncio.Event().wait())
    waiting = asyncio.ensure_future(within(clock, 5.0, work))
    await settled()
    await cancel_and_wait([waiting])
    assert waiting.cancelled() and work.cancelled()


async def test_a_sleep_ends_early_when_its_event_is_set() -> None:
    clock, event = FakeClock(), asyncio.Event()
    began = clock.now().mono
    assert not await clock.finish(sleep_until(event, clock, 3.0)) and clock.now().mono == began + 3.0
    sleeping = asyncio.ensure_future(sleep_until(event, clock, 3.0))
    await clock.run(1.0)
    event.set()
    assert await clock.finish(sleeping) and clock.now().mono == began + 4.0


async def test_sleepers_wake_in_the_order_of_their_moments() -> None:
    clock = FakeClock()
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, *seconds: float) -> None:
        for each in seconds:
            await clock.sleep(each)
            woken.append((name, clock.now().mono - 1000.0))

    sleepers = [asyncio.ensure_future(sleeper(*one)) for one in (("a", 2.0, 2.0), ("b", 1.0, 1.0), ("c", 2.0))]
    await clock.run(3.0)
    assert woken == [("b", 1.0), ("a", 2.0), ("c", 2.0), ("b", 2.0)]
    assert all(before <= after for (_, before), (_, after) in pairwise(woken))
    await cancel_and_wait(sleepers)
