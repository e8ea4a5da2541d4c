"""JetStream's own request and reply, as raw JSON: the same on every server, and nothing decoded that is not used."""

from __future__ import annotations

import base64
from typing import Any, Protocol, TypeVar

import msgspec
from msgspec import Struct
from nats.aio.msg import Msg

from nats_backpressure.runtime.ports import Unavailable

PLAIN = "$JS.API"
TIMEOUT = 5.0
"""Seconds for one request."""
WRONG_SEQUENCE = frozenset({10071, 10164})
"""Error codes of a write whose expected last sequence was another."""
NO_MESSAGE, NO_STREAM = 10037, 10059


class ApiError(Unavailable):
    """An error in a reply of the server."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(f"{description} ({code}, {err_code})")
        self.code, self.err_code = code, err_code


class Requests(Protocol):
    async def request(
        self, subject: str, payload: bytes, seconds: float, headers: dict[str, str] | None = None
    ) -> Msg: ...


class _Error(Struct, frozen=True):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Reply(Struct, frozen=True):
    error: _Error | None = None


class PubAck(Struct, frozen=True):
    seq: int
    duplicate: bool = False


class _StoredMessage(Struct, frozen=True):
    subject: str
    seq: int
    data: str = ""
    hdrs: str = ""


class _MessageReply(Struct, frozen=True):
    message: _StoredMessage


class Message(Struct, frozen=True):
    subject: str
    seq: int
    data: bytes
    headers: dict[str, str]
    at: float = 0.0
    """Unix seconds at which it was stored, as far as the reply says."""

    @property
    def gone(self) -> bool:
        """Whether it says that a key of a bucket was deleted, with nothing in it."""
        return self.headers.get("KV-Operation") in ("DEL", "PURGE") or "Nats-Marker-Reason" in self.headers


class StreamState(Struct, frozen=True):
    messages: int = 0
    first_seq: int = 0
    last_seq: int = 0
    num_subjects: int = 0


class StreamInfo(Struct, frozen=True):
    config: dict[str, Any]
    created: str
    state: StreamState


R = TypeVar("R", bound=Struct)


class JetStreamApi:
    """The API under one prefix. Raises Unavailable (ApiError where the server answered with an error)."""

    def __init__(self, connection: Requests, prefix: str = PLAIN) -> None:
        self._connection, self.prefix = connection, prefix

    async def api(self, what: str, kind: type[R], body: object = None) -> R:
        payload = b"" if body is None else msgspec.json.encode(body)
        reply = await self._connection.request(f"{self.prefix}.{what}", payload, TIMEOUT)
        return decoded(reply.data, kind)

    @property
    def kv(self) -> str:
        """What a write to a bucket is prefixed with: under another prefix than the plain one the server (or the
        account's import) maps `<prefix>.$KV.>` back, as every client's KV expects."""
        return "" if self.prefix == PLAIN else f"{self.prefix}."

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> PubAck:
        reply = await self._connection.request(subject, payload, TIMEOUT, headers)
        return decoded(reply.data, PubAck)

    async def last(self, stream: str, subject: str) -> Message | None:
        """The newest message on a subject (or pattern) of a stream, read from its leader; None if there is none."""
        return await self._get(stream, {"last_by_subj": subject})

    async def next(self, stream: str, subject: str, place: int) -> Message | None:
        """The first message on a subject at or after a place in the stream; None if there is none."""
        return await self._get(stream, {"next_by_subj": subject, "seq": place})

    async def _get(self, stream: str, which: dict[str, object]) -> Message | None:
        try:
            found = await self.api(f"STREAM.MSG.GET.{stream}", _MessageReply, which)
        except ApiError as error:
            if error.err_code == NO_MESSAGE:
                return None
            raise
        message = found.message
        try:
            data, block = base64.b64decode(message.data), base64.b64decode(message.hdrs)
        except ValueError as problem:
            raise Unavailable(f"a reply nobody can read: {problem}") from None
        return Message(message.subject, message.seq, data, _headers(block))

    async def stream(self, name: str) -> StreamInfo | None:
        try:
            return await self.api(f"STREAM.INFO.{name}", StreamInfo)
        except ApiError as error:
            if error.err_code == NO_STREAM:
                return None
            raise


def decoded(data: bytes, kind: type[R]) -> R:
    """A reply as what it should be; an error in it, or a reply nobody can read, is raised."""
    try:
        error = msgspec.json.decode(data, type=_Reply).error
        if error is not None:
            raise ApiError(error.code, error.err_code, error.description[:200])
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise Unavailable(f"a reply nobody can read: {problem}") from None


def _headers(block: bytes) -> dict[str, str]:
    lines = block.decode("utf-8", "replace").split("\r\n")[1:]
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines) if value}
