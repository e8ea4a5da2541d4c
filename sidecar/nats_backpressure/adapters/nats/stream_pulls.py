"""StreamPulls: the pulls of the one consumer by which a stream is followed."""

from __future__ import annotations

import msgspec
from nats.aio.client import Client


class StreamPulls:
    """`last`: the last sequence that the stream had before it."""

    def __init__(self, client: Client, inbox: str, subject: str, last: int) -> None:
        self.client, self.inbox, self.last = client, inbox, last
        self.count = 0
        """Messages it has delivered."""
        self.works = False
        """Whether it delivered something, or a pull was ended in time."""
        self._subject = subject

    async def ask(self, batch: int, seconds: float) -> None:
        payload = msgspec.json.encode({"batch": batch, "expires": int(seconds * 1e9)})
        await self.client.publish(self._subject, payload, reply=self.inbox)
