"""Writes and reads the policies in a recording: a line for each entry that changed, then one that puts all in force.

The metadata of a consumer is in its `consumer` line.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

from nats_backpressure.core.watch_filter import WatchEntry
from nats_backpressure.policy.parse import OverrideEntry, entry_document, parse_entry
from nats_backpressure.policy.precedence import LayerEntry, Sources
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.recording.format import BadLine, Line, PoliciesLine, PolicyLine, UnreadableRecording

ENTRIES_LIMIT: Final = 50_000
"""Most entries of all layers that a reader holds: more than file and bucket may have together."""


class RecordedSettings(Struct, frozen=True):
    """The settings besides policies that an evaluation depends on: what is watched, and the freshness limits."""

    watch: tuple[WatchEntry, ...] = (WatchEntry("*"),)
    stale_after: float = 10.0
    unknown_after: float = 30.0


class PoliciesDecoded(Struct, frozen=True):
    """These policies were in force from this moment on."""

    at: Now
    name: str
    """Name of the installation."""
    sources: Sources
    scope: RecordedSettings


class PolicyLineWriter:
    """One for each file, so that each file can be read alone."""

    def __init__(self, scope: RecordedSettings) -> None:
        self._scope = scope
        self._written: dict[tuple[str, str], LayerEntry] = {}
        self._last_line: PoliciesLine | None = None

    def lines(self, sources: Sources, now: Now) -> list[Line]:
        """The lines for what changed since the last call; none if nothing did."""
        entries: dict[tuple[str, str], LayerEntry] = {("file", str(n)): entry for n, entry in enumerate(sources.file)}
        entries |= {("bucket", key): entry for key, entry in sources.bucket.items()}
        changed: list[Line] = [_policy_line(*key, None) for key in self._written if key not in entries]
        changed += [_policy_line(*key, entry) for key, entry in entries.items() if self._written.get(key) != entry]
        at, scope = (round(now.mono, 3), round(now.wall, 3)), self._scope
        line = PoliciesLine(
            at, sources.guard, sources.trust_metadata, scope.watch, scope.stale_after, scope.unknown_after
        )
        same = self._last_line is not None and msgspec.structs.replace(line, at=self._last_line.at) == self._last_line
        if not changed and same:
            return []
        self._written, self._last_line = entries, line
        return [*changed, line]


class PolicyLineReader:
    """Reads one part of a recording. Raises UnreadableRecording for more than ENTRIES_LIMIT entries."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], LayerEntry] = {}

    def decode(self, line: PolicyLine) -> BadLine | None:
        key = (line.layer, line.key)
        self._entries.pop(key, None)
        if line.override is not None:
            self._entries[key] = line.override
        elif line.policy is not None:
            entry, problems = parse_entry(line.policy)
            if entry is None:
                return BadLine(f"the policy is not valid: {problems[0].line}"[:200])
            self._entries[key] = entry
        if len(self._entries) > ENTRIES_LIMIT:
            raise UnreadableRecording(f"more than {ENTRIES_LIMIT:,} policies at a time")
        return None

    def finish(self, line: PoliciesLine, at: Now, name: str) -> PoliciesDecoded:
        bucket = {key: entry for (layer, key), entry in self._entries.items() if layer == "bucket"}
        numbers = sorted((key for layer, key in self._entries if layer == "file"), key=lambda key: (len(key), key))
        policies = [self._entries["file", number] for number in numbers]
        file = tuple(entry for entry in policies if not isinstance(entry, OverrideEntry))
        scope = RecordedSettings(line.watch, line.stale_after, line.unknown_after)
        return PoliciesDecoded(at, name, Sources(file, bucket, line.guard, line.trust_metadata), scope)


def _policy_line(layer: Any, key: str, entry: LayerEntry | None) -> PolicyLine:
    if isinstance(entry, OverrideEntry):
        return PolicyLine(layer, key, override=entry)
    return PolicyLine(layer, key, policy=None if entry is None else entry_document(entry))
