"""The answering client as the service framework sees it: bounded, guarded, and closed in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from typing import Any

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from nats_backpressure.adapters.nats.patched_client import settled

log = structlog.get_logger()

WAITING, WAITING_BYTES = 1024, 4 * 1024 * 1024
"""Requests that wait per endpoint, and their payloads; the ones beyond are dropped by the client and counted."""

Handler = Callable[[Msg], Coroutine[Any, Any, None]]


class BoundedServiceClient:
    """The client as the framework sees it: nothing waits without bound, no reply but to an inbox, an end in order."""

    def __init__(self, client: Client, allowed: Callable[[Msg], bool], slow: Collection[str] = ()) -> None:
        self.client, self._allowed, self._slow = client, allowed, slow
        self.alias: Subscription | None = None
        self._open: list[Subscription] = []
        self._apart: set[asyncio.Task[None]] = set()
        """Requests on `slow` subjects: a subscription hands out its messages one after the other, and the next need not
        wait for one that reads the stream. Whoever answers them bounds how many wait."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    async def subscribe(self, subject: str, queue: str = "", cb: Handler | None = None) -> Subscription:
        assert cb is not None

        async def handle(message: Msg) -> None:
            if self._allowed(message):
                if subject in self._slow:
                    self._begin(cb(message))
                else:
                    await cb(message)
            # A full queue is read without a pause: give way, or a flood here would hold up everything else.
            await asyncio.sleep(0)

        found = await self.client.subscribe(
            subject, queue, handle, pending_msgs_limit=WAITING, pending_bytes_limit=WAITING_BYTES
        )
        self._open.append(found)
        return found

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._apart.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._apart.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:  # the client went; so did who asked
            log.debug("responder.unanswered", error=type(error).__name__)

    async def close(self, seconds: float) -> None:
        """Take no more, answer what has arrived, and send it. The framework's own stop would drop what waits."""
        try:
            async with asyncio.timeout(seconds):
                for subscription in self._open:
                    await self.client._send_unsubscribe(subscription._id)
                await settled(self.client)
                for subscription in self._open:
                    await subscription._pending_queue.join()
                await asyncio.gather(*self._apart, return_exceptions=True)
                await settled(self.client)
        except (TimeoutError, nats.errors.Error) as error:  # the connection may be gone; nobody is left to tell
            log.debug("responder.stopped_early", error=type(error).__name__)
