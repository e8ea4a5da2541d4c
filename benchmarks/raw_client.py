"""A NATS client on a plain socket: it sends requests that were encoded before, counts replies, and decodes nothing.

It costs a small part of what any client library costs, so that what is measured is what answers.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from types import TracebackType
from typing import Self
from urllib.parse import urlparse

BLOCK = 32
"""Requests that are sent together."""
CHUNK = 1 << 20
"""Bytes that are read at once, at most."""
INBOX = b"_INBOX.benchmark"
REPLY = b"MSG " + INBOX
PATIENCE = 5.0
"""Seconds without any reply after which a measurement fails."""

Requests = Sequence[tuple[str, bytes]]
"""Subject and payload of each."""


class RawClient:
    """One connection; its inbox is subscribed to."""

    def __init__(self, url: str) -> None:
        address = urlparse(url)
        self._socket = socket.create_connection((address.hostname or "127.0.0.1", address.port or 4222))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(PATIENCE)
        self._socket.sendall(b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true}\r\n')
        self._socket.sendall(b"SUB " + INBOX + b".> 1\r\nPING\r\n")
        received = b""
        while b"PONG\r\n" not in received:
            received += self._socket.recv(CHUNK)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def reply(self, subject: str, payload: bytes = b"") -> bytes:
        """The payload of the reply to one request. Raises ValueError for a service error."""
        self._socket.sendall(_encoded(subject, payload, 0))
        received = bytearray()
        while True:
            received += self._socket.recv(CHUNK)
            line, _, rest = bytes(received).partition(b"\r\n")
            if line.startswith(b"HMSG") and b"\r\n\r\n" in rest:
                raise ValueError(f"{subject}: {rest[:300]!r}")
            if line.startswith(b"MSG") and len(rest) >= (size := int(line.split()[-1])) + 2:
                return rest[:size]
            if line.startswith(b"PING"):
                self._socket.sendall(b"PONG\r\n")
                received = bytearray(rest)

    def rate(self, requests: Requests, seconds: float, window: int = 512) -> float:
        """Replies per second, with up to `window` requests without a reply; all of them are then waited for."""
        blocks = cycle(_blocks(requests))
        sent = received = 0
        rest = b""
        start = time.perf_counter()
        end = start + seconds
        while (now := time.perf_counter()) < end or received < sent:
            while now < end and sent - received <= window - BLOCK:
                self._socket.sendall(next(blocks))
                sent += BLOCK
            chunk = rest + self._socket.recv(CHUNK)
            received += chunk.count(REPLY)
            rest = chunk[-len(REPLY) + 1 :]  # a reply that is cut in two is counted with the next chunk
            if b"PING\r\n" in chunk:
                self._socket.sendall(b"PONG\r\n")
        return received / (time.perf_counter() - start)

    def round_trips(self, requests: Requests, n: int, pause: float = 0.0) -> list[float]:
        """Seconds of each of `n` round trips, one after the other, `pause` seconds apart."""
        encoded = cycle([_encoded(subject, payload, n) for n, (subject, payload) in enumerate(requests)])
        times = []
        for _ in range(n):
            request = next(encoded)
            start = time.perf_counter()
            self._socket.sendall(request)
            while REPLY not in (chunk := self._socket.recv(CHUNK)):
                if b"PING\r\n" in chunk:
                    self._socket.sendall(b"PONG\r\n")
            times.append(time.perf_counter() - start)
            time.sleep(pause)
        return times


def _encoded(subject: str, payload: bytes, n: int) -> bytes:
    return b"PUB %b %b.%d %d\r\n%b\r\n" % (subject.encode(), INBOX, n, len(payload), payload)


def _blocks(requests: Requests) -> Iterator[bytes]:
    """The requests in blocks; every request is in as many as any other."""
    source = cycle(requests)
    for start in range(0, max(len(requests), 16 * BLOCK), BLOCK):
        yield b"".join(_encoded(*next(source), start + n) for n in range(BLOCK))
