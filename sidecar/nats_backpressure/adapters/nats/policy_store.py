"""The policy bucket: the sidecar polls it for changes; commands read and change it.

A watch is silent forever once its bucket was made again, and up to 20 s late after a restart of the server. One small
request every POLL_EVERY returns the bucket's creation time and last sequence; when either changed, all keys are read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
from nats.aio.client import Client

from nats_backpressure.adapters.nats.api import NO_STREAM, ApiError, JetStreamApi, Message
from nats_backpressure.adapters.nats.api_types import StreamInfo
from nats_backpressure.adapters.nats.kv import Bucket
from nats_backpressure.policy.active import PolicySnapshot, PolicyValue
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.runtime.ports import Clock, Unavailable
from nats_backpressure.runtime.tasks import Once

log = structlog.get_logger()

POLL_EVERY = 0.4
"""Seconds between two polls: a policy is in force within a second of its put."""
BEHIND_LIMIT = 25
"""Incomplete readings in a row after which an incomplete one is used."""
BEHIND_HINT = "a replica of the bucket lags, or cannot read a key; the policies that it returned are in force"
MOST_KEYS = 10_000
"""Policies in the bucket; further ones are ignored, counted and logged once."""


class JetStreamPolicyStore:
    """The PolicyStore on a bucket."""

    def __init__(
        self,
        js: JetStreamApi,
        names: Names,
        count: Callable[[str], None],
        client: Callable[[], Client],
        clock: Clock,
    ) -> None:
        self._bucket, self._count, self._clock = Bucket(js, client, names.policy_bucket), count, clock
        self._too_many = Once()

    async def follow(self, on_change: Callable[[PolicySnapshot], None]) -> None:
        seen: tuple[str, int, int] | None = None
        last: PolicySnapshot | None = None
        behind = 0
        while True:
            try:
                info = await self._bucket.info()
                if (version := _version(info)) != seen:
                    policies, whole = await self._read(info)
                    behind = 0 if whole else behind + 1
                    if whole or behind >= BEHIND_LIMIT:
                        if not whole:
                            log.warning("policies.behind", stream=self._bucket.stream, hint=BEHIND_HINT)
                        snapshot = PolicySnapshot(version[0], policies)
                        seen, behind = version, 0
                        if snapshot != last:
                            on_change(snapshot)
                            last = snapshot
            except Unavailable as error:
                log.debug("policies.unavailable", error=str(error))
            await self._clock.sleep(POLL_EVERY)

    async def _read(self, info: StreamInfo[dict[str, Any]] | None) -> tuple[dict[str, PolicyValue], bool]:
        """The policies, and whether they are all that the leader had when it was asked: any replica may answer this
        reading, and it may lag."""
        policies: dict[str, PolicyValue] = {}
        if info is None:
            return policies, True
        newest = await self._bucket.get(">")
        keys, reached = 0, 0
        async for key, message in self._bucket.entries():
            keys, reached = keys + 1, max(reached, message.seq)
            if message.deleted:
                continue
            if len(policies) >= MOST_KEYS:
                self._count("policy_beyond_limit")
                if self._too_many.first():
                    log.warning("policies.too_many", stream=self._bucket.stream, limit=MOST_KEYS, hint="use patterns")
                continue
            policies[key] = _value(message)
        return policies, keys >= info.state.num_subjects and (newest is None or reached >= newest.seq)


class PolicyBucket:
    """The policies in the bucket for an operator: written only over the revision that was read. Raises Unavailable."""

    def __init__(self, js: JetStreamApi, names: Names, client: Callable[[], Client]) -> None:
        self._bucket = Bucket(js, client, names.policy_bucket)

    async def read(self, key: str) -> PolicyValue:
        """The value of a key and its revision; an empty value if it does not exist."""
        try:
            message = await self._bucket.get(key)
        except ApiError as error:
            raise self._named(error) from None
        if message is None:
            return PolicyValue(b"", 0)
        return PolicyValue(b"" if message.deleted else message.data, message.seq)

    async def all(self) -> dict[str, PolicyValue]:
        """Every key with a value, at most MOST_KEYS: a sidecar reads no more."""
        policies: dict[str, PolicyValue] = {}
        try:
            async for key, message in self._bucket.entries():
                if not message.deleted and len(policies) < MOST_KEYS:
                    policies[key] = _value(message)
        except ApiError as error:
            raise self._named(error) from None
        return policies

    async def write(self, key: str, value: bytes, expected: int) -> int:
        """Returns the new revision. Raises Conflict if the key was changed since it was read."""
        return await self._bucket.update(key, value, expected)

    async def remove(self, key: str, expected: int) -> None:
        """Raises Conflict if the key was changed since it was read."""
        await self._bucket.delete(key, expected)

    def _named(self, error: ApiError) -> Unavailable:
        if error.err_code != NO_STREAM:
            return error
        return Unavailable(f"there is no bucket {self._bucket.name}: a sidecar of that name creates it when it starts")


def _value(message: Message) -> PolicyValue:
    return PolicyValue(message.data, message.seq, message.at)


def _version(info: StreamInfo[dict[str, Any]] | None) -> tuple[str, int, int]:
    """Changes with every put, delete and purge, and when the bucket is made again."""
    return ("", 0, 0) if info is None else (info.created, info.state.last_seq, info.state.messages)
