"""Reads what a pull consumer has, some at a time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Final

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from nats_backpressure.adapters.nats.api import JetStreamApi
from nats_backpressure.adapters.nats.patched_client import PatchedClient
from nats_backpressure.runtime.ports import Unavailable

LOOK_EVERY: Final = 0.1
"""Seconds without a message between two looks at whether the request was refused."""
PULL_BYTES: Final = 4 * 1024 * 1024
"""Of the messages that are asked for with one request."""
FEW: Final = 4
"""Messages that are asked for with one request, of a server that ends a pull with too many bytes without a word (before
2.10): a MiB each at most. Twice as many after each that brought little."""
MAX_BYTES, COMPLETED = "MaxBytes", "Batch Completed"
"""Words of how the server describes the end of a pull: before a message that would exceed its bytes, and (since 2.10)
behind its last message, where it had bytes left."""


async def pull(
    js: JetStreamApi, client: Client, stream: str, consumer: str, pending: int, at_once: int, silence: float
) -> AsyncIterator[Msg]:
    """The messages of a new consumer that has `pending` to deliver, and what is stored meanwhile; `at_once` and some
    PULL_BYTES with one request, so that no more wait in memory, and the server does not take this client for a slow
    one. Raises Unavailable, TimeoutError after `silence` seconds without one, and what nats-py raises."""
    inbox = client.new_inbox()
    replies = await client.subscribe(inbox)
    server = client.connected_server_version
    alone, ends_large = False, (server.major, server.minor) >= (2, 10)
    few, count = at_once if ends_large else FEW, 0
    try:
        while pending > 0:
            wanted = 1 if alone else min(at_once, pending, few)
            ask = _request(wanted, silence, PULL_BYTES if ends_large and not alone else None)
            size = 0
            await client.publish(asked := f"{js.prefix}.CONSUMER.MSG.NEXT.{stream}.{consumer}", ask, reply=inbox)
            came, alone = 0, False
            while came < wanted and pending > 0:
                raw = await _next(client, replies, asked, silence)
                ended = _ended(raw, stream)
                if ended == MAX_BYTES:
                    alone = came == 0  # it is larger than all of PULL_BYTES
                    break
                if ended is None:
                    if raw.metadata.sequence.consumer != (count := count + 1):
                        raise Unavailable(f"reading {stream}: a message was lost on the way")
                    yield raw
                    size += len(raw.data)
                    came, pending = came + 1, raw.metadata.num_pending
            if not ends_large:
                few = 2 * few if size < PULL_BYTES / 8 else FEW
    finally:
        await replies.unsubscribe()


async def _next(client: Client, replies: Subscription, asked: str, silence: float) -> Msg:
    """The next message. Raises Denied soon after the server has refused the request, for which it sends no reply, and
    TimeoutError after `silence` seconds."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + silence
    while True:
        try:
            return await replies.next_msg(timeout=max(0.001, min(LOOK_EVERY, ends_at - loop.time())))
        except TimeoutError:
            denied = client.rights.denies(asked) if isinstance(client, PatchedClient) else None
            if denied is not None:
                raise denied from None
            if loop.time() >= ends_at:
                raise


def _request(wanted: int, silence: float, most: int | None) -> bytes:
    request: dict[str, int] = {"batch": wanted, "expires": int(silence * 1e9)}
    if most is not None:
        # Not always the same: a pull that is full to the byte may end without a word.
        request["max_bytes"] = most + random.randrange(1024)
    return msgspec.json.encode(request)


def _ended(raw: Msg, stream: str) -> str | None:
    """How the server says that a pull has ended as it may; None for a message. Raises Unavailable for another end."""
    headers = raw.headers or {}
    if (status := headers.get("Status")) is None:
        return None
    why = headers.get("Description", "")
    for allowed in (MAX_BYTES, COMPLETED):
        if allowed in why:
            return allowed
    raise Unavailable(f"reading {stream}: it ended early with status {status} {why}".rstrip())
