"""Our own stream and bucket: made where missing, never altered, and named where something is in their way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import structlog
from msgspec import Struct

from nats_backpressure.adapters.nats.api import ApiError, JetStreamApi
from nats_backpressure.adapters.nats.api_types import StreamInfo
from nats_backpressure.core.model import StreamLook
from nats_backpressure.protocol.patterns import covers
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.runtime.ports import Unavailable

log = structlog.get_logger()

DUPLICATE_WINDOW = 3600
"""Seconds in which the server recognises an event's id."""
NANOSECONDS = 1_000_000_000
HISTORY = 1
NAME_IN_USE = 10058


class Resources:
    """`ensure` makes what is missing; what an existing one has otherwise is said once."""

    def __init__(self, js: JetStreamApi, names: Names, replicas: int, max_age: float, manage: bool) -> None:
        self._js, self._names, self._manage = js, names, manage
        self._wanted: tuple[dict[str, Any], ...] = (
            {
                "name": names.events_stream,
                "subjects": [f"{names.prefix}.event.>"],
                "retention": "limits",
                "storage": "file",
                "discard": "old",
                "num_replicas": replicas,
                "max_age": int(max_age * NANOSECONDS),
                "duplicate_window": int(min(DUPLICATE_WINDOW, max_age) * NANOSECONDS),
                "allow_direct": True,
            },
            _bucket(names.state_bucket, replicas),
        )
        self._optional = _bucket(names.policy_bucket, replicas)
        """Without it we judge by the file alone."""
        self._said: set[str] = set()

    async def ensure(self) -> None:
        """Raises Unavailable while something is missing and cannot be made."""
        for wanted in self._wanted:
            await self._ensure(wanted)
        try:
            await self._ensure(self._optional)
        except Unavailable as error:
            name = self._optional["name"]
            self._say(f"without {name}", "resources.without", stream=name, error=str(error))

    async def _ensure(self, wanted: dict[str, Any]) -> None:
        found = await self._js.stream(wanted["name"])
        if found is None:
            await self._make(wanted)
        else:
            self._compare(wanted, found)

    async def _make(self, wanted: dict[str, Any]) -> None:
        name = wanted["name"]
        if not self._manage:
            self._say(name, "resources.missing", stream=name, make_it=command(wanted, self._names))
            raise Unavailable(f"stream {name} is missing and manage_resources is false")
        try:
            await self._js.api(f"STREAM.CREATE.{name}", _Created, wanted)
        except ApiError as error:
            if error.err_code == NAME_IN_USE:  # another replica was faster, with settings of its own
                return
            held_by = await self._holders(wanted["subjects"][0])
            hint = "take the subjects out of that stream, or give this installation another `name`" if held_by else None
            self._say(name, "resources.refused", stream=name, error=str(error), subjects_held_by=held_by, hint=hint)
            raise
        log.info("resources.created", stream=name)

    async def _holders(self, subject: str) -> list[str]:
        """The streams that have some of these subjects already."""
        try:
            return (await self._js.api("STREAM.NAMES", _Names, {"subject": subject})).streams or []
        except Unavailable:
            return []

    def _compare(self, wanted: dict[str, Any], found: StreamInfo[dict[str, Any]]) -> None:
        if other := differences(wanted, found.config):
            self._say(f"{wanted['name']} {other}", "resources.differ", stream=wanted["name"], has=other)

    def _say(self, key: str, event: str, **facts: object) -> None:
        if key not in self._said:
            self._said.add(key)
            log.warning(event, **facts)


def _bucket(name: str, replicas: int) -> dict[str, Any]:
    """As every client's KV makes one."""
    return {
        "name": f"KV_{name}",
        "subjects": [f"$KV.{name}.>"],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "num_replicas": replicas,
        "max_msgs_per_subject": HISTORY,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_direct": True,
    }


class _Created(Struct, frozen=True):
    created: str = ""


class _Names(Struct, frozen=True):
    streams: list[str] | None = None


MATTERS: dict[str, object] = {
    "subjects": [],
    "num_replicas": 1,
    "retention": "limits",
    "storage": "file",
    "max_age": 0,
    "max_msgs": -1,
    "max_bytes": -1,
    "max_msgs_per_subject": -1,
    "max_msg_size": -1,
    "allow_rollup_hdrs": False,
    "no_ack": False,
    "sealed": False,
    "mirror": None,
}
"""What of an existing stream bears on us, with what the server takes it to be where nothing is said."""


def differences(wanted: dict[str, Any], config: dict[str, Any]) -> dict[str, object]:
    """What an existing stream has otherwise than we would have made it, as far as it matters."""
    # Servers show "no limit" as -1, 0 or not at all.
    unlimited = {key: plain for key, plain in MATTERS.items() if plain == -1}

    def value(source: dict[str, Any], key: str) -> object:
        found = source.get(key, MATTERS[key])
        return -1 if key in unlimited and found in (0, None) else found

    return {key: value(config, key) for key in MATTERS if value(wanted, key) != value(config, key)}


def command(wanted: dict[str, Any], names: Names) -> str:
    """The line that makes it."""
    if wanted["name"] == names.events_stream:
        age, window = wanted["max_age"] // NANOSECONDS, wanted["duplicate_window"] // NANOSECONDS
        return (
            f"nats stream add {wanted['name']} --subjects '{wanted['subjects'][0]}' --storage file --retention limits "
            f"--discard old --max-age {age}s --dupe-window {window}s --replicas {wanted['num_replicas']} --defaults"
        )
    return f"nats kv add {wanted['name'].removeprefix('KV_')} --history {HISTORY} --replicas {wanted['num_replicas']}"


def captors(looks: Iterable[StreamLook], subject: str) -> list[str]:
    """The streams that store what is sent to `subject`, and would answer it with their own acknowledgement."""
    return [look.name for look in looks if any(covers(pattern, subject) for pattern in look.subjects)]
