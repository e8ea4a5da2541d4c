"""The state bucket: one key per subject, changed by compare-and-set."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import nats.errors
from msgspec import Struct

from sidecar.edges.jetstream import WRONG_SEQUENCE, ApiError, JetStream, Message
from sidecar.ports import Conflict, Stored, Unavailable
from sidecar.wire.stored import record_of
from sidecar.wire.subjects import BadTail, Names, decode, encode

LOAD_WITHIN = 30.0
"""Seconds for reading every key."""
BATCH = 500
EXPECTED = "Nats-Expected-Last-Subject-Sequence"
GONE = ("DEL", "PURGE")


class StateStore:
    """Reads go to the stream's leader; only a write decides."""

    def __init__(
        self, js: JetStream, names: Names, group: str, count: Callable[[str], None], client: Callable[[], Any]
    ):
        self._js, self._count, self._client = js, count, client
        self._stream = f"KV_{names.state_bucket}"
        self._prefix = f"$KV.{names.state_bucket}."
        self._beat = self._prefix + names.heartbeat_key(group)

    async def load(self, subject: str) -> Stored | None:
        message = await self._js.last(self._stream, self._prefix + encode(subject))
        return None if message is None else self._stored(message)

    async def load_all(self) -> dict[str, Stored]:
        """All keys in one pass of an ordered, ephemeral consumer over the last value of each."""
        found: dict[str, Stored] = {}
        try:
            async with asyncio.timeout(LOAD_WITHIN):
                async for message in self._lasts():
                    try:
                        subject = decode(message.subject.removeprefix(self._prefix))
                    except BadTail:
                        self._count("state_malformed")
                        continue
                    found[subject] = self._stored(message)
        except (TimeoutError, nats.errors.Error) as error:
            raise Unavailable(f"reading the state bucket: {error or 'it took too long'}") from error
        return {subject: stored for subject, stored in found.items() if stored.record is not None}

    async def write(self, subject: str, value: bytes, expected: int, nonce: str) -> int:
        key = self._prefix + encode(subject)
        try:
            return (await self._js.publish(key, value, {EXPECTED: str(expected)})).seq
        except ApiError as error:
            if error.err_code not in WRONG_SEQUENCE:
                raise
        now = await self._js.last(self._stream, key)
        if now is not None and self._stored(now).nonce == nonce:
            return now.seq
        if now is not None and expected == 0 and now.headers.get("KV-Operation") in GONE:
            return await self.write(subject, value, now.seq, nonce)
        raise Conflict(subject)

    async def remove(self, subject: str, expected: int) -> None:
        headers = {"KV-Operation": "DEL", EXPECTED: str(expected)}
        try:
            await self._js.publish(self._prefix + encode(subject), b"", headers)
        except ApiError as error:
            if error.err_code in WRONG_SEQUENCE:
                raise Conflict(subject) from None
            raise

    async def beat(self, value: bytes) -> None:
        await self._js.publish(self._beat, value)

    def _stored(self, message: Message) -> Stored:
        if message.headers.get("KV-Operation") in GONE:
            return Stored(None, message.seq)
        if (found := record_of(message.data)) is None:
            self._count("state_malformed")
            return Stored(None, message.seq)
        return Stored(found[0], message.seq, found[1])

    async def _lasts(self) -> Any:
        """The newest message of every key but the heartbeats."""
        client = self._client()
        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox)
        config = {
            "deliver_subject": inbox,
            "deliver_policy": "last_per_subject",
            "ack_policy": "none",
            "replay_policy": "instant",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": 30_000_000_000,
            "filter_subject": f"{self._prefix}>",
        }
        try:
            made = await self._js.api(
                f"CONSUMER.CREATE.{self._stream}", _Made, {"stream_name": self._stream, "config": config}
            )
            left = made.num_pending + made.delivered.consumer_seq
            while left > 0:
                raw = await subscription.next_msg(timeout=5)
                left = raw.metadata.num_pending
                subject = raw.subject
                if not subject.startswith(self._prefix + "="):
                    yield Message(subject, raw.metadata.sequence.stream, raw.data, dict(raw.headers or {}))
        finally:
            await subscription.unsubscribe()


class _Delivered(Struct, frozen=True):
    consumer_seq: int = 0


class _Made(Struct, frozen=True):
    num_pending: int
    delivered: _Delivered
