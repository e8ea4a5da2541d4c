"""Inbox: requests whose replies come to subjects of one asker.

With nats-py's own requests all replies of a connection come to one prefix, and all its workers look like one asker.
"""

from __future__ import annotations

import asyncio
import re

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import NoRespondersError

NO_RESPONDERS = "503"
DENIED = re.compile(r'permissions violation for subscription to "_inbox', re.IGNORECASE)


def denied_inbox(nc: Client) -> str:
    """What to add to an error of a connection whose replies the server does not let it receive; else nothing."""
    denied = DENIED.search(str(nc.last_error or ""))
    return (
        "; the server denies its inbox: connect with an `inbox_prefix` that this user may subscribe to"
        if denied
        else ""
    )


class Inbox:
    """The subscription is made with the first request, and ends with the connection, or by `close`."""

    def __init__(self, nc: Client) -> None:
        self._nc, self._prefix = nc, nc.new_inbox()
        self._subscription: Subscription | None = None
        self._subscribing = asyncio.Lock()
        self._sent = 0
        self._waiting: dict[str, asyncio.Future[Msg]] = {}
        """By reply subject; as many as requests are under way."""

    @property
    def is_open(self) -> bool:
        """Whether it was used, and not closed since."""
        return self._subscription is not None and not self._subscription._closed

    async def request(self, subject: str, payload: bytes, timeout: float) -> Msg:
        """Raises TimeoutError after `timeout` seconds, NoRespondersError, and what a publish raises."""
        await self._subscribe()
        async with asyncio.timeout(timeout):
            message = await (await self.send(subject, payload))
        if not message.data and (message.headers or {}).get("Status") == NO_RESPONDERS:
            raise NoRespondersError
        return message

    async def send(self, subject: str, payload: bytes = b"") -> asyncio.Future[Msg]:
        """Returns once it is sent, with the reply to come; cancel that if you do not wait for it. Raises what a publish
        raises."""
        await self._subscribe()
        self._sent += 1
        reply = f"{self._prefix}.{self._sent}"
        waiting = self._waiting[reply] = asyncio.get_running_loop().create_future()
        waiting.add_done_callback(lambda _: self._waiting.pop(reply, None))
        try:
            await self._nc.publish(subject, payload, reply=reply)
        except BaseException:
            waiting.cancel()
            raise
        return waiting

    async def _subscribe(self) -> None:
        async with self._subscribing:
            if self._subscription is None or self._subscription._closed:
                self._subscription = await self._nc.subscribe(f"{self._prefix}.*", cb=self._receive)

    async def close(self) -> None:
        # Also while it connects again, or the next connection would have it.
        if self._subscription is not None and self.is_open and not self._nc.is_closed:
            await self._subscription.unsubscribe()

    async def _receive(self, message: Msg) -> None:
        if (waiting := self._waiting.get(message.subject)) is not None and not waiting.done():
            waiting.set_result(message)
