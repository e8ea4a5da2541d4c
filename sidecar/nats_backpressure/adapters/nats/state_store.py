"""The state bucket: one key per subject, changed by compare-and-set."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog

from nats_backpressure.adapters.nats.api import WRONG_SEQUENCE, ApiError, JetStreamApi, Message
from nats_backpressure.adapters.nats.last_per_subject import last_per_subject
from nats_backpressure.core.subject.stored_state import record_of
from nats_backpressure.policy.validation import shorten
from nats_backpressure.protocol.subjects import HEARTBEAT, BadTail, Names, decode, encode
from nats_backpressure.runtime.ports import Conflict, Stored

log = structlog.get_logger()

SAID_LIMIT = 1000
"""Malformed keys that are named in the log; further ones are only counted."""
EXPECTED = "Nats-Expected-Last-Subject-Sequence"


class JetStreamStateStore:
    """Reads go to the stream's leader; only a write decides."""

    def __init__(self, js: JetStreamApi, names: Names, count: Callable[[str], None], client: Callable[[], Any]):
        self._js, self._count, self._client = js, count, client
        self._stream = f"KV_{names.state_bucket}"
        self._prefix = f"$KV.{names.state_bucket}."
        self._said: set[str] = set()
        self._beat: int | None = None
        """The revision of our last heartbeat."""
        self._beaten = b""
        """The last heartbeat that we tried to write."""

    def _to(self, key: str) -> str:
        """Where a key is written."""
        return f"{self._js.kv}{self._prefix}{key}"

    async def load(self, subject: str) -> Stored | None:
        message = await self._js.last(self._stream, self._prefix + encode(subject))
        return None if message is None else self._stored(subject, message)

    async def load_all(self) -> dict[str, Stored]:
        """All keys in one pass of an ordered, ephemeral consumer over the last value of each."""
        found: dict[str, Stored] = {}
        async for message in last_per_subject(self._js, self._client(), self._stream, self._prefix):
            key = message.subject.removeprefix(self._prefix)
            if key.startswith("="):  # a heartbeat: no subject encodes to it
                continue
            try:
                subject = decode(key)
            except BadTail as bad:
                self._malformed(key, f"the key is no encoded subject: {bad}")
                continue
            found[subject] = self._stored(subject, message)
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
        if now is not None and expected == 0 and now.gone:
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
            if now is not None and not now.gone:
                raise Conflict(subject) from None

    async def beat(self, value: bytes) -> bool | None:
        ours, self._beaten = (self._beaten, value), value
        alone = None
        if self._beat is not None:
            try:
                self._beat = await self._beat_after(self._beat, value)
                return True
            except Conflict:
                now = await self._heartbeat()
                alone = now is None or now.data in ours  # one of ours was applied although its answer was lost
        self._beat = (await self._js.publish(self._to(HEARTBEAT), value)).seq
        return alone

    async def leave(self, value: bytes) -> bool:
        if self._beat is None:
            return False
        try:
            await self._beat_after(self._beat, value)
        except Conflict:
            now = await self._heartbeat()
            if now is None or now.data != self._beaten:
                return False
            with suppress(Conflict):
                await self._beat_after(now.seq, value)
                return True
            return False
        return True

    async def _beat_after(self, revision: int, value: bytes) -> int:
        try:
            return (await self._js.publish(self._to(HEARTBEAT), value, {EXPECTED: str(revision)})).seq
        except ApiError as error:
            if error.err_code not in WRONG_SEQUENCE:
                raise
            raise Conflict(HEARTBEAT) from None

    async def _heartbeat(self) -> Message | None:
        return await self._js.last(self._stream, self._prefix + HEARTBEAT)

    def _stored(self, subject: str, message: Message) -> Stored:
        if message.gone:
            return Stored(None, message.seq)
        if (found := record_of(message.data)) is None or found[0].subject != subject:
            self._malformed(encode(subject), "it is no state that this program writes; it is written over")
            return Stored(None, message.seq)
        return Stored(found[0], message.seq, found[1])

    def _malformed(self, key: str, because: str) -> None:
        """Count what somebody else wrote here, and name each key once (of SAID_LIMIT at most)."""
        self._count("state_malformed")
        if key not in self._said and len(self._said) < SAID_LIMIT:
            self._said.add(key)
            log.warning(
                "state.malformed", key=shorten(key), because=because, hint="it is left out; who may write there?"
            )
