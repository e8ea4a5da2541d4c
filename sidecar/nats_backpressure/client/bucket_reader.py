"""BucketReader: reads the writes of a KV bucket from a revision on, by direct gets, so without creating a consumer.

From server 2.11 on a direct get returns many messages, 2.9 and 2.10 return one. A bucket without direct access answers
503, or on 2.9 nothing: then the next question reads from the leader, one by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct
from nats.aio.client import Client
from nats.aio.msg import Msg

from nats_backpressure.protocol.decoding import read_message
from nats_backpressure.protocol.timestamps import parse_rfc3339

TIMEOUT = 3.0
"""Seconds to wait for each message of a reply."""
MOST, MOST_BYTES = 256, 8 * 1024 * 1024
"""Writes, and bytes of them, in one reply: it waits in memory."""
DELETIONS = ("DEL", "PURGE")
NO_MESSAGE = 10037


class ReadFailed(Exception):
    """The bucket cannot be read; the text says why."""


class Write(Struct, frozen=True):
    """One write of a key, or its deletion."""

    key: str
    revision: int
    stamp: float
    """Unix seconds by the server's clock."""
    value: bytes
    deleted: bool


class Writes(NamedTuple):
    """Writes in the order of their revisions; `more`: whether there may be later ones."""

    writes: list[Write]
    more: bool


class _Error(Struct, frozen=True):
    err_code: int = 0
    description: str = ""


class _Stored(Struct, frozen=True):
    subject: str
    seq: int
    time: str
    data: bytes = b""
    hdrs: bytes = b""


class _MessageReply(Struct, frozen=True):
    """The reply to STREAM.MSG.GET."""

    error: _Error | None = None
    message: _Stored | None = None


class BucketReader:
    """Asks one question at a time, within `open`. Raises ReadFailed, after which the next question may go another way,
    and what nats-py raises."""

    def __init__(self, nc: Client, api_prefix: str, bucket: str) -> None:
        self._nc, self._api, self._bucket = nc, api_prefix, bucket
        self.prefix = f"$KV.{bucket}."
        """What the subject of each key begins with."""
        self._directly, self._works = True, False
        """Whether the next question is a direct get, and whether the last one of that kind was answered."""
        self._inbox = ""
        self._sent = 0
        self._replies: asyncio.Queue[Msg] = asyncio.Queue()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Subscribe to the replies."""

        async def receive(message: Msg) -> None:
            self._replies.put_nowait(message)

        self._inbox = self._nc.new_inbox()
        async with asyncio.timeout(TIMEOUT):
            subscription = await self._nc.subscribe(f"{self._inbox}.*", cb=receive)
        try:
            yield
        finally:
            with suppress(Exception):  # the connection may be gone
                async with asyncio.timeout(TIMEOUT):
                    await subscription.unsubscribe()

    async def after(self, revision: int, most: int = MOST) -> Writes:
        """The next writes after a revision, those that nothing has overwritten; none if there are none."""
        return await self._read({"seq": revision + 1, "next_by_subj": f"{self.prefix}>"}, most)

    async def first(self) -> Write | None:
        """The oldest write; None in an empty bucket."""
        writes = (await self.after(0, 1)).writes
        return writes[0] if writes else None

    async def newest(self) -> Write | None:
        """The last write of any key; None in an empty bucket."""
        writes = (await self._read({"last_by_subj": f"{self.prefix}>"}, 0)).writes
        return writes[0] if writes else None

    async def _read(self, query: dict[str, Any], most: int) -> Writes:
        try:
            if self._directly:
                batch = {"batch": most, "max_bytes": MOST_BYTES} if most else {}
                writes = await self._read_directly(query | batch)
            else:
                writes = await self._read_from_leader(query)
        except ReadFailed:
            if not self._works:
                self._directly = not self._directly
            self._works = False
            raise
        self._works = True
        return writes

    async def _read_directly(self, query: dict[str, Any]) -> Writes:
        await self._ask("DIRECT.GET", query)
        writes: list[Write] = []
        while True:
            message = await self._reply()
            headers = message.headers or {}
            if "Nats-Sequence" in headers:
                writes.append(self._write(message.data, headers))
                if "Nats-Num-Pending" in headers:
                    continue
                return Writes(writes, True)
            match headers.get("Status"):
                case "204":
                    return Writes(writes, headers.get("Nats-Num-Pending") != "0")
                case "404":
                    return Writes([], False)
                case "503":
                    raise ReadFailed(f"bucket {self._bucket}: there is none, or it has no direct access")
                case status:
                    raise ReadFailed(f"bucket {self._bucket}: {status} {headers.get('Description', '')[:200]}")

    async def _read_from_leader(self, query: dict[str, Any]) -> Writes:
        await self._ask("STREAM.MSG.GET", query)
        reply = await self._reply()
        answer = read_message(reply.data, _MessageReply) if reply.data else None
        if answer is not None and answer.message is not None:
            stored = answer.message
            lines = stored.hdrs.decode(errors="replace").split("\r\n")
            headers = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
            about = {"Nats-Subject": stored.subject, "Nats-Sequence": str(stored.seq), "Nats-Time-Stamp": stored.time}
            return Writes([self._write(stored.data, headers | about)], True)
        if answer is not None and answer.error is not None:
            if answer.error.err_code == NO_MESSAGE:
                return Writes([], False)
            raise ReadFailed(f"bucket {self._bucket}: {answer.error.description[:200]}")
        raise ReadFailed(f"bucket {self._bucket}: JetStream does not answer")

    async def _ask(self, request: str, query: dict[str, Any]) -> None:
        self._sent += 1
        subject = f"{self._api}.{request}.KV_{self._bucket}"
        async with asyncio.timeout(TIMEOUT):
            await self._nc.publish(subject, msgspec.json.encode(query), reply=f"{self._inbox}.{self._sent}")

    async def _reply(self) -> Msg:
        """The next message of the reply; what is left of an earlier one is dropped."""
        while True:
            try:
                async with asyncio.timeout(TIMEOUT):
                    message = await self._replies.get()
            except TimeoutError:
                raise ReadFailed(f"bucket {self._bucket}: no reply for {TIMEOUT:g} s, or no right") from None
            if message.subject.rpartition(".")[2] == str(self._sent):
                return message

    def _write(self, value: bytes, headers: dict[str, str]) -> Write:
        try:
            return Write(
                key=headers["Nats-Subject"].removeprefix(self.prefix),
                revision=int(headers["Nats-Sequence"]),
                stamp=parse_rfc3339(headers["Nats-Time-Stamp"]) or 0.0,
                value=value,
                deleted=headers.get("KV-Operation") in DELETIONS or "Nats-Marker-Reason" in headers,
            )
        except (KeyError, ValueError):
            raise ReadFailed(f"bucket {self._bucket}: a reply that cannot be read") from None
