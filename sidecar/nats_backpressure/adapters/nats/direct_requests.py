"""DirectRequests: requests of a client whose replies are taken inside its read loop, over one subscription.

nats-py switches to another task to send, and for each reply. A process at rest sends seven requests a second, with cold
caches, and little else: each costs a fifth less here (360 µs of CPU instead of 440; a wake-up alone takes 130).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING

import nats.errors
from nats.aio.msg import Msg

if TYPE_CHECKING:
    from nats_backpressure.adapters.nats.patched_client import PatchedClient

Waiting = tuple["asyncio.Future[tuple[bytes, bytes]]", float, str]
"""Gets the data and the headers of the reply; the time of the loop at which it is too late; what it was sent to."""
NO_RESPONDERS = "503"
AT_ONCE = 8
"""Replies after which those who wait for them get a turn: many that come together would hold the event loop for as long
as all of them take, 45 ms while 10,000 states are first stored."""
SOONEST = 0.002
"""Seconds between two looks at what is too late, at least: timers may run a millisecond early."""


class DirectRequests:
    """The requests of one client that are under way; those who send them bound their number."""

    def __init__(self, client: PatchedClient) -> None:
        self._client = client
        self.waiting: dict[bytes, Waiting] = {}
        """By the subject of the reply."""
        self._timer: asyncio.TimerHandle | None = None
        """Ends the first of those whose time is over. One for all: nearly every request has its reply long before."""
        self._inbox, self._subscription, self._number = "", 0, count()
        self.replies = 0
        """How many came: each proves that the connection works in both directions."""
        self.proved_at = -math.inf
        """Monotonic time at which the newest request that was answered was sent."""

    async def send(self, subject: str, payload: bytes, headers: dict[str, str] | None, seconds: float) -> Msg:
        """Send a request and wait for its reply. Raises TimeoutError, NoRespondersError, what `publish` raises, and
        what `end_denied` is given."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        if not self._inbox:  # set before anything waits, so that there is one subscription
            self._inbox = self._client.new_inbox()
            async with asyncio.timeout_at(deadline):
                self._subscription = (await self._client.subscribe(f"{self._inbox}.*"))._id
        inbox = f"{self._inbox}.{next(self._number)}"
        key, reply = inbox.encode(), loop.create_future()
        self.waiting[key] = reply, deadline, subject
        asked_at = time.monotonic()
        try:
            if headers is not None or not self._write(subject, inbox, payload):
                async with asyncio.timeout_at(deadline):
                    await self._client.publish(subject, payload, reply=inbox, headers=headers)
            self._end_at(deadline)
            data, block = await reply
            self.proved_at = max(self.proved_at, asked_at)
        finally:
            self.waiting.pop(key, None)
        fields = await self._client._process_headers(block) if block else None
        if fields and fields.get("Status") == NO_RESPONDERS:
            raise nats.errors.NoRespondersError
        return Msg(_client=self._client, subject=inbox, data=data, headers=fields)

    def _end_at(self, deadline: float) -> None:
        """Have the timer run then, if it does not run before."""
        if self._timer is not None and self._timer.when() <= deadline:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(deadline, self._end_late)

    def _end_late(self) -> None:
        now, self._timer = asyncio.get_running_loop().time(), None
        for reply, deadline, _ in self.waiting.values():
            if deadline <= now and not reply.done():
                reply.set_exception(TimeoutError())
        if deadlines := [deadline for reply, deadline, _ in self.waiting.values() if not reply.done()]:
            self._end_at(max(min(deadlines), now + SOONEST))

    def end_denied(self, denies: Callable[[str], bool], error: Exception) -> None:
        """The server refuses what is sent to some subjects: no reply will come."""
        for reply, _, sent_to in self.waiting.values():
            if denies(sent_to) and not reply.done():
                reply.set_exception(error)

    def end_all(self) -> None:
        """The connection is lost: no reply will come, and who asked may ask on the next one."""
        for reply, _, _ in self.waiting.values():
            if not reply.done():
                reply.set_exception(nats.errors.ConnectionClosedError())
                reply.exception()  # who asked may still be sending, and end with another error

    def _write(self, subject: str, inbox: str, payload: bytes) -> bool:
        """Write a request to the socket, without the task that nats-py has for that; False where anything is unusual:
        `publish` waits or raises then."""
        # What waits may be the subscription of our own inbox.
        return not self._client._pending and self._client.write_at_once(subject, payload, inbox)

    @property
    def pause_due(self) -> bool:
        """Whether those who wait for what came should get a turn now."""
        return self.replies % AT_ONCE == 0

    def take(self, subscription: int, subject: bytes, data: bytes, headers: bytes) -> bool:
        """Pass a message on to the request that waits for it; returns whether it was a reply. A late one is dropped."""
        if subscription != self._subscription:
            return False
        stats = self._client.stats
        stats["in_msgs"] += 1
        stats["in_bytes"] += len(data)
        waiting = self.waiting.pop(subject, None)
        if waiting is not None and not waiting[0].done():
            self.replies += 1
            waiting[0].set_result((data, headers))
        return True
