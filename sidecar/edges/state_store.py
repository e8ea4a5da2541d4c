"""The state bucket: one key per subject, changed by compare-and-set."""

from __future__ import annotations

import asyncio
import secrets
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
SILENCE = 5.0
"""Seconds without a key while some are left."""
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
        self._group, self._names = group, names

    def _to(self, key: str) -> str:
        """Where a key is written."""
        return f"{self._js.kv}{self._prefix}{key}"

    async def load(self, subject: str) -> Stored | None:
        message = await self._js.last(self._stream, self._prefix + encode(subject))
        return None if message is None else self._stored(subject, message)

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
                    found[subject] = self._stored(subject, message)
        except (TimeoutError, nats.errors.Error) as error:
            raise Unavailable(f"reading the state bucket: {error or 'it took too long'}") from error
        return {subject: stored for subject, stored in found.items() if stored.record is not None}

    async def write(self, subject: str, value: bytes, expected: int, nonce: str) -> int:
        key = encode(subject)
        try:
            return (await self._js.publish(self._to(key), value, {EXPECTED: str(expected)})).seq
        except ApiError as error:
            if error.err_code not in WRONG_SEQUENCE:
                raise
        now = await self._js.last(self._stream, self._prefix + key)
        if now is not None and self._stored(subject, now).nonce == nonce:
            return now.seq
        if now is not None and expected == 0 and _gone(now):
            return await self.write(subject, value, now.seq, nonce)
        raise Conflict(subject)

    async def remove(self, subject: str, expected: int) -> None:
        key = encode(subject)
        try:
            await self._js.publish(self._to(key), b"", {"KV-Operation": "DEL", EXPECTED: str(expected)})
        except ApiError as error:
            if error.err_code not in WRONG_SEQUENCE:
                raise
            now = await self._js.last(self._stream, self._prefix + key)
            if now is not None and not _gone(now):
                raise Conflict(subject) from None

    async def beat(self, value: bytes) -> None:
        await self._js.publish(self._to(self._names.heartbeat_key(self._group)), value)

    def _stored(self, subject: str, message: Message) -> Stored:
        if _gone(message):
            return Stored(None, message.seq)
        if (found := record_of(message.data)) is None or found[0].subject != subject:
            self._count("state_malformed")
            return Stored(None, message.seq)
        return Stored(found[0], message.seq, found[1])

    async def _lasts(self) -> Any:
        """The newest message of every key but the heartbeats."""
        client = self._client()
        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox)
        name = secrets.token_hex(8)
        config = {
            "name": name,
            "deliver_subject": inbox,
            "deliver_policy": "last_per_subject",
            "ack_policy": "none",
            "replay_policy": "instant",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": 30_000_000_000,
            "filter_subject": f"{self._prefix}>",
        }
        body = {"stream_name": self._stream, "config": config}
        try:
            made = await self._js.api(f"CONSUMER.CREATE.{self._stream}.{name}", _Made, body)
            left, count = made.num_pending + made.delivered.consumer_seq, 0
            while left > 0:
                raw = await subscription.next_msg(timeout=SILENCE)
                left, count = raw.metadata.num_pending, count + 1
                if raw.metadata.sequence.consumer != count:
                    raise Unavailable("reading the state bucket: a key was lost on the way")
                if not raw.subject.startswith(self._prefix + "="):
                    yield Message(raw.subject, raw.metadata.sequence.stream, raw.data, dict(raw.headers or {}))
        finally:
            await subscription.unsubscribe()  # without interest the server takes the consumer down by itself


def _gone(message: Message) -> bool:
    """Whether the key was deleted: the message says so, with nothing in it."""
    return message.headers.get("KV-Operation") in GONE or "Nats-Marker-Reason" in message.headers


class _Delivered(Struct, frozen=True):
    consumer_seq: int = 0


class _Made(Struct, frozen=True):
    num_pending: int
    delivered: _Delivered
