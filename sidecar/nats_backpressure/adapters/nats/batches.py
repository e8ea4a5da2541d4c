"""Messages of a stream read forwards from a place: many with one request where the server can, one by one elsewhere.

Measured: from 2.11 on `DIRECT.GET` takes `batch`, and each message says `Nats-Num-Pending`, the end status 204; 2.9 and
2.10 ignore the field and send one message without that header. A stream without direct access answers 503.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import nats.errors
from nats.aio.client import Client

from nats_backpressure.adapters.nats.api import JetStreamApi, Message
from nats_backpressure.runtime.ports import Unavailable

WITHIN = 2.0
"""Seconds without the next message of a batch, after which we go on without batches."""
SINGLE_FOR = 300.0
"""Seconds until batches are tried again."""


class Batches:
    """A batch may be answered by a follower that is a moment behind; a single message comes from the leader."""

    def __init__(self, js: JetStreamApi, client: Callable[[], Client], stream: str) -> None:
        self._js, self._client, self._stream = js, client, stream
        self._single_until = 0.0

    @property
    def here(self) -> bool:
        """Whether a request may bring more than one message, as far as known."""
        return asyncio.get_running_loop().time() >= self._single_until

    def do_without(self) -> None:
        self._single_until = asyncio.get_running_loop().time() + SINGLE_FOR

    async def next(self, subject: str, place: int, n: int) -> list[Message]:
        """Up to `n` messages at or after a place, in one request; none only where none is left. Raises Unavailable."""
        if n > 1 and self.here:
            found = await self._batch(subject, place, n)
            if found is not None:
                return found
            self.do_without()
        one = await self._js.next(self._stream, subject, place)
        return [one] if one is not None else []

    async def _batch(self, subject: str, place: int, n: int) -> list[Message] | None:
        """None where there is no such thing: an old server, a stream without direct access, no right to it."""
        ask = msgspec.json.encode({"next_by_subj": subject, "seq": place, "batch": n})
        try:
            client = self._client()
            inbox = client.new_inbox()
            answers = await client.subscribe(inbox)
            try:
                await client.publish(f"{self._js.prefix}.DIRECT.GET.{self._stream}", ask, reply=inbox)
                found: list[Message] = []
                while True:
                    raw = await answers.next_msg(timeout=WITHIN)
                    headers = raw.headers or {}
                    status = headers.get("Status")
                    if status is not None:
                        return found if status == "204" or (status == "404" and not found) else None
                    if "Nats-Num-Pending" not in headers:
                        return None
                    found.append(Message(headers["Nats-Subject"], int(headers["Nats-Sequence"]), raw.data, headers))
            finally:
                await answers.unsubscribe()
        except (TimeoutError, KeyError, ValueError):
            return None
        except nats.errors.Error as error:  # the client is on its way out
            raise Unavailable(f"reading {self._stream}: {error}") from error
