"""Creates the events stream and the buckets if they are missing, never changes them, and logs what is in the way."""

from __future__ import annotations

from typing import Any

import structlog
from msgspec import Struct

from nats_backpressure.adapters.nats.api import ApiError, JetStreamApi
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.runtime.ports import Unavailable
from nats_backpressure.runtime.tasks import Once

log = structlog.get_logger()

DUPLICATE_WINDOW = 3600
"""Seconds for which the server recognises an event's id again."""
NANOSECONDS = 1_000_000_000
HISTORY = 1
"""Values that a bucket stores per key."""
NAME_IN_USE = 10058


class Missing(Unavailable):
    """A stream that is missing, and is not ours to create."""


class Resources:
    """The events stream, the state bucket and the policy bucket; the last is optional."""

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
        """Without it only the policies of the file are in force."""
        self._logged = Once()

    async def ensure(self) -> None:
        """Create what is missing, and log once how an existing one differs. Raises Unavailable if something cannot be
        created."""
        missing: Missing | None = None
        for wanted in self._wanted:
            try:
                await self._ensure(wanted)
            except Missing as error:  # the others may be missing too: all are logged
                missing = missing or error
        await self._ensure_optional()
        if missing is not None:
            raise missing

    async def _ensure_optional(self) -> None:
        try:
            await self._ensure(self._optional)
        except Unavailable as error:
            name = self._optional["name"]
            self._log_once(f"without {name}", "resources.without", stream=name, error=str(error))

    async def _ensure(self, wanted: dict[str, Any]) -> None:
        info = await self._js.stream(wanted["name"])
        if info is None:
            await self._create(wanted)
        elif other := differences(wanted, info.config):
            self._log_once(
                f"{wanted['name']} {other}",
                "resources.differ",
                stream=wanted["name"],
                has=other,
                wanted={key: wanted.get(key, DEFAULTS[key]) for key in other},
                cost="it is used as it is; where it drops or refuses what is stored there, states or events are lost",
                hint=f"`nats stream edit {wanted['name']}`; storage and retention can only be changed by a new stream",
            )

    async def _create(self, wanted: dict[str, Any]) -> None:
        name = wanted["name"]
        if not self._manage:
            self._log_once(name, "resources.missing", stream=name, make_it=command(wanted, self._names))
            raise Missing(f"stream {name} is missing and manage_resources is false")
        try:
            await self._js.api(f"STREAM.CREATE.{name}", _Created, wanted)
        except ApiError as error:
            if error.err_code == NAME_IN_USE:  # another replica was faster, with other settings
                return
            held_by = await self._streams_with(wanted["subjects"][0])
            hint = "remove the subjects from that stream, or give this installation another `name`" if held_by else None
            self._log_once(
                name, "resources.refused", stream=name, error=str(error), subjects_held_by=held_by, hint=hint
            )
            raise
        log.info("resources.created", stream=name)

    async def _streams_with(self, subject: str) -> list[str]:
        """The streams that store some of these subjects."""
        try:
            return (await self._js.api("STREAM.NAMES", _Names, {"subject": subject})).streams or []
        except Unavailable:
            return []

    def _log_once(self, key: str, event: str, **facts: object) -> None:
        if self._logged.first(key):
            log.warning(event, **facts)


def _bucket(name: str, replicas: int) -> dict[str, Any]:
    """A bucket as the KV of every client creates it."""
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


DEFAULTS: dict[str, object] = {
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
"""Settings of an existing stream that matter to us, with the server's defaults."""


def differences(wanted: dict[str, Any], config: dict[str, Any]) -> dict[str, object]:
    """The settings in which an existing stream differs from the wanted one, as far as they matter."""
    # Servers return "no limit" as -1, 0 or not at all.
    unlimited = {key: plain for key, plain in DEFAULTS.items() if plain == -1}

    def value(source: dict[str, Any], key: str) -> object:
        setting = source.get(key, DEFAULTS[key])
        return -1 if key in unlimited and setting in (0, None) else setting

    return {key: value(config, key) for key in DEFAULTS if value(wanted, key) != value(config, key)}


def command(wanted: dict[str, Any], names: Names) -> str:
    """The command line that creates a stream or bucket."""
    if wanted["name"] == names.events_stream:
        age, window = wanted["max_age"] // NANOSECONDS, wanted["duplicate_window"] // NANOSECONDS
        return (
            f"nats stream add {wanted['name']} --subjects '{wanted['subjects'][0]}' --storage file --retention limits "
            f"--discard old --max-age {age}s --dupe-window {window}s --replicas {wanted['num_replicas']} --defaults"
        )
    return f"nats kv add {wanted['name'].removeprefix('KV_')} --history {HISTORY} --replicas {wanted['num_replicas']}"
