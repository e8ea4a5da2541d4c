"""DirectReplies: replies inside the read loop of a client, without a queue, a task switch and a message object."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from nats.aio.client import Client

if TYPE_CHECKING:
    from nats_backpressure.adapters.nats.patched_client import PatchedClient

CONNECTED = Client.CONNECTED
UNSENT_REPLIES = 1024 * 1024
"""Bytes of replies that wait to be sent; beyond, a request takes the ordinary way, whose queue is bounded."""
LONGEST_REPLY_SUBJECT = 2000
"""Bytes; a longer one takes the ordinary way, which checks the length of the whole line."""
AT_ONCE, SECONDS_AT_ONCE = 64, 0.002
"""Replies, or seconds of them, after which other tasks get a turn. A turn after each costs a third of the rate."""

Answer = Callable[[bytes, bytes, bytes], bytes | None]
"""Takes subject, reply subject and payload of a request; returns the reply, or None for the ordinary way. It must not
raise."""


class DirectReplies:
    """The answers of one client that need no waiting, by subscription."""

    def __init__(self, client: PatchedClient) -> None:
        self._client = client
        self._answers: dict[int, Answer] = {}
        self._in_turn, self._turn_ends = 0, 0.0
        """Replies since other tasks had a turn, and when they get the next one."""

    def add(self, subscription: int, answer: Answer) -> None:
        """Answer what this subscription receives."""
        self._answers[subscription] = answer

    def reply(self, subscription: int, subject: bytes, inbox: bytes, payload: bytes) -> bool:
        """Reply to a request, if it can be answered at once; returns whether it was."""
        answer, client = self._answers.get(subscription), self._client
        if answer is None or client._status != CONNECTED or len(inbox) > LONGEST_REPLY_SUBJECT:
            return False
        if client._pending_data_size > UNSENT_REPLIES:
            return False
        queue, flusher = client._flush_queue, client._flusher_task
        if queue is None or flusher is None:
            return False
        first = queue.empty()  # the flusher has taken what was there: other tasks had a turn
        if first and flusher.done():
            return False
        if (body := answer(subject, inbox, payload)) is None:
            return False
        size = len(body)
        command = b"PUB %b %d\r\n%b\r\n" % (inbox, size, body)
        if first:
            self._in_turn, self._turn_ends = 0, time.monotonic() + SECONDS_AT_ONCE
        # One that came alone waits for no others: the flusher would write it a turn of the event loop later.
        if not (first and not client._ps.buf and not client._pending and client.write_command(command)):
            client._pending.append(command)
            client._pending_data_size += len(command)
            if first:
                queue.put_nowait(asyncio.get_running_loop().create_future())
        stats = client.stats
        stats["in_msgs"] += 1
        stats["in_bytes"] += len(payload)
        stats["out_msgs"] += 1
        stats["out_bytes"] += size
        self._in_turn += 1
        return True

    @property
    def pause_due(self) -> bool:
        """Whether other tasks should get a turn now."""
        return self._in_turn >= AT_ONCE or time.monotonic() >= self._turn_ends
