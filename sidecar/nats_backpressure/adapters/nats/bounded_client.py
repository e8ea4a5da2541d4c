"""A client wrapper for the NATS micro framework: bounded queues, replies to inboxes only, and an orderly close."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from types import MappingProxyType
from typing import Any

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from nats_backpressure.adapters.nats.direct_replies import AT_ONCE, SECONDS_AT_ONCE, Answer
from nats_backpressure.adapters.nats.patched_client import PatchedClient, settled

log = structlog.get_logger()

WAITING, WAITING_BYTES = 1024, 4 * 1024 * 1024
"""Requests that may wait per endpoint, and bytes of them; the client drops and counts further ones."""

Handler = Callable[[Msg], Coroutine[Any, Any, None]]


class BoundedServiceClient:
    """Everything that the framework uses of a client. `allowed` decides whether a request is answered at all; requests
    on `slow` subjects do not delay the next ones; requests on those of `direct` do not come here if they can be
    answered at once."""

    def __init__(
        self,
        client: Client,
        allowed: Callable[[Msg], bool],
        slow: Collection[str] = (),
        direct: Mapping[str, Answer] = MappingProxyType({}),
    ) -> None:
        self.client, self._allowed, self._slow, self._direct = client, allowed, slow, direct
        self.alias: Subscription | None = None
        self._open: list[Subscription] = []
        self._slow_requests: set[asyncio.Task[None]] = set()
        """Running requests on `slow` subjects. A subscription passes on its messages one after the other, and the next
        must not wait for one that reads the stream. The query that answers them bounds their number."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    async def subscribe(self, subject: str, queue: str = "", cb: Handler | None = None) -> Subscription:
        assert cb is not None
        turn = _Turn()

        async def handle(message: Msg) -> None:
            if self._allowed(message):
                if subject in self._slow:
                    self._start(cb(message))
                else:
                    await cb(message)
            # A full queue is read without a pause: yield, or a flood here would delay everything else.
            if turn.over(subscription.pending_msgs):
                await asyncio.sleep(0)

        subscription = await self.client.subscribe(
            subject, queue, handle, pending_msgs_limit=WAITING, pending_bytes_limit=WAITING_BYTES
        )
        if (answer := self._direct.get(subject)) is not None and isinstance(self.client, PatchedClient):
            self.client.direct.add(subscription._id, answer)
        self._open.append(subscription)
        return subscription

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._slow_requests.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._slow_requests.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:  # the client is gone, the caller too
            log.debug("responder.unanswered", error=type(error).__name__)

    async def close(self, seconds: float) -> None:
        """Take no more requests, answer those that have arrived, and send the answers, within `seconds`. The stop
        of the framework would drop waiting requests."""
        try:
            async with asyncio.timeout(seconds):
                for subscription in self._open:
                    await self.client._send_unsubscribe(subscription._id)
                await settled(self.client)
                for subscription in self._open:
                    await subscription._pending_queue.join()
                await asyncio.gather(*self._slow_requests, return_exceptions=True)
                await settled(self.client)
        except (TimeoutError, nats.errors.Error) as error:  # the connection may be gone, and all callers with it
            log.debug("responder.stopped_early", error=type(error).__name__)


class _Turn:
    """When a subscription whose queue is never empty gives other tasks a turn."""

    def __init__(self) -> None:
        self._messages, self._ends = 0, 0.0

    def over(self, waiting: int) -> bool:
        """Called after each message; `waiting` messages are in the queue. Without any, the others get their turn."""
        now = time.monotonic()
        over = self._messages >= AT_ONCE or now >= self._ends
        if over or not waiting:
            self._messages, self._ends = 0, now + SECONDS_AT_ONCE
        self._messages += 1
        return over and waiting > 0
