"""Subscribes to the server's advisories and ack metrics: to those that wake a reading always, to those that are counted
of the streams that this replica counts.

Only the subjects in use: the API audit advisories would repeat every reply to every request of ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from nats_backpressure.adapters.nats.patched_client import PatchedClient

METRIC = "$JS.EVENT.METRIC.CONSUMER.ACK"
CONSUMER = "$JS.EVENT.ADVISORY.CONSUMER"
STREAM = "$JS.EVENT.ADVISORY.STREAM"
LIMIT_REACHED = "$JS.EVENT.ADVISORY.API.LIMIT_REACHED"
"""The server publishes this in the system account only; an account may import it from there."""
WAKING = (
    *(f"{CONSUMER}.{kind}.*.*" for kind in ("CREATED", "DELETED")),
    *(f"{STREAM}.{kind}.*" for kind in ("CREATED", "UPDATED", "DELETED")),
    LIMIT_REACHED,
)
COUNTED = METRIC, *(f"{CONSUMER}.{kind}" for kind in ("MAX_DELIVERIES", "MSG_NAKED", "MSG_TERMINATED"))
ANY_STREAM = "*"
STREAM_TOKEN = 5
"""The place of the stream in each subject of what is counted."""
PENDING_MESSAGES, PENDING_BYTES = 4096, 4 * 1024 * 1024
"""Messages and bytes that may wait on one subscription; the client drops and counts further ones."""


def counted(stream: str) -> tuple[str, ...]:
    """The subjects of what is counted of a stream."""
    return tuple(f"{start}.{stream}.*" for start in COUNTED)


Receive = Callable[[Msg], Awaitable[None]]


class HintSubscriptions:
    """The HintSource of the connection that observes; `receive` gets every message, and must not raise. `counts`:
    whether what comes of a stream counts; the rest is dropped."""

    def __init__(self, receive: Receive, counts: Callable[[str], bool]) -> None:
        self._receive, self._counts = receive, counts
        self._client: Client | None = None
        self._wanted: frozenset[str] = frozenset((ANY_STREAM,))
        self._open: dict[str, list[Subscription]] = {}
        """What is subscribed to on this client, by stream."""
        self._updating: asyncio.Task[None] | None = None
        self._one_at_a_time = asyncio.Lock()
        """Of the subscriptions of this client."""

    def follow(self, streams: frozenset[str] | None) -> None:
        self._wanted = frozenset((ANY_STREAM,)) if streams is None else streams
        if self._client is not None and (self._updating is None or self._updating.done()):
            self._updating = asyncio.ensure_future(self._update_later(self._client))

    def allowed(self) -> bool:
        refused = self._client.rights.subscriptions if isinstance(self._client, PatchedClient) else {}
        return not any(subject.startswith(COUNTED) for subject in refused.values())

    async def listen(self, client: Client) -> None:
        """Subscribe on a new client."""
        for subject in WAKING:
            await self._subscribe(client, subject, self._receive)
        self._client, self._open, self._one_at_a_time = client, {}, asyncio.Lock()
        await self._update(client)

    async def _update_later(self, client: Client) -> None:
        with suppress(Exception):  # a client that closes meanwhile raises many types; the next one subscribes again
            await self._update(client)

    async def _receive_counted(self, message: Msg) -> None:
        # No await that waits here: the callback could be cancelled, and its subscription would end silently.
        tokens = message.subject.split(".", STREAM_TOKEN + 1)
        if len(tokens) > STREAM_TOKEN and self._counts(tokens[STREAM_TOKEN]):
            await self._receive(message)

    async def _update(self, client: Client) -> None:
        """Subscribe to what is wanted. What is not wanted ends first: twice would be worse than a moment of nothing."""
        if client is self._client:
            async with self._one_at_a_time:
                await self._update_open(client, self._open)

    async def _update_open(self, client: Client, subscribed: dict[str, list[Subscription]]) -> None:
        while client is self._client and (other := subscribed.keys() ^ self._wanted):
            ending = other & subscribed.keys()
            for stream in ending:
                for subscription in subscribed.pop(stream):
                    await subscription.unsubscribe()
            for stream in other - ending:
                subscriptions = subscribed[stream] = list[Subscription]()
                for subject in counted(stream):
                    subscriptions.append(await self._subscribe(client, subject, self._receive_counted))

    async def _subscribe(self, client: Client, subject: str, receive: Receive) -> Subscription:
        return await client.subscribe(
            subject, cb=receive, pending_msgs_limit=PENDING_MESSAGES, pending_bytes_limit=PENDING_BYTES
        )
