"""ThreadedClient: `admit` for gateways without an event loop (Flask, Django, gRPC), from any number of threads."""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakSet

from nats.aio.client import Client

from nats_backpressure.client.admission import Admission
from nats_backpressure.client.cached_admission import CachedAdmission
from nats_backpressure.client.client import BackpressureClient
from nats_backpressure.client.loop_thread import LoopThread, in_loop_thread
from nats_backpressure.client.own_connection import checked_options, stay_connected
from nats_backpressure.client.shedder import NORMAL
from nats_backpressure.client.stats import Stats, log
from nats_backpressure.client.subject_filter import SubjectFilter
from nats_backpressure.protocol.values import ActionName, Priority

CLOSE_TIMEOUT = 5.0
"""Seconds that `close` waits for the thread; one that hangs then ends with the process."""

LOCK_SECONDS = 0.25
"""Seconds that `admit` waits for a step of the loop, at most; then it admits. A step takes far less, unless `on_count`
or a handler of log lines blocks."""
CONNECT_ENDS = 0.2
"""Seconds that a connect under way may take at the end: asyncio leaves the socket open of one that is cancelled at the
wrong moment (3.11)."""
RETRY_SECONDS = 1.0
"""Seconds before the next try to start a thread, where the process could have no more."""


class ThreadedClient:
    """A BackpressureClient with an event loop in a thread of its own and a connection of its own. Thread-safe.

    Making one opens nothing: the thread starts with the first `admit` (or `start`) of the process, and admits until the
    states are read. So it may be made before a server forks its workers. A process that forks after that is followed by
    its child with a thread, a connection and counters of the child's own. With gevent or eventlet it admits everything.
    """

    _admitting: int
    """The thread that holds the lock for an `admit`; 0 for none."""

    def __init__(
        self,
        servers: str | list[str],
        subjects: str | Iterable[str] = (">",),
        *,
        make: Callable[[Client], BackpressureClient] = BackpressureClient,
        **connect_options: Any,
    ) -> None:
        """`subjects` are followed, as those of `BackpressureClient.watch`. `make` makes the client, for other arguments
        than the default ones: `partial(BackpressureClient, name="eu")`; its `on_count` is called in the thread that
        calls `admit`. `connect_options` are those of nats-py's `connect`: `user_credentials`, `tls` and the like.

        Raises ValueError for what is no subject, and TypeError for an option that there is not.
        """
        self._arguments = checked_options(servers, connect_options)
        self._subjects = [subjects] if isinstance(subjects, str) else list(subjects)
        SubjectFilter().add(self._subjects)
        self._make, self._closed, self._needs_thread = make, False, True
        self._thread: LoopThread | None = None
        self._next_try = 0.0
        """Monotonic time, after a try to start the thread that failed."""
        self._reset()
        _instances.add(self)

    @classmethod
    def fixed(
        cls, action: ActionName = "continue", *, admit_ratio: float | None = None, retry_after_seconds: int = 30
    ) -> ThreadedClient:
        """For the tests of an application: without a connection and a thread, it decides the same for every subject.
        The arguments are those of `BackpressureClient.fixed`."""

        def make(_: Client) -> BackpressureClient:
            return BackpressureClient.fixed(action, admit_ratio=admit_ratio, retry_after_seconds=retry_after_seconds)

        client = cls("none", make=make)
        client._needs_thread = False
        client._reset()
        return client

    def __enter__(self) -> ThreadedClient:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The name of the installation."""
        return self._client.name

    @property
    def stats(self) -> Stats:
        """The counters of this process."""
        return self._client.stats

    def admit(self, subject: str | None, priority: Priority = NORMAL) -> Admission:
        """Whether to let one request through, as BackpressureClient.admit decides it. It does not wait for the network.
        After `close` the states that it has grow old, and then it admits."""
        if not self._started:
            self._start()
        lock, me = self._lock, threading.get_ident()
        if lock._is_owned():  # type: ignore[attr-defined]  # as threading.Condition asks it
            if self._admitting == me or in_loop_thread():
                return self._client.admit(subject, priority)  # `on_count`, or a handler of log lines, calls us again
            self._unlock()
        try:
            if not lock.acquire(timeout=LOCK_SECONDS):
                return self._admitted_unasked()
            self._admitting = me
            return self._client.admit(subject, priority)
        finally:
            # The handler of a signal may raise after each call: before the first one here the lock is freed, or it was
            # just acquired. What is left then the next `admit` of this thread frees.
            if self._admitting == me:
                self._admitting = 0
                try:  # noqa: SIM105  # a call before it could raise
                    lock.release()
                except RuntimeError:  # the handler asked too, and freed it
                    pass
            else:
                self._unlock()

    def start(self, wait: float = 0.0) -> bool:
        """Start following the states, where the first `admit` should not be what does. Returns whether every state was
        read within `wait` seconds; it goes on trying. Raises RuntimeError after `close`."""
        if self._closed:
            raise RuntimeError("this ThreadedClient is closed: make another one")
        self._start()
        return self._ready.wait(wait)

    def close(self) -> None:
        """End the thread and the connection, within 5 s."""
        if self._admitting != threading.get_ident() and not in_loop_thread():
            self._unlock()
        with self._starting:
            thread, self._thread = self._thread, None
            self._started = self._closed = True
        if thread is not None and not thread.stop(CLOSE_TIMEOUT):
            log.warning("the thread of the backpressure client did not end within %g s", CLOSE_TIMEOUT)

    def _unlock(self) -> None:
        """Free the lock if this thread has it, where the handler of a signal raised when it was acquired."""
        while self._lock._is_owned():  # type: ignore[attr-defined]
            self._lock.release()

    def _reset(self) -> None:
        """As before the first use in a process."""
        # RLocks: `on_count` and handlers of log lines may call us again.
        self._lock, self._starting, self._ready = threading.RLock(), threading.RLock(), threading.Event()
        self._admitting = 0
        self._nc, self._thread, self._next_try = Client(), None, 0.0
        self._client: BackpressureClient = self._make(self._nc)
        self._started = self._closed or not self._needs_thread
        if not self._needs_thread:
            self._ready.set()

    def _start(self) -> None:
        with self._starting:
            if self._started or (now := time.monotonic()) < self._next_try:
                return
            try:
                if self._thread is None:  # else the handler of a signal raised while it started
                    self._thread = LoopThread(self._lock, self._follow)
                self._thread.start()
            except (RuntimeError, OSError) as error:  # no more threads or open files, or threads that are none
                self._thread, self._next_try = None, now + RETRY_SECONDS
                text = f"no thread for the backpressure client: every request is admitted, until there is one: {error}"
                self._client.logger.warn("no_thread", "", text)
            else:
                self._started = True
                self._client.logger.resolve("no_thread", "", "there is a thread for the backpressure client")

    def _admitted_unasked(self) -> Admission:
        self.stats.failed_open += 1  # not `count`: `on_count` may be what hangs
        text = f"admit waited {LOCK_SECONDS:g} s for the thread of the backpressure client: such requests are admitted"
        self._client.logger.warn("hangs", "", text)
        return CachedAdmission("").yes

    async def _follow(self, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            connection = group.create_task(stay_connected(self._nc, self._arguments, self._client.logger, stop))
            async with self._client:
                watch = group.create_task(self._watch())
                await stop.wait()
                watch.cancel()
            await asyncio.wait({connection}, timeout=CONNECT_ENDS)
            connection.cancel()

    async def _watch(self) -> None:
        await self._client.watch(self._subjects, timeout=math.inf)
        self._ready.set()

    def _leave_to_parent(self) -> None:
        """In a child process: the lock may be held by a thread that is not here, and the sockets are the parent's."""
        _inherited.append((self._lock, self._nc, self._client, self._thread))
        self._reset()


_instances: WeakSet[ThreadedClient] = WeakSet()
_inherited: list[object] = []
"""What a child process has of its parent's threads; one entry for each ThreadedClient and fork. It is never freed:
that would run the ends of the parent's tasks, and close what the parent uses."""


def _after_fork() -> None:
    for client in tuple(_instances):
        client._leave_to_parent()


os.register_at_fork(after_in_child=_after_fork)
