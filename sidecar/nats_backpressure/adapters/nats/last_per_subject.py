"""The newest message of every subject of a stream, in one pass of an ordered, ephemeral consumer."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import nats.errors
from msgspec import Struct
from nats.aio.client import Client

from nats_backpressure.adapters.nats.api import JetStreamApi, Message
from nats_backpressure.runtime.ports import Unavailable

READ_WITHIN = 30.0
"""Seconds for reading all of them."""
SILENCE = 5.0
"""Seconds without a message while some are left."""


class _Delivered(Struct, frozen=True):
    consumer_seq: int = 0


class _ConsumerCreated(Struct, frozen=True):
    num_pending: int
    delivered: _Delivered


async def last_per_subject(js: JetStreamApi, client: Client, stream: str, prefix: str) -> AsyncIterator[Message]:
    """Those under `prefix`, all of them or Unavailable."""
    try:
        async with asyncio.timeout(READ_WITHIN):
            async for message in _lasts(js, client, stream, f"{prefix}>"):
                yield message
    except (TimeoutError, nats.errors.Error) as error:
        raise Unavailable(f"reading {stream}: {error or 'it took too long'}") from error


async def _lasts(js: JetStreamApi, client: Client, stream: str, subjects: str) -> AsyncIterator[Message]:
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox)
    name = secrets.token_hex(8)
    config: dict[str, Any] = {
        "name": name,
        "deliver_subject": inbox,
        "deliver_policy": "last_per_subject",
        "ack_policy": "none",
        "replay_policy": "instant",
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": 30_000_000_000,
        "filter_subject": subjects,
    }
    try:
        made = await js.api(
            f"CONSUMER.CREATE.{stream}.{name}", _ConsumerCreated, {"stream_name": stream, "config": config}
        )
        left, count = made.num_pending + made.delivered.consumer_seq, 0
        while left > 0:
            raw = await subscription.next_msg(timeout=SILENCE)
            about = raw.metadata
            left, count = about.num_pending, count + 1
            if about.sequence.consumer != count:
                raise Unavailable(f"reading {stream}: a key was lost on the way")
            headers, at = dict(raw.headers or {}), about.timestamp.timestamp()
            yield Message(raw.subject, about.sequence.stream, raw.data, headers, at)
    finally:
        await subscription.unsubscribe()  # without interest the server takes the consumer down by itself
