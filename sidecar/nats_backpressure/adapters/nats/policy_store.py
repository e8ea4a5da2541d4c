"""The policy bucket: the sidecar polls it for changes; commands read and change it.

A watch is silent forever once its bucket was made again, and up to 20 s late after a restart of the server. The list of
streams, which is read all the time, has the bucket's creation time and last sequence; while no list is newer than
LISTED_WITHIN, a small request every POLL_EVERY returns them. When either changed, and on each new connection, all keys
are read: a bucket that was restored from a backup meanwhile, and written since, may show both as before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import structlog
from nats.aio.client import Client

from nats_backpressure.adapters.nats.api import NO_STREAM, ApiError, JetStreamApi
from nats_backpressure.adapters.nats.api_types import StreamInfo
from nats_backpressure.adapters.nats.kv import Bucket
from nats_backpressure.adapters.nats.policy_limits import MOST_BYTES, MOST_KEYS, BucketReading
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.policy.external import OVERRIDES
from nats_backpressure.policy.snapshot import PolicySnapshot, PolicyValue
from nats_backpressure.policy.validation import shorten
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.runtime.failures import Failures
from nats_backpressure.runtime.ports import Clock, Unavailable
from nats_backpressure.runtime.tasks import Once, sleep_until

log = structlog.get_logger()

POLL_EVERY = 0.4
"""Seconds between two polls: a policy is in force within a second of its put."""
LISTED_WITHIN = 0.5
"""Seconds for which the newest list of streams stands for the bucket."""
BEHIND_LIMIT = 25
"""Incomplete readings in a row after which an incomplete one is used."""
BEHIND_HINT = "a replica of the bucket lags, or cannot read a key; the policies that it returned are in force"


class JetStreamPolicyStore:
    """The PolicyStore on a bucket."""

    def __init__(
        self,
        js: JetStreamApi,
        names: Names,
        count: Callable[[str], None],
        client: Callable[[], Client],
        clock: Clock,
        failures: Failures | None = None,
    ) -> None:
        self._failures = failures or Failures(clock)
        self._bucket, self._count, self._clock = Bucket(js, client, names.policy_bucket), count, clock
        self._client = client
        self._too_many = Once()
        self._counted: frozenset[str] = frozenset()
        """The keys of the snapshot in force."""
        self._listed: tuple[tuple[str, int, int], float] | None = None
        """The version of the bucket in the newest list of streams, and when that came."""
        self._moved = asyncio.Event()
        """Whether the version may be another than the one that was read."""
        self._seen: tuple[str, int, int] | None = None
        self._seen_on: Client | None = None
        """The version that was read, and on which connection."""

    def take_looks(self, looks: Sequence[StreamLook]) -> None:
        look = next((look for look in looks if look.name == self._bucket.stream), None)
        if look is None:  # missing, or not shown: it is asked itself
            return
        self._listed = (look.created, look.last_seq, look.messages), self._clock.now().mono
        if self._listed[0] != self._seen:
            self._moved.set()

    def _unmoved(self) -> bool:
        """Whether a recent list of streams shows the bucket as it was read."""
        if self._listed is None:
            return False
        version, at = self._listed
        return self._is_seen(version) and self._clock.now().mono - at < LISTED_WITHIN

    def _is_seen(self, version: tuple[str, int, int]) -> bool:
        with suppress(Unavailable):
            return version == self._seen and self._client() is self._seen_on
        return False

    async def follow(self, on_change: Callable[[PolicySnapshot], None]) -> None:
        last: tuple[str, dict[str, tuple[int, float]]] | None = None
        behind = 0
        while True:
            while self._unmoved():
                self._moved.clear()
                await sleep_until(self._moved, self._clock, LISTED_WITHIN)
            try:
                client, info = self._client(), await self._bucket.info()
                version = _version(info)
                if not self._is_seen(version):
                    policies, whole = await self._read(info)
                    behind = 0 if whole else behind + 1
                    if whole or behind >= BEHIND_LIMIT:
                        if not whole:
                            log.warning("policies.behind", stream=self._bucket.stream, hint=BEHIND_HINT)
                        snapshot = PolicySnapshot(version[0], policies)
                        self._seen, self._seen_on, behind = version, client, 0
                        revisions = {key: (policy.revision, policy.at) for key, policy in policies.items()}
                        if (snapshot.bucket, revisions) != last:
                            on_change(snapshot)
                            last = snapshot.bucket, revisions
                            self._counted = frozenset(policies)
                        del policies, snapshot  # they are large
                self._failures.works("policies")
            except Unavailable as error:
                self._failures.failed("policies", error)
                log.debug("policies.unavailable", error=str(error))
            await self._clock.sleep(POLL_EVERY)

    async def _read(self, info: StreamInfo[dict[str, Any]] | None) -> tuple[dict[str, PolicyValue], bool]:
        """The policies, and whether they are all that the leader had when it was asked: any replica may answer this
        reading, and it may lag."""
        if info is None:
            return {}, True
        newest = await self._bucket.get(">")
        reading, keys, reached = BucketReading(self._counted), 0, 0
        async for key, message in self._bucket.entries():
            keys, reached = keys + 1, max(reached, message.seq)
            if not message.deleted:
                reading.add(key, message)
        policies = reading.values()
        self._log_ignored(reading.ignored)
        return policies, keys >= info.state.num_subjects and (newest is None or reached >= newest.seq)

    def _log_ignored(self, key: str | None) -> None:
        if key is None:
            self._too_many.forget()
            return
        self._count("policy_beyond_limit")
        if self._too_many.first():
            log.warning(
                "policies.too_many",
                stream=self._bucket.stream,
                limit=MOST_KEYS,
                limit_bytes=MOST_BYTES,
                ignored=shorten(key),
                hint="use patterns, and remove what is no policy",
            )


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
        """Every key with a value, at most MOST_KEYS of policies: a sidecar reads no more. Overrides are all there."""
        policies: dict[str, PolicyValue] = {}
        try:
            async for key, message in self._bucket.entries():
                if not message.deleted and (len(policies) < MOST_KEYS or key.startswith(OVERRIDES)):
                    policies[key] = PolicyValue(message.data, message.seq, message.at)
        except ApiError as error:
            raise self._named(error) from None
        return policies

    async def server_time(self) -> float:
        """Unix seconds by the server's clock, or by our own where it shows none."""
        info = await self._bucket.info()
        return time.time() if info is None or info.ts is None else info.ts.timestamp()

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


def _version(info: StreamInfo[dict[str, Any]] | None) -> tuple[str, int, int]:
    """Changes with every put, delete and purge, and when the bucket is made again."""
    return ("", 0, 0) if info is None else (info.created, info.state.last_seq, info.state.messages)
