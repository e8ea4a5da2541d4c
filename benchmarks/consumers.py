"""Creates the streams and consumers of a benchmark, and fills and drains them over a plain socket."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Sequence

from msgspec import Struct
from nats.aio.client import Client

AT_ONCE = 100
"""Requests under way while consumers are created."""
BATCH = 250
"""Messages that are taken at once while a consumer is drained: below the marks of what is in flight."""
ACK = re.compile(rb"MSG \S+ \S+ (\$JS\.ACK\.\S+) \d+\r\n")


class Consumer(Struct, frozen=True):
    """A durable pull consumer, and the subject it takes."""

    stream: str
    name: str
    subject: str


async def create(client: Client, consumers: int, streams: int, below: str = "") -> list[Consumer]:
    """Durable consumers with explicit acks, spread over streams, each filtered to one subject of its own; with
    `below=".>"` that is a wildcard."""
    each = consumers // streams
    created = [Consumer(f"S{s}", f"c{n}", f"orders.{s}.{n}{below}") for s in range(streams) for n in range(each)]
    for s in range(streams):
        # Without max_consumers a server allows 1,000 (2.15).
        config = {"name": f"S{s}", "subjects": [f"orders.{s}.>"], "max_consumers": each}
        await _request(client, f"STREAM.CREATE.S{s}", config)
    await _create_all(client, created, filtered=True)
    return created


async def create_unfiltered(client: Client, consumers: int) -> list[Consumer]:
    """Durable consumers without a filter on one stream of one subject: they all count under that subject."""
    await _request(client, "STREAM.CREATE.ONE", {"name": "ONE", "subjects": ["jobs"]})
    created = [Consumer("ONE", f"c{n}", "jobs") for n in range(consumers)]
    await _create_all(client, created, filtered=False)
    return created


async def _create_all(client: Client, consumers: Sequence[Consumer], filtered: bool) -> None:
    async def one(each: Consumer) -> None:
        config = {"durable_name": each.name, "name": each.name, "ack_policy": "explicit"}
        subject = f"CONSUMER.CREATE.{each.stream}.{each.name}"
        if filtered:
            config["filter_subject"] = each.subject
            subject += f".{each.subject}"
        await _request(client, subject, {"stream_name": each.stream, "config": config})

    for start in range(0, len(consumers), AT_ONCE):
        await asyncio.gather(*(one(each) for each in consumers[start : start + AT_ONCE]))


async def _request(client: Client, operation: str, body: object) -> None:
    reply = json.loads((await client.request(f"$JS.API.{operation}", json.dumps(body).encode(), timeout=30)).data)
    if "error" in reply:
        raise RuntimeError(f"{operation}: {reply['error']}")


class PlainSocket:
    """A connection to NATS without a client library: it publishes and acknowledges bursts in one write each, so that
    the event loop of the benchmark stays free to see events when they come."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._inbox = f"_INBOX.{secrets.token_hex(8)}"
        self._turn = asyncio.Lock()

    @classmethod
    async def connect(cls, url: str) -> PlainSocket:
        host, _, port = url.removeprefix("nats://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=2**24)
        await reader.readline()
        self = cls(reader, writer)
        writer.write(b'CONNECT {"verbose":false,"headers":true,"no_responders":false}\r\n')
        writer.write(f"SUB {self._inbox} 1\r\n".encode())
        await self.flush()
        return self

    async def flush(self) -> None:
        """Return when the server has processed everything that was written."""
        async with self._turn:
            self._writer.write(b"PING\r\n")
            passed = await self._reader.readuntil(b"PONG\r\n")
            if b"PING\r\n" in passed:
                self._writer.write(b"PONG\r\n")

    def publish(self, subject: str, times: int) -> None:
        """Hand empty messages to the kernel, in one write."""
        self._writer.write(f"PUB {subject} 0\r\n\r\n".encode() * times)

    async def drain(self, consumer: Consumer, messages: int) -> None:
        """Pull and acknowledge messages of a consumer. Raises TimeoutError if they do not come within 10 s."""
        async with asyncio.timeout(10), self._turn:
            for _ in range(-(-messages // BATCH)):
                await self._take(consumer, min(BATCH, messages))
                messages -= BATCH
        await self.flush()

    async def _take(self, consumer: Consumer, messages: int) -> None:
        body = json.dumps({"batch": messages, "expires": 5_000_000_000})
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{consumer.stream}.{consumer.name}"
        self._writer.write(f"PUB {subject} {self._inbox} {len(body)}\r\n{body}\r\n".encode())
        received = b""
        while len(acks := ACK.findall(received)) < messages:
            received += await self._reader.read(2**20)
            if b"PING\r\n" in received[-64:]:
                self._writer.write(b"PONG\r\n")
        self._writer.write(b"".join(b"PUB " + ack + b" 4\r\n+ACK\r\n" for ack in acks))

    def close(self) -> None:
        self._writer.close()
