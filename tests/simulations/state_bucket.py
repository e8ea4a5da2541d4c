"""A state bucket that a test writes like the sidecar, and waits for what a client makes of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from nats.aio.client import Client
from nats.js.api import StreamConfig
from nats.js.errors import ServerError

from nats_backpressure.client import BackpressureClient
from nats_backpressure.protocol.subjects import HEARTBEAT, Names, encode
from tests.support.sidecar import eventually

SUBJECT = "orders.created"
BUCKET = Names().state_bucket
STILL_REMOVING = 10049
"""What a server answers while the files of a stream of that name are being removed."""


def state(subject: str = SUBJECT, **fields: Any) -> dict[str, Any]:
    return {"subject": subject, "status": "inactive", "action": "continue", **fields}


def active(subject: str = SUBJECT, **fields: Any) -> dict[str, Any]:
    return state(subject, **{"status": "active", "action": "reject", "retry_after_seconds": 30, **fields})


class States:
    """The bucket as the sidecar creates and writes it; heartbeats only on request."""

    def __init__(self, nc: Client) -> None:
        self.nc = nc

    async def make(self) -> None:
        config = StreamConfig(
            name=f"KV_{BUCKET}",
            subjects=[f"$KV.{BUCKET}.>"],
            max_msgs_per_subject=1,
            allow_rollup_hdrs=True,
            deny_delete=True,
            allow_direct=True,
        )

        async def made() -> bool:
            try:
                return bool(await self.nc.jetstream().add_stream(config))
            except ServerError as error:
                if error.err_code != STILL_REMOVING:
                    raise
                return False

        await eventually(made, "the bucket")

    async def remove(self) -> None:
        await self.nc.jetstream().delete_stream(f"KV_{BUCKET}")

    async def raw(self, key: str, value: bytes, headers: dict[str, str] | None = None) -> None:
        await self.nc.jetstream().publish(f"$KV.{BUCKET}.{key}", value, headers=headers)

    async def put(self, *states: dict[str, Any]) -> None:
        for value in states:
            await self.raw(encode(value["subject"]), json.dumps(value).encode())

    async def delete(self, subject: str) -> None:
        await self.raw(encode(subject), b"", {"KV-Operation": "DEL"})

    async def heartbeat(self, **fields: Any) -> None:
        """`sampled_at` is now unless given."""
        sampled_at = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        defaults = {"schema": 1, "instance": "i", "sampled_at": sampled_at, "stale_after_ms": 10_000, "leaving": False}
        value = {
            **defaults,
            "unknown_after_ms": 30_000,
            "interval_ms": 100,
            "heartbeat_ms": 2000,
            "subjects": 1,
            **fields,
        }
        await self.raw(HEARTBEAT, json.dumps(value).encode())


async def wait_for_admission(
    client: BackpressureClient, subject: str = SUBJECT, seconds: float = 15.0, **facts: Any
) -> None:
    """Wait until `admit` returns all of these fields."""

    async def look() -> bool:
        admission = client.admit(subject)
        return all(getattr(admission, key) == value for key, value in facts.items())

    await eventually(look, f"admit({subject!r}) returning {facts}, not {client.admit(subject)}", seconds)


async def wait_until(fact: Callable[[], bool], what: str) -> None:
    async def look() -> bool:
        return fact()

    await eventually(look, what)
