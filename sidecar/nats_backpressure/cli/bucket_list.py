"""Lists the entries of the policy bucket: what each one sets, since when, and what it governs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import Struct, to_builtins

from nats_backpressure.cli.governed_subjects import governed_by, parse_policy, parse_stored_override
from nats_backpressure.cli.output import Row, format_value
from nats_backpressure.cli.policy_bucket import PolicyKey
from nats_backpressure.policy.active import PolicyValue
from nats_backpressure.policy.external import OVERRIDES
from nats_backpressure.policy.parse import PolicyEntry
from nats_backpressure.protocol.messages import Status
from nats_backpressure.protocol.patterns import BadTail, covers, decode
from nats_backpressure.protocol.timestamps import format_rfc3339

UNREADABLE = "cannot be read"
POLICY_LIST = ("pattern", "sets", "stored at", "revision", "governs")
OVERRIDE_LIST = ("pattern", "action", "until", "state", "stored at", "governs")


class Listed(Struct, frozen=True):
    """One entry of the bucket."""

    pattern: str
    value: Any
    """As it is stored; None where it is no JSON."""
    state: str
    """`in force`, `ended` (an override), or `cannot be read`."""
    stored_at: str
    revision: int
    governs: tuple[str, ...] | None
    """Watched subjects; None where no sidecar answered which there are."""


def listed(
    bucket: Mapping[str, PolicyValue],
    statuses: Sequence[Status] | None,
    covered_by: str | None,
    *,
    overrides: bool,
    now: float = 0.0,
) -> Iterator[Listed]:
    """The policies or the overrides in a bucket, by pattern; with `covered_by` those that it covers, or that cover
    it. `now`: for overrides, the server's time."""
    for key, value in sorted(bucket.items()):
        if key.startswith(OVERRIDES) is not overrides:
            continue
        with suppress(BadTail):
            pattern = decode(key.removeprefix(OVERRIDES))
            if covered_by is None or covers(covered_by, pattern) or covers(pattern, covered_by):
                governed = statuses and governed_by(statuses, PolicyKey(pattern, overrides), bucket, now).governed
                yield Listed(
                    pattern,
                    _decoded(value.value),
                    _state(key, value, overrides, now),
                    format_rfc3339(value.at),
                    value.revision,
                    None if statuses is None else tuple(governed or ()),
                )


def policy_row(entry: Listed, watched: int) -> Row:
    fields = changes(None, msgspec.json.encode(entry.value)) if entry.state != UNREADABLE else [UNREADABLE]
    return entry.pattern, "; ".join(fields), entry.stored_at, str(entry.revision), _governs(entry, watched)


def override_row(entry: Listed, watched: int) -> Row:
    value = entry.value if entry.state != UNREADABLE else {}
    action, until = str(value.get("action", "-")), str(value.get("until", "-"))
    return entry.pattern, action, until, entry.state, entry.stored_at, _governs(entry, watched)


def changes(before: bytes | None, after: bytes) -> list[str]:
    """What a policy sets that another one did not, field by field, and what it sets no more. Without a policy before,
    what it sets."""
    old, new = _fields(before), _fields(after)
    if before is None:
        return [f"{name} {format_value(value)}" for name, value in new.items()]
    lines = []
    for name in dict.fromkeys([*old, *new]):
        was, now = (format_value(each[name]) if name in each else "(inherited)" for each in (old, new))
        if was != now:
            lines.append(f"{name}: {was} -> {now}")
    return lines


def _fields(value: bytes | None) -> dict[str, Any]:
    entry = (parse_policy(value) if value else None) or PolicyEntry()
    consumers = {} if entry.consumers == ("*",) else {"consumers": ", ".join(entry.consumers)}
    return consumers | {name: to_builtins(field) for name, field in entry.fields}


def _state(key: str, value: PolicyValue, is_override: bool, now: float) -> str:
    if not is_override:
        return "in force" if parse_policy(value.value) is not None else UNREADABLE
    entry = parse_stored_override(key, value, now)
    if entry is None:
        return UNREADABLE
    return "in force" if entry.override.until > now else "ended"


def _decoded(value: bytes) -> Any:
    try:
        return msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _governs(entry: Listed, watched: int) -> str:
    return "?" if entry.governs is None else f"{len(entry.governs):,} of {watched:,}"
