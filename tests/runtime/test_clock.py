"""The real clock: sleeps last as long as asked, and long ones end together with other work."""

from __future__ import annotations

import asyncio
import time

import pytest

from nats_backpressure.core.reading.server_time import ServerTime
from nats_backpressure.runtime import clock as clock_module
from nats_backpressure.runtime.clock import LATER, LONG, SystemClock


async def test_a_sleep_never_ends_early() -> None:
    clock, began = SystemClock(), time.monotonic()
    await asyncio.gather(clock.sleep(0.0), clock.sleep(-1.0), clock.sleep(0.05))
    assert time.monotonic() - began >= 0.05
    await clock.wait(asyncio.Event(), 0.05)
    assert time.monotonic() - began >= 0.1


async def test_a_long_sleep_that_is_over_ends_with_the_next_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock_module, "LATER", 60.0)
    clock, event, began = SystemClock(), asyncio.Event(), time.monotonic()
    sleeping = [asyncio.ensure_future(clock.sleep(LONG)), asyncio.ensure_future(clock.wait(event, LONG))]
    later = asyncio.ensure_future(clock.sleep(LONG + 60))
    while not all(task.done() for task in sleeping):
        await asyncio.sleep(0.01)
        clock.end_sleeps()
        assert all(not task.done() for task in sleeping) or time.monotonic() - began >= LONG
    assert not event.is_set() and not later.done()
    later.cancel()
    await asyncio.wait({later})
    assert not clock._sleepers


async def test_without_other_work_a_long_sleep_ends_a_little_later() -> None:
    clock, began = SystemClock(), time.monotonic()
    await clock.sleep(LONG)
    assert time.monotonic() - began >= LONG + LATER


async def test_a_wait_ends_as_soon_as_its_event_is_set_or_it_is_cancelled() -> None:
    clock, event = SystemClock(), asyncio.Event()
    waiting = [asyncio.ensure_future(clock.wait(event, seconds)) for seconds in (0.3, 3600.0, 3600.0)]
    await asyncio.sleep(0)
    waiting[2].cancel()
    await asyncio.wait({waiting[2]})
    assert waiting[2].cancelled() and not waiting[1].done()
    event.set()
    await asyncio.gather(*waiting[:2])
    await clock.wait(event, 3600.0)  # it is set already
    assert not clock._sleepers and not event._waiters


async def test_it_tells_once_how_late_its_newest_timer_ended() -> None:
    clock, event = SystemClock(), asyncio.Event()
    assert clock.lateness() is None
    asyncio.get_running_loop().call_later(0.005, time.sleep, 0.1)  # it holds the loop
    await clock.wait(event, 0.02)
    late = clock.lateness()
    assert late is not None and late >= 0.07
    asyncio.get_running_loop().call_soon(event.set)
    await clock.wait(event, 60.0)
    assert clock.lateness() is None, "no timer ended"


def test_it_shows_the_servers_time_of_day_once_that_is_known() -> None:
    server = ServerTime()
    clock, began = SystemClock(server), time.time()
    assert began <= clock.now().wall
    asked_at = time.monotonic()
    server.add(1000.0, asked_at, asked_at)
    now = clock.now()
    assert now.wall == pytest.approx(1000.0 + now.mono - asked_at)
