"""EventSubscription: a subscription that lasts as long as its client, whatever happens to the connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from nats_backpressure.client.state_watch import LINK_POLL

POLL = 1.0
"""Seconds between two looks whether the connection still has it."""


class EventSubscription:
    """nats-py subscribes again where it connects again by itself. A connection that was closed, and that its owner
    makes again, has forgotten all subscriptions."""

    def __init__(self, nc: Client, subject: str, receive: Callable[[Msg], Awaitable[None]]) -> None:
        self._nc, self._subject, self._receive = nc, subject, receive
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Subscribe, if there is a connection already. Raises what that raises."""
        if self._nc.is_connected or self._nc.is_reconnecting:
            self._subscription = await self._nc.subscribe(self._subject, cb=self._receive)

    async def run(self) -> None:
        """Subscribe whenever that is needed, until cancelled."""
        while True:
            if self._nc.is_connected and not self._is_known():
                with suppress(Exception):  # the connection may end meanwhile
                    await self.start()
            await asyncio.sleep(LINK_POLL if self._subscription is None else POLL)

    async def close(self) -> None:
        """Raises what nats-py raises."""
        if self._subscription is not None and self._is_known():
            await self._subscription.unsubscribe()

    def _is_known(self) -> bool:
        return self._subscription is not None and self._subscription in self._nc._subs.values()
