"""The policy bucket, followed by looking whether it moved: there is no watch that could go blind without a word.

A watch is silent for ever once its bucket was made anew, and up to 20 s late after a restart of the server. One small
request every POLL_EVERY tells the bucket's creation and its last sequence; where either moved, all of it is read again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from nats.aio.client import Client

from nats_backpressure.adapters.nats.api import JetStreamApi, StreamInfo
from nats_backpressure.adapters.nats.last_per_subject import last_per_subject
from nats_backpressure.policy.active import PolicySnapshot, PolicyValue
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.runtime.ports import Unavailable

log = structlog.get_logger()

POLL_EVERY = 0.4
"""Seconds between two looks: a policy is in force within a second of its put."""
BEHIND_LIMIT = 25
"""Readings in a row that show less than the leader says there is, before what they show is taken all the same."""
BEHIND_HINT = "a replica of the bucket lags, or cannot show a key: what it shows is in force"
MOST_KEYS = 10_000
"""Policies in the bucket; those beyond are left out, counted and said once."""


class JetStreamPolicyStore:
    def __init__(
        self, js: JetStreamApi, names: Names, count: Callable[[str], None], client: Callable[[], Client]
    ) -> None:
        self._js, self._count, self._client = js, count, client
        self._stream, self._prefix = f"KV_{names.policy_bucket}", f"$KV.{names.policy_bucket}."
        self._said_many = False

    async def follow(self, on_change: Callable[[PolicySnapshot], None]) -> None:
        seen: tuple[str, int, int] | None = None
        told: PolicySnapshot | None = None
        behind = 0
        while True:
            try:
                info = await self._js.stream(self._stream)
                if (now := _mark(info)) != seen:
                    entries, whole = await self._read(info)
                    behind = 0 if whole else behind + 1
                    if whole or behind >= BEHIND_LIMIT:
                        if not whole:
                            log.warning("policies.behind", stream=self._stream, hint=BEHIND_HINT)
                        found = PolicySnapshot(now[0], entries)
                        seen, behind = now, 0
                        if found != told:
                            on_change(found)
                            told = found
            except Unavailable as error:
                log.debug("policies.unavailable", error=str(error))
            await asyncio.sleep(POLL_EVERY)

    async def _read(self, info: StreamInfo | None) -> tuple[dict[str, PolicyValue], bool]:
        """What the bucket holds, and whether that is all that its leader had when it was asked: it is read from any
        replica, and one may lag."""
        found: dict[str, PolicyValue] = {}
        if info is None:
            return found, True
        newest = await self._js.last(self._stream, f"{self._prefix}>")
        keys, reached = 0, 0
        async for message in last_per_subject(self._js, self._client(), self._stream, self._prefix):
            keys, reached = keys + 1, max(reached, message.seq)
            if message.gone:
                continue
            if len(found) >= MOST_KEYS:
                self._too_many()
                continue
            found[message.subject.removeprefix(self._prefix)] = PolicyValue(message.data, message.seq, message.at)
        return found, keys >= info.state.num_subjects and (newest is None or reached >= newest.seq)

    def _too_many(self) -> None:
        self._count("policy_beyond_limit")
        if not self._said_many:
            self._said_many = True
            log.warning("policies.too_many", stream=self._stream, limit=MOST_KEYS, hint="use patterns")


def _mark(info: StreamInfo | None) -> tuple[str, int, int]:
    """Changes with every put, delete and purge, and with the bucket itself."""
    return ("", 0, 0) if info is None else (info.created, info.state.last_seq, info.state.messages)
