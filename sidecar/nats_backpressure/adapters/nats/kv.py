"""One key-value bucket: read and write single keys by revision, and read all keys in one pass of a consumer, or by a
request each where there is no right to use one, or no room for one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import nats.errors
import structlog
from nats.aio.client import Client

from nats_backpressure.adapters.nats.api import NO_ROOM_FOR_CONSUMER, WRONG_SEQUENCE, ApiError, JetStreamApi, Message
from nats_backpressure.adapters.nats.api_types import StreamInfo
from nats_backpressure.adapters.nats.denied_rights import Denied
from nats_backpressure.adapters.nats.pull import pull
from nats_backpressure.adapters.nats.remedies import remedy_of_code
from nats_backpressure.runtime.ports import Conflict, Unavailable
from nats_backpressure.runtime.tasks import Once

log = structlog.get_logger()

READ_WITHIN = 30.0
"""Seconds for reading all keys."""
SILENCE = 5.0
"""Seconds without a message while some are left."""
AT_ONCE = 100
"""Messages per pull: a value has at most a MiB, and what has arrived waits in memory."""
REFUSED_AFTER, SINGLY_FOR = 2, 60.0
"""Readings in a row that brought nothing, after which keys are read by a request each, and for how many seconds."""
EXPECTED = "Nats-Expected-Last-Subject-Sequence"


class Bucket:
    """A revision is the stream sequence of a key's last write. Raises Unavailable (ApiError where the reply is one)."""

    def __init__(self, js: JetStreamApi, client: Callable[[], Client], name: str) -> None:
        self.name, self.stream = name, f"KV_{name}"
        self._js, self._client = js, client
        self._prefix = f"$KV.{name}."
        self.pattern = f"{self._prefix}>"
        """The subjects of all keys in the stream."""
        self._refused, self._singly_until, self._logged = 0, 0.0, Once()
        """How many readings in a row brought nothing; and until when keys are read by a request each."""

    async def info(self) -> StreamInfo[dict[str, Any]] | None:
        """The bucket's stream; None if there is no such bucket."""
        return await self._js.stream(self.stream)

    async def get(self, key: str) -> Message | None:
        """The last write of a key, a deletion too, read from the leader; None if there is none. `>`: of all keys."""
        return await self._js.last(self.stream, self._prefix + key)

    async def put(self, key: str, value: bytes) -> int:
        """Write a key; returns the new revision."""
        return (await self._js.publish(self._subject(key), value)).seq

    async def update(self, key: str, value: bytes, expected: int) -> int:
        """Write a key if its revision is the expected one (0: it does not exist). Raises Conflict."""
        return await self._publish(key, value, expected, {})

    async def delete(self, key: str, expected: int) -> None:
        """Delete a key if its revision is the expected one. Raises Conflict."""
        await self._publish(key, b"", expected, {"KV-Operation": "DEL"})

    async def entries(self, after: int = 0) -> AsyncIterator[tuple[str, Message]]:
        """Every key with its last write, deletions too, in the order of the writes: all of them, or Unavailable. With
        the revision `after` those written later; an earlier write of a key may come before its last one."""
        self._client()  # raises where there is none
        singly, came = asyncio.get_running_loop().time() < self._singly_until, False
        try:
            async with asyncio.timeout(READ_WITHIN):
                async for message in self._singly(after) if singly else self._after_or_singly(after):
                    came = True
                    yield self.key(message), message
        except ApiError:
            raise
        except (Unavailable, TimeoutError, nats.errors.Error) as error:
            text = "nothing came in time" if isinstance(error, TimeoutError) else str(error)
            if not came:
                self._add_refusal(text, isinstance(error, Denied))
            raise Unavailable(f"reading {self.stream}: {text}") from error

    def _add_refusal(self, error: str, denied: bool) -> None:
        """Nothing came: there may be no right to use a consumer, for which the server has no reply. It may be slow,
        too, or the consumer may be lost, unless the server `denied` it."""
        self._refused += REFUSED_AFTER if denied else 1
        if self._refused < REFUSED_AFTER:
            return
        self._singly_until = asyncio.get_running_loop().time() + SINGLY_FOR
        if self._logged.first():
            api = f"{self._js.prefix}.CONSUMER"
            log.warning(
                "bucket.read_singly",
                stream=self.stream,
                error=error,
                cost=f"for {SINGLY_FOR:.0f} s a request for each key",
                hint=remedy_of_code(error)
                or "correct what `error` names; where that is a right, or nothing came, allow it to publish "
                f"{api}.CREATE.{self.stream}.> and {api}.MSG.NEXT.{self.stream}.*",
            )

    async def _after_or_singly(self, revision: int) -> AsyncIterator[Message]:
        """With a consumer, or without one where the server has no room for one more."""
        try:
            async for message in self._after(revision):
                yield message
            self._refused = 0
            self._logged.forget()
        except ApiError as error:
            if error.err_code != NO_ROOM_FOR_CONSUMER:
                raise
            self._add_refusal(str(error), denied=True)
            async for message in self._singly(revision):
                yield message

    async def _singly(self, revision: int) -> AsyncIterator[Message]:
        while (message := await self._js.next(self.stream, self.pattern, revision + 1)) is not None:
            yield message
            revision = message.seq

    def key(self, message: Message) -> str:
        """The key that a message of the stream writes or deletes."""
        return message.subject.removeprefix(self._prefix)

    def _subject(self, key: str) -> str:
        return f"{self._js.kv_prefix}{self._prefix}{key}"

    async def _publish(self, key: str, value: bytes, expected: int, headers: dict[str, str]) -> int:
        try:
            return (await self._js.publish(self._subject(key), value, {**headers, EXPECTED: str(expected)})).seq
        except ApiError as error:
            raise Conflict(key) if error.err_code in WRONG_SEQUENCE else error from None

    async def _after(self, revision: int) -> AsyncIterator[Message]:
        """One pass of a consumer over the last message of each subject, or over all messages after one."""
        start: dict[str, object] = {"deliver_policy": "last_per_subject"}
        if revision:
            start = {"deliver_policy": "by_start_sequence", "opt_start_seq": revision + 1}
        name, created = await self._js.create_consumer(self.stream, self.pattern, **start)
        async for raw in pull(self._js, self._client(), self.stream, name, created.num_pending, AT_ONCE, SILENCE):
            about = raw.metadata
            headers, at = dict(raw.headers or {}), about.timestamp.timestamp()
            yield Message(raw.subject, about.sequence.stream, raw.data, headers, at)
