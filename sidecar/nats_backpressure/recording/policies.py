"""The policies that were in force, as lines of a recording: each entry when it changed, then a line that puts all of
them in force. A consumer's own metadata stands in its `consumer` line."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

from nats_backpressure.core.watch_filter import WatchEntry
from nats_backpressure.policy.parse import OverrideEntry, entry_document, parse_entry
from nats_backpressure.policy.precedence import LayerEntry, Sources
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.recording.format import BadRecording, Line, NoRecording, Rule, Rules

RULES_LIMIT: Final = 50_000
"""Entries of all layers that a reader keeps: more than file and bucket may hold together."""


class Scope(Struct, frozen=True):
    """What of the settings decides beside the policies: what is watched, and when a truth is stale and unknown."""

    watch: tuple[WatchEntry, ...] = (WatchEntry("*"),)
    stale_after: float = 10.0
    unknown_after: float = 30.0


class PoliciesChanged(Struct, frozen=True):
    """These policies were in force from then on."""

    at: Now
    name: str
    """Of the installation."""
    sources: Sources
    scope: Scope


class PolicyLineWriter:
    """Begun anew for every file, so that each can be read alone."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._written: dict[tuple[str, str], LayerEntry] = {}
        self._last: Rules | None = None

    def lines(self, sources: Sources, now: Now) -> list[Line]:
        """What changed since the last time, none if nothing did."""
        entries: dict[tuple[str, str], LayerEntry] = {("file", str(n)): entry for n, entry in enumerate(sources.file)}
        entries |= {("bucket", key): entry for key, entry in sources.bucket.items()}
        changed: list[Line] = [_rule(*place, None) for place in self._written if place not in entries]
        changed += [_rule(*place, entry) for place, entry in entries.items() if self._written.get(place) != entry]
        at, scope = (round(now.mono, 3), round(now.wall, 3)), self._scope
        rules = Rules(at, sources.guard, sources.trust_metadata, scope.watch, scope.stale_after, scope.unknown_after)
        same = self._last is not None and msgspec.structs.replace(rules, at=self._last.at) == self._last
        if not changed and same:
            return []
        self._written, self._last = entries, rules
        return [*changed, rules]


class PolicyLineReader:
    """One part of a recording. Raises NoRecording for more entries than can be kept."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], LayerEntry] = {}

    def take(self, line: Rule) -> BadRecording | None:
        place = (line.layer, line.key)
        self._entries.pop(place, None)
        if line.override is not None:
            self._entries[place] = line.override
        elif line.policy is not None:
            entry, problems = parse_entry(line.policy)
            if entry is None:
                return BadRecording(f"a policy that cannot be used: {problems[0].line}"[:200])
            self._entries[place] = entry
        if len(self._entries) > RULES_LIMIT:
            raise NoRecording(f"more than {RULES_LIMIT:,} policies at a time")
        return None

    def done(self, line: Rules, at: Now, name: str) -> PoliciesChanged:
        bucket = {key: entry for (layer, key), entry in self._entries.items() if layer == "bucket"}
        numbers = sorted((key for layer, key in self._entries if layer == "file"), key=lambda key: (len(key), key))
        policies = [self._entries["file", number] for number in numbers]
        file = tuple(entry for entry in policies if not isinstance(entry, OverrideEntry))
        scope = Scope(line.watch, line.stale_after, line.unknown_after)
        return PoliciesChanged(at, name, Sources(file, bucket, line.guard, line.trust_metadata), scope)


def _rule(layer: Any, key: str, entry: LayerEntry | None) -> Rule:
    if isinstance(entry, OverrideEntry):
        return Rule(layer, key, override=entry)
    return Rule(layer, key, policy=None if entry is None else entry_document(entry))
