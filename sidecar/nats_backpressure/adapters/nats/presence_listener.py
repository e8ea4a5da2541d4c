"""Listens to which replicas of an installation run, without being one."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from nats.aio.client import Client
from nats.aio.msg import Msg

from nats_backpressure.protocol.between_replicas import PRESENCE, Presence, read
from nats_backpressure.protocol.subjects import Names

LISTENS: Final = 1.5
"""Seconds within which each replica has reported its presence: it does so once a second."""
MOST: Final = 1000
"""Replicas that are noted; further ones are not."""


class PresenceListener:
    """Of one connection."""

    def __init__(self, names: Names) -> None:
        self._subject = f"{names.internal}.{PRESENCE}"
        self._since = 0.0
        self._heard: dict[str, Presence] = {}

    async def start(self, client: Client) -> None:
        """Without the right to that subject nothing is heard."""
        self._since = time.monotonic()
        await client.subscribe(self._subject, cb=self._take)

    async def marks(self) -> dict[str, tuple[str, ...]]:
        """The replicas that run, by the mark of the policies by which they judge."""
        await asyncio.sleep(max(0.0, self._since + LISTENS - time.monotonic()))
        by_mark: dict[str, list[str]] = {}
        for each in self._heard.values():
            if not each.leaving:
                by_mark.setdefault(each.policies, []).append(each.instance or each.id)
        return {mark: tuple(sorted(instances)) for mark, instances in sorted(by_mark.items())}

    async def _take(self, message: Msg) -> None:
        presence = read(message.data, Presence)
        if presence is not None and (presence.id in self._heard or len(self._heard) < MOST):
            self._heard[presence.id] = presence
