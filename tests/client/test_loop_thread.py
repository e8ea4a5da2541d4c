"""The event loop in a thread that holds a lock: what it runs and who holds the lock never run at the same time."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator

import pytest

from nats_backpressure.client.loop_thread import LoopThread


@pytest.fixture
def often_switched() -> Iterator[None]:
    """The interpreter changes threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("often_switched")
def test_steps_of_the_loop_and_holders_of_the_lock_never_run_at_the_same_time() -> None:
    lock, inside, both, steps = threading.RLock(), [0], [0], [0]

    def step() -> None:
        inside[0] += 1
        for _ in range(50):
            both[0] += inside[0] != 1
        inside[0] -= 1

    async def main(stop: asyncio.Event) -> None:
        while not stop.is_set():
            step()
            steps[0] += 1
            await asyncio.sleep(0)

    thread = LoopThread(lock, main)
    thread.start()
    for _ in range(2000):
        with lock:
            step()
    while steps[0] < 10:  # it gets its turn, too
        pass
    assert thread.stop(10)
    assert both == [0]


def test_what_waits_for_the_network_holds_nobody_up() -> None:
    lock = threading.RLock()

    async def main(stop: asyncio.Event) -> None:
        await stop.wait()

    thread = LoopThread(lock, main)
    thread.start()
    for _ in range(100):
        assert lock.acquire(timeout=10)
        lock.release()
    assert thread.stop(10)
    assert thread.stop(10), "once more does no harm"


def test_one_that_fails_says_so_and_frees_the_lock(caplog: pytest.LogCaptureFixture) -> None:
    lock = threading.RLock()

    async def main(stop: asyncio.Event) -> None:
        raise ValueError("a bug")

    thread = LoopThread(lock, main)
    thread.start()
    assert thread.stop(10)
    assert lock.acquire(timeout=10)
    lock.release()
    [record] = caplog.records
    assert "grow old" in record.message and record.exc_info is not None
