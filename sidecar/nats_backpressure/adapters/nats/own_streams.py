"""What our stream and buckets should be: their settings, how an existing one differs, the command that creates one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from nats_backpressure.protocol.subjects import Names

DUPLICATE_WINDOW = 3600
"""Seconds for which the server recognises an event's id again."""
NANOSECONDS = 1_000_000_000
HISTORY = 1
"""Values that a bucket stores per key."""
ROOM: Final = 4096
"""Bytes that a state takes with its headers, generously; most take 1 to 2 KiB."""
LIMITS: Final = (("max_bytes", "bytes", "bytes"), ("max_msgs", "messages", "messages"))
"""The limits of a stream that it can reach, what of its state counts, and the unit."""


def events_stream(names: Names, replicas: int, max_age: float) -> dict[str, Any]:
    """`max_age`: seconds for which it keeps an event."""
    return {
        "name": names.events_stream,
        "subjects": [f"{names.prefix}.event.>"],
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "num_replicas": replicas,
        "max_age": int(max_age * NANOSECONDS),
        "duplicate_window": int(min(DUPLICATE_WINDOW, max_age) * NANOSECONDS),
        "allow_direct": True,
    }


def bucket(name: str, replicas: int) -> dict[str, Any]:
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
    "sources": None,
    "republish": None,
}
"""Settings of an existing stream that matter to us, with the server's defaults. One that copies messages may be
somebody's way to read what the login of the sidecar may not."""


def differences(wanted: dict[str, Any], config: dict[str, Any]) -> dict[str, object]:
    """The settings in which an existing stream differs from the wanted one, as far as they matter."""
    # Servers return "no limit" as -1, 0 or not at all.
    unlimited = {key: plain for key, plain in DEFAULTS.items() if plain == -1}

    def value(source: dict[str, Any], key: str) -> object:
        setting = source.get(key, DEFAULTS[key])
        return -1 if key in unlimited and setting in (0, None) else setting

    return {key: value(config, key) for key in DEFAULTS if value(wanted, key) != value(config, key)}


EDITS: Final[Mapping[str, str]] = {
    "subjects": "--subjects",
    "num_replicas": "--replicas",
    "max_age": "--max-age",
    "max_msgs": "--max-msgs",
    "max_bytes": "--max-bytes",
    "max_msgs_per_subject": "--max-msgs-per-subject",
    "max_msg_size": "--max-msg-size",
    "allow_rollup_hdrs": "--allow-rollup",
    "no_ack": "--ack",
    "republish": "--no-republish",
}
"""The option of `nats stream edit` that changes a setting. The others are those of a new stream only."""


def fixed(other: Iterable[str]) -> tuple[str, ...]:
    """Those of these settings that only a new stream can have."""
    return tuple(key for key in other if key not in EDITS)


def edit(wanted: dict[str, Any], other: Iterable[str]) -> str:
    """The command that gives an existing stream these settings, as far as they can be changed; empty if none can."""
    options = [_option(key, wanted.get(key, DEFAULTS[key])) for key in sorted(other) if key in EDITS]
    return " ".join(["nats stream edit", wanted["name"], *options]) if options else ""


def _option(key: str, value: Any) -> str:
    option = EDITS[key]
    if key == "allow_rollup_hdrs":
        return option if value else option.replace("--", "--no-")
    if key in ("no_ack", "republish"):
        return option
    if key == "subjects":
        return f"{option}='{','.join(value)}'"
    return f"{option}={value // NANOSECONDS}s" if key == "max_age" else f"{option}={value}"


def full(wanted: dict[str, Any], config: dict[str, Any], state: Mapping[str, int]) -> str:
    """Which limit of an existing stream leaves no room for another value, and what it holds; empty where there is room.
    A stream that drops the oldest for a new one has room, but for a bucket that would be the state of another key."""
    largest = config.get("max_msg_size") or -1
    if 0 < largest < ROOM:
        return f"it takes values of {largest:,} bytes (max_msg_size), and one takes up to {ROOM:,}"
    if config.get("discard", "old") != "new" and wanted["discard"] != "new":
        return ""
    for limit, holds, unit in LIMITS:
        most, needed = config.get(limit) or -1, ROOM if unit == "bytes" else 1
        if most > 0 and state.get(holds, 0) + needed > most:
            return f"it holds {state.get(holds, 0):,} of {most:,} {unit} ({limit})"
    return ""


def command(wanted: dict[str, Any], names: Names) -> str:
    """The command line that creates a stream or bucket."""
    if wanted["name"] == names.events_stream:
        age, window = wanted["max_age"] // NANOSECONDS, wanted["duplicate_window"] // NANOSECONDS
        return (
            f"nats stream add {wanted['name']} --subjects '{wanted['subjects'][0]}' --storage file --retention limits "
            f"--discard old --max-age {age}s --dupe-window {window}s --replicas {wanted['num_replicas']} --defaults"
        )
    return f"nats kv add {wanted['name'].removeprefix('KV_')} --history {HISTORY} --replicas {wanted['num_replicas']}"
