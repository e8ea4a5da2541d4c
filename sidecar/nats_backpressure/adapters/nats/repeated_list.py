"""RepeatedList: recognises a list of streams that shows what the one before showed, so that it need not be decoded.

A process at rest does little else than to list the streams, six times a second, with the same answer but its time.
"""

from __future__ import annotations

import re
from datetime import datetime

import msgspec
from msgspec.structs import replace

from nats_backpressure.core.model.samples import StreamLook

VARIES = re.compile(rb'"(?:ts":"[^"]*"|active":\d+)')
"""What differs in each reply: its time, and in a cluster when each replica was last active."""
TIME = b'"ts":"'
LATEST = 32_503_680_000
"""Unix seconds of the year 3000; a later time is none."""
LONGEST = 256 * 1024
"""Bytes of a reply that is remembered; a page of 256 streams has some 180 KB."""


class RepeatedList:
    """The newest list that was decoded, if it was one page of LONGEST bytes at most."""

    def __init__(self) -> None:
        self._looks: tuple[StreamLook, ...] | None = None
        self._same = b""
        self._at: float | None = None

    def remember(self, reply: bytes, looks: tuple[StreamLook, ...] | None) -> None:
        """`looks` is what `reply` shows; None where a reply alone does not show the whole list."""
        self._looks = looks if len(reply) <= LONGEST else None
        if self._looks is not None:
            self._same, self._at = VARIES.sub(b"", reply), server_time(reply)

    def looks(self, reply: bytes) -> tuple[StreamLook, ...] | None:
        """What a list shows, if that is the same as remembered, but for the ages of the oldest messages."""
        if self._looks is None or VARIES.sub(b"", reply) != self._same:
            return None
        later, at = 0.0, server_time(reply)
        if at is not None and self._at is not None:
            later = at - self._at
        return tuple(
            look if look.oldest_age is None else replace(look, oldest_age=max(0.0, look.oldest_age + later))
            for look in self._looks
        )


def server_time(reply: bytes) -> float | None:
    """The server's time at the last stream of a reply, in Unix seconds; None if it has none (2.9)."""
    start = reply.rfind(TIME) + len(TIME)
    if start < len(TIME):
        return None
    try:
        at = msgspec.json.decode(reply[start - 1 : reply.index(b'"', start) + 1], type=datetime).timestamp()
    except (msgspec.MsgspecError, ValueError):
        return None
    return at if 0 < at < LATEST else None
