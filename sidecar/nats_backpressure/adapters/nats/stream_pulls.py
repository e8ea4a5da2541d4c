"""StreamPulls: the pulls of the one consumer by which a stream is followed."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from nats.aio.client import Client

ENDED = frozenset({"404", "408"})
"""The status with which the server ends a pull in time."""
GONE = frozenset({"409 consumer deleted", "503"})
"""And the one of a consumer that is no longer there."""


class StreamPulls:
    """`last`: the last sequence that the stream had before it."""

    def __init__(self, client: Client, inbox: str, subject: str, last: int) -> None:
        self.client, self.inbox, self.last = client, inbox, last
        self.count = 0
        """Messages it has delivered."""
        self.works = False
        """Whether it delivered something, or a pull was ended in time."""
        self.gone = False
        """Whether the consumer is gone, perhaps with its stream."""
        self._subject = subject

    async def ask(self, batch: int, seconds: float) -> None:
        payload = msgspec.json.encode({"batch": batch, "expires": int(seconds * 1e9)})
        await self.client.publish(self._subject, payload, reply=self.inbox)

    def end(self, headers: Mapping[str, str]) -> bool:
        """The server ended a pull; returns whether in time."""
        status = headers.get("Status", "")
        self.works = status in ENDED
        self.gone = status in GONE or f"{status} {headers.get('Description', '')}".strip().lower() in GONE
        return self.works
