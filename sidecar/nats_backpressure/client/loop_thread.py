"""LoopThread: an event loop in a thread of its own, which holds a lock except while it waits for the network."""

from __future__ import annotations

import _thread
import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from selectors import DefaultSelector, SelectorKey
from typing import Any

from nats_backpressure.client.stats import log

_here = threading.local()


def in_loop_thread() -> bool:
    """Whether the thread that asks is that of a loop: it holds its lock."""
    return getattr(_here, "is_loop", False)


class UnlockedWait(DefaultSelector):
    """What an event loop waits with; the lock is free meanwhile."""

    def __init__(self, lock: threading.RLock) -> None:
        super().__init__()
        self._lock = lock

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        self._lock.release()
        try:
            return super().select(timeout)
        finally:
            self._lock.acquire()


class LoopThread:
    """Runs `main(stop)` until `stop` is set. What it runs and who holds the lock never run at the same time, as if all
    were one thread: so nothing that the loop changes has to know of threads. Who wants the lock waits for one step of
    the loop at most, and never for the network."""

    def __init__(self, lock: threading.RLock, main: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
        """Raises RuntimeError where threads are replaced (gevent, eventlet): an event loop would stop the process."""
        if not inspect.isbuiltin(_thread.start_new_thread):
            raise RuntimeError("gevent or eventlet replaces the threads of this process: use workers with threads")
        self._lock, self._main = lock, main
        self._loop, self._stop = asyncio.SelectorEventLoop(UnlockedWait(lock)), asyncio.Event()
        self._runs = threading.Lock()
        """Held by the thread that runs the loop: the first one, where several were started."""
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """May be called again where a signal's handler raised in it. Raises RuntimeError where the process may have no
        more threads."""
        # A daemon: a process that ends without `stop` does not wait for it.
        thread = threading.Thread(target=self._run, name="backpressure", daemon=True)
        if not self._runs.locked():
            self._thread = thread
        try:
            thread.start()
        except RuntimeError:
            self._loop.close()
            raise

    def stop(self, timeout: float) -> bool:
        """End it; whether it has ended within `timeout` seconds. Not with the lock held."""
        with suppress(RuntimeError):  # it has ended already
            self._loop.call_soon_threadsafe(self._stop.set)
        if (thread := self._thread) is None:
            return True
        if thread is not threading.current_thread():
            thread.join(timeout)
        return not thread.is_alive()

    def _run(self) -> None:
        if not self._runs.acquire(blocking=False):
            return
        self._thread = threading.current_thread()
        _here.is_loop = True
        with self._lock, asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                runner.run(self._main(self._stop))
            except Exception:
                log.exception(
                    "the thread of the backpressure client ended: the states it has grow old, and then every request "
                    "is admitted until the process is started again"
                )
