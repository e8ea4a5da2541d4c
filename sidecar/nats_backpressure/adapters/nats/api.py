"""Requests to the JetStream API as raw JSON, the same on every server: streams, messages, consumers, publishing."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import msgspec
import nats.errors
from msgspec import Struct
from nats.aio.client import Client
from nats.aio.msg import Msg

from nats_backpressure.adapters.nats.api_types import (
    ConsumerCreated,
    MessageReply,
    NoLeader,
    PubAck,
    Reply,
    StreamInfo,
    from_leader,
)
from nats_backpressure.protocol.timestamps import parse_rfc3339
from nats_backpressure.runtime.ports import Unavailable

PLAIN = "$JS.API"
TIMEOUT = 5.0
"""Seconds for one request."""
AT_ONCE = 64
"""Requests of one JetStreamApi under way, and as many writes; further ones wait, within their own timeout."""
WRONG_SEQUENCE = frozenset({10071, 10164})
"""Error codes of a write whose expected last sequence was another."""
NO_MESSAGE, NO_STREAM, NO_ROOM_FOR_CONSUMER, NO_META_LEADER = 10037, 10059, 10026, 10008
BATCH_SILENCE = 2.0
"""Seconds without the next message of a batch, after which single messages are read."""
SINGLE_FOR = 300.0
"""Seconds until batches are tried again."""
UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
"""What decoding a reply may raise."""


class ApiError(Unavailable):
    """An error in a reply of the server."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(f"{description} ({code}, {err_code})")
        self.code, self.err_code = code, err_code


def is_leaderless(error: Exception) -> bool:
    """Whether a leader is missing, of the stream or of JetStream: as a rule one is elected within seconds."""
    return isinstance(error, NoLeader) or (isinstance(error, ApiError) and error.err_code == NO_META_LEADER)


class Requests(Protocol):
    async def request(self, subject: str, payload: bytes, seconds: float, headers: dict[str, str] | None = None) -> Msg:
        """One request and its reply. Raises Unavailable."""


class Message(Struct, frozen=True):
    """A message of a stream."""

    subject: str
    seq: int
    data: bytes
    headers: dict[str, str]
    at: float = 0.0
    """Unix seconds at which it was stored; 0 where the reply does not say."""

    @property
    def deleted(self) -> bool:
        """Whether it is a marker that a key of a bucket was deleted."""
        return self.headers.get("KV-Operation") in ("DEL", "PURGE") or "Nats-Marker-Reason" in self.headers


R = TypeVar("R", bound=Struct)


class JetStreamApi:
    """The API under one prefix. Raises Unavailable (ApiError where the reply is an error). A stream that hangs uses up
    the turns of its own JetStreamApi only, and writes that hang do not delay requests."""

    def __init__(self, connection: Requests, prefix: str = PLAIN) -> None:
        self._connection, self.prefix = connection, prefix
        self._requesting, self._writing = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(AT_ONCE)

    async def api(self, operation: str, kind: type[R], body: object = None) -> R:
        payload = b"" if body is None else msgspec.json.encode(body)
        reply = await self._request(self._requesting, f"{self.prefix}.{operation}", payload)
        return decoded(reply.data, kind)

    @property
    def kv_prefix(self) -> str:
        """The prefix of a write to a bucket. Under any API prefix but the plain one the server (or the account's
        import) maps `<prefix>.$KV.>` back, as the KV of every client expects."""
        return "" if self.prefix == PLAIN else f"{self.prefix}."

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> PubAck:
        reply = await self._request(self._writing, subject, payload, headers)
        return decoded(reply.data, PubAck)

    async def _request(
        self, turn: asyncio.Semaphore, subject: str, payload: bytes, headers: dict[str, str] | None = None
    ) -> Msg:
        try:
            async with asyncio.timeout(TIMEOUT), turn:
                return await self._connection.request(subject, payload, TIMEOUT, headers)
        except TimeoutError:
            raise Unavailable(f"{subject}: no reply in time") from None

    async def last(self, stream: str, subject: str) -> Message | None:
        """The newest message on a subject (or pattern) of a stream, read from its leader; None if there is none."""
        return await self._message(stream, {"last_by_subj": subject})

    async def next(self, stream: str, subject: str, seq: int) -> Message | None:
        """The first message on a subject from a stream sequence on; None if there is none."""
        return await self._message(stream, {"next_by_subj": subject, "seq": seq})

    async def _message(self, stream: str, query: dict[str, object]) -> Message | None:
        try:
            message = (await self.api(f"STREAM.MSG.GET.{stream}", MessageReply, query)).message
        except ApiError as error:
            if error.err_code == NO_MESSAGE:
                return None
            raise
        try:
            data, block = base64.b64decode(message.data), base64.b64decode(message.hdrs)
        except ValueError as problem:
            raise Unavailable(f"a reply that cannot be read: {problem}") from None
        return Message(message.subject, message.seq, data, _headers(block), parse_rfc3339(message.time) or 0.0)

    async def stream(self, name: str) -> StreamInfo[dict[str, Any]] | None:
        """A stream with its config as the server sent it; None if there is none of that name."""
        try:
            return from_leader(await self.api(f"STREAM.INFO.{name}", StreamInfo[dict[str, Any]]), name)
        except ApiError as error:
            if error.err_code == NO_STREAM:
                return None
            raise

    async def create_consumer(self, stream: str, pattern: str, **config: object) -> tuple[str, ConsumerCreated]:
        """A consumer of the messages on a pattern, without acks, in memory; the server removes it 30 s after its last
        use. Returns its name too."""
        name = secrets.token_hex(8)
        whole = {
            "name": name,
            "ack_policy": "none",
            "replay_policy": "instant",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": 30_000_000_000,
            "filter_subject": pattern,
            **config,
        }
        body = {"stream_name": stream, "config": whole}
        return name, await self.api(f"CONSUMER.CREATE.{stream}.{name}", ConsumerCreated, body)


class BatchReader:
    """Reads messages of a stream forwards: many with one request where the server can, else one by one.

    Measured: from 2.11 on `DIRECT.GET` has `batch`: each message has `Nats-Num-Pending`, and status 204 ends it. 2.9
    and 2.10 ignore the field and send one message without that header. A stream without direct access answers 503. A
    follower that lags for a moment may answer a batch; a single message comes from the leader.
    """

    def __init__(self, js: JetStreamApi, client: Callable[[], Client], stream: str) -> None:
        self._js, self._client, self._stream = js, client, stream
        self._single_until = 0.0

    @property
    def many(self) -> bool:
        """Whether one request may return more than one message, as far as known."""
        return asyncio.get_running_loop().time() >= self._single_until

    def read_single(self) -> None:
        """Read one by one for SINGLE_FOR seconds."""
        self._single_until = asyncio.get_running_loop().time() + SINGLE_FOR

    async def next(self, subject: str, seq: int, n: int) -> list[Message]:
        """Up to `n` messages from a stream sequence on, in one request; empty only if there are none. Raises
        Unavailable."""
        if n > 1 and self.many:
            messages = await self._batch(subject, seq, n)
            if messages is not None:
                return messages
            self.read_single()
        message = await self._js.next(self._stream, subject, seq)
        return [message] if message is not None else []

    async def _batch(self, subject: str, seq: int, n: int) -> list[Message] | None:
        """None where it does not work: an old server, a stream without direct access, no permission."""
        query = msgspec.json.encode({"next_by_subj": subject, "seq": seq, "batch": n})
        messages: list[Message] = []
        try:
            client = self._client()
            inbox = client.new_inbox()
            replies = await client.subscribe(inbox)
            try:
                await client.publish(f"{self._js.prefix}.DIRECT.GET.{self._stream}", query, reply=inbox)
                while True:
                    raw = await replies.next_msg(timeout=BATCH_SILENCE)
                    headers = raw.headers or {}
                    if (status := headers.get("Status")) is not None:
                        return messages if status == "204" or (status == "404" and not messages) else None
                    if "Nats-Num-Pending" not in headers:
                        return None
                    messages.append(Message(headers["Nats-Subject"], int(headers["Nats-Sequence"]), raw.data, headers))
            finally:
                await replies.unsubscribe()
        except (TimeoutError, KeyError, ValueError):
            return None
        except nats.errors.Error as error:  # the client is closing
            raise Unavailable(f"reading {self._stream}: {error}") from error


def decoded(data: bytes, kind: type[R]) -> R:
    """A reply as `kind`. Raises ApiError if it is an error, Unavailable if it cannot be read."""
    try:
        error = msgspec.json.decode(data, type=Reply).error
        if error is not None:
            raise ApiError(error.code, error.err_code, error.description[:200])
        return msgspec.json.decode(data, type=kind)
    except UNREADABLE as problem:
        raise Unavailable(f"a reply that cannot be read: {problem}") from None


def _headers(block: bytes) -> dict[str, str]:
    lines = block.decode("utf-8", "replace").split("\r\n")[1:]
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines) if value}
