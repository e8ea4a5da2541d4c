"""Helpers of the policy tests: values of the bucket, and the fields that `policy get` prints."""

from __future__ import annotations

import msgspec
from nats.aio.client import Client
from nats.js.errors import KeyNotFoundError

from tests.support.command import Command
from tests.support.sidecar import SUBJECT, eventually

UNKNOWN_SUBJECTS = "it is not known which subjects this governs:"

ALL = "governs 1 of 1 watched subject"


async def bucket(nc: Client, key: str = SUBJECT) -> object:
    try:
        entry = await (await nc.jetstream().key_value("backpressure_policy")).get(key)
    except KeyNotFoundError:
        return None
    return msgspec.json.decode(entry.value or b"")


async def source(command: Command, field: str, wanted: str) -> str:
    """What `policy get` prints of a field, once it comes from there."""

    async def look() -> str | None:
        lines = (await command.good("policy", "get", SUBJECT)).splitlines()
        return next((line for line in lines if line.startswith(field) and line.endswith(wanted)), None)

    entry: str = await eventually(look, f"{field} from {wanted}")
    return entry
