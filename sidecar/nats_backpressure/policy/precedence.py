"""The policies of all layers, and which of them count for a consumer of a subject."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

from msgspec import Struct

from nats_backpressure.policy.guard import NO_GUARD, guard_allows, override_violations
from nats_backpressure.policy.parse import OverrideEntry, PolicyEntry, merge_layers
from nats_backpressure.policy.schema import Effective, Guard, Override
from nats_backpressure.protocol.patterns import PatternIndex
from nats_backpressure.protocol.values import ConsumerKey

LayerEntry = PolicyEntry | OverrideEntry
MOST_MERGED: Final = 4096
"""Resulting policies that one Layers remembers: thousands of consumers share a few, each one object in memory."""


class Sources(Struct, frozen=True):
    """What the layers are made of: of every key of the bucket the last good value."""

    file: tuple[PolicyEntry, ...] = ()
    bucket: dict[str, LayerEntry] = {}
    """By key. Treated as frozen."""
    guard: Guard = NO_GUARD
    trust_metadata: bool = False


class Layers:
    """The file's and the bucket's policies and the overrides above them, indexed once and never changed: a changed
    bucket gives a new object.

    Bucket entries that break the guard are ignored, even if they were accepted earlier.
    """

    __slots__ = ("_layers", "_merged", "_overrides")

    def __init__(
        self,
        file: Sequence[PolicyEntry] = (),
        bucket: Sequence[PolicyEntry] = (),
        guard: Guard = NO_GUARD,
        overrides: Sequence[OverrideEntry] = (),
    ) -> None:
        allowed = [entry for entry in bucket if is_allowed(entry, guard)]
        self._layers = (("file", index_entries(file)), ("bucket", index_entries(allowed)))
        # Of these layers alone: what a policy that was replaced resulted in is not kept.
        self._merged = lru_cache(maxsize=MOST_MERGED)(merge_layers)
        self._overrides = PatternIndex(
            (entry.pattern, entry.override) for entry in overrides if is_allowed(entry, guard)
        )

    def effective(self, subject: str, key: ConsumerKey | None = None, own: PolicyEntry | None = None) -> Effective:
        """What is in force for a consumer of a watched subject; without one, for those that no entry singles out.

        In each layer the most specific pattern that covers the subject and whose `consumers` match counts, alone.
        `own` is the metadata policy, the highest layer. Overrides replace all layers: every one that covers the subject
        and can ever be in force there. Equal results are one object.
        """
        consumer = None if key is None else key.consumer
        entries = [(layer, most_specific(index, subject, consumer)) for layer, index in self._layers]
        entries.append(("consumer", own))
        chosen = [(layer, entry.fields) for layer, entry in entries if entry is not None and entry.fields]
        if overrides := self._active_overrides(subject):
            chosen.append(("bucket", (("override", overrides),)))
        return self._merged(tuple(chosen))

    def _active_overrides(self, subject: str) -> tuple[Override, ...]:
        """The most specific one first. One that ends no later than a more specific one is never in force."""
        active: list[Override] = []
        for override in self._overrides.covering(subject):
            if not active or override.until > active[-1].until:
                active.append(override)
        return tuple(active)


def is_allowed(entry: LayerEntry, guard: Guard) -> bool:
    """Whether an entry of the bucket breaks no rule of the guard."""
    if not guard.allow_bucket:
        return False
    if isinstance(entry, OverrideEntry):
        return next(override_violations(entry, guard), None) is None
    return guard_allows(entry.fields, guard)


def index_entries(entries: Iterable[PolicyEntry]) -> PatternIndex[PolicyEntry]:
    return PatternIndex((pattern, entry) for entry in entries for pattern in entry.subjects)


def most_specific(index: PatternIndex[PolicyEntry], subject: str, consumer: str | None) -> PolicyEntry | None:
    """The entry of the most specific pattern that covers the subject and whose `consumers` match."""
    return next((entry for entry in index.covering(subject) if entry.applies(consumer)), None)
