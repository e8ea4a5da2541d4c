"""Async helpers: wait, back off, do a thing once, bound a dict, and cancel tasks."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Hashable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from nats_backpressure.runtime.ports import Clock

CANCEL_AGAIN_AFTER = 2.0
"""Seconds: longer than any task needs to clean up (a connection waits one second for its end)."""
LEAST_JITTER = 0.3
"""The least part of a delay that `backoff` waits, so that no retry comes at once."""
ONCE_KEYS = 10_000
"""Keys that `Once` knows; the oldest is dropped first, and counts as new afterwards."""

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")


class Bounded(OrderedDict[K, V]):
    """A dict of at most `most` entries: one more drops the oldest. `move_to_end` makes an entry the newest."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        if len(self) > self.most:
            self.popitem(last=False)


class _Used(Protocol):
    used_at: float


U = TypeVar("U", bound=_Used)


def drop_unused(entries: Bounded[K, U], before: float) -> None:
    """Drop the oldest entries, as far as they were last used before this time."""
    while entries and next(iter(entries.values())).used_at < before:
        entries.popitem(last=False)


class Once:
    """Whether something comes for the first time, for what is logged once. Bounded."""

    def __init__(self, most: int = ONCE_KEYS) -> None:
        self._known: Bounded[Hashable, None] = Bounded(most)

    def first(self, key: Hashable = None) -> bool:
        """True the first time it is called with `key`, and again after `forget`."""
        if key in self._known:
            return False
        self._known[key] = None
        return True

    def forget(self, key: Hashable = None) -> None:
        """What was once logged is over: the next time is the first again."""
        self._known.pop(key, None)


class OnceIn:
    """Whether something comes for the first time in some seconds, for what is logged again while it lasts. Bounded."""

    def __init__(self, seconds: float, most: int = ONCE_KEYS) -> None:
        self._seconds = seconds
        self._at: Bounded[tuple[str, str], float] = Bounded(most)

    def first(self, now: float, group: str, key: str) -> bool:
        """True the first time it is called with `key`, again after `forget`, and when the seconds are over."""
        at = self._at.get((group, key))
        if at is not None and now - at < self._seconds:
            return False
        self._at[group, key] = now
        return True

    def forget(self, group: str) -> None:
        """What was logged of a group is over: the next time is the first again."""
        for key in [key for key in self._at if key[0] == group]:
            del self._at[key]


def backoff(clock: Clock, first: float, last: float) -> Iterator[float]:
    """Seconds to wait after each failed try, endlessly: a delay that doubles from `first` to `last`, with jitter (at
    least LEAST_JITTER of it), so that those that fail together do not retry together."""
    delay = first
    while True:
        yield delay * (LEAST_JITTER + (1 - LEAST_JITTER) * clock.random())
        delay = min(delay * 2, last)


async def within(clock: Clock, seconds: float, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled after `seconds`. Raises TimeoutError then."""
    working = asyncio.ensure_future(work)
    timer = asyncio.ensure_future(clock.sleep(seconds))
    try:
        await asyncio.wait((working, timer), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise TimeoutError
        return working.result()
    finally:
        await cancel_and_wait((working, timer))


async def sleep_until(event: asyncio.Event, clock: Clock, seconds: float) -> bool:
    """Sleep for `seconds`, or until the event is set; returns whether it is."""
    if not event.is_set():
        await clock.wait(event, seconds)
    return event.is_set()


async def cancel_and_wait(tasks: Iterable[asyncio.Future[Any]], again_after: float = CANCEL_AGAIN_AFTER) -> None:
    """Cancel tasks and return when all are done. One cancellation is not enough: before Python 3.12 asyncio.wait_for,
    which nats-py uses, loses one that comes together with a reply, and a loop would run forever."""
    running = {task for task in tasks if not task.done()}
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=again_after)


def raise_if_cancelled() -> None:
    """Raise CancelledError in a task whose cancellation was lost: nats-py answers some with an error of its own, and
    see `cancel_and_wait`. Called where a task that waits for nats-py would go on."""
    if (task := asyncio.current_task()) is not None and task.cancelling():
        raise asyncio.CancelledError
