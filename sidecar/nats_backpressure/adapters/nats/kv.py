"""The policy bucket in the hands of an operator: read, and changed only where it is still what was read."""

from __future__ import annotations

from collections.abc import Callable

from nats.aio.client import Client

from nats_backpressure.adapters.nats.api import NO_STREAM, WRONG_SEQUENCE, ApiError, JetStreamApi
from nats_backpressure.adapters.nats.last_per_subject import last_per_subject
from nats_backpressure.policy.active import PolicyValue
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.runtime.ports import Conflict, Unavailable

MOST_KEYS = 10_000
EXPECTED = "Nats-Expected-Last-Subject-Sequence"


class PolicyBucket:
    """Keys as they stand in the bucket. Raises Unavailable."""

    def __init__(self, js: JetStreamApi, names: Names) -> None:
        self._js, self._bucket = js, names.policy_bucket
        self._stream, self._prefix = f"KV_{self._bucket}", f"$KV.{self._bucket}."

    async def read(self, key: str) -> PolicyValue:
        """What stands under a key and its revision: an empty value where nothing does."""
        try:
            found = await self._js.last(self._stream, self._prefix + key)
        except ApiError as error:
            raise self._named(error) from None
        return PolicyValue(b"", 0) if found is None else PolicyValue(b"" if found.gone else found.data, found.seq)

    async def all(self, client: Callable[[], Client]) -> dict[str, PolicyValue]:
        """Every key that holds something, MOST_KEYS at most: a sidecar reads no more."""
        found: dict[str, PolicyValue] = {}
        try:
            async for message in last_per_subject(self._js, client(), self._stream, self._prefix):
                if not message.gone and len(found) < MOST_KEYS:
                    found[message.subject.removeprefix(self._prefix)] = PolicyValue(
                        message.data, message.seq, message.at
                    )
        except ApiError as error:
            raise self._named(error) from None
        return found

    async def write(self, key: str, value: bytes, expected: int) -> int:
        """The new revision. Raises Conflict where another one than the expected stands there by now."""
        return await self._publish(key, value, {EXPECTED: str(expected)})

    async def remove(self, key: str, expected: int) -> None:
        await self._publish(key, b"", {"KV-Operation": "DEL", EXPECTED: str(expected)})

    async def _publish(self, key: str, value: bytes, headers: dict[str, str]) -> int:
        try:
            return (await self._js.publish(f"{self._js.kv}{self._prefix}{key}", value, headers)).seq
        except ApiError as error:
            raise Conflict(key) if error.err_code in WRONG_SEQUENCE else error from None

    def _named(self, error: ApiError) -> Unavailable:
        if error.err_code != NO_STREAM:
            return error
        return Unavailable(f"there is no bucket {self._bucket}: a sidecar of that name makes it when it starts")
