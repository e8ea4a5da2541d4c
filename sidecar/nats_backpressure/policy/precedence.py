"""The policies of all layers, and which of them count for a consumer of a subject."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

from msgspec import Struct

from nats_backpressure.policy.guard import NO_GUARD, guard_allows
from nats_backpressure.policy.parse import OverrideEntry, PolicyEntry, merge_layers
from nats_backpressure.policy.schema import Effective, Guard, Override
from nats_backpressure.protocol.values import ConsumerKey

LayerEntry = PolicyEntry | OverrideEntry


class Sources(Struct, frozen=True):
    """What the layers are made of: of every key of the bucket the last good value."""

    file: tuple[PolicyEntry, ...] = ()
    bucket: dict[str, LayerEntry] = {}
    """By key. Treated as frozen."""
    guard: Guard = NO_GUARD
    trust_metadata: bool = False


class Layers:
    """The file's and the bucket's policies and the overrides above them, indexed once and never changed: another
    bucket is another value.

    What the guard does not let through is left out of the bucket, whoever took it in.
    """

    __slots__ = ("_layers", "_overrides")

    def __init__(
        self,
        file: Sequence[PolicyEntry] = (),
        bucket: Sequence[PolicyEntry] = (),
        guard: Guard = NO_GUARD,
        overrides: Sequence[OverrideEntry] = (),
    ) -> None:
        allowed = [entry for entry in bucket if guard.allow_bucket and guard_allows(entry.fields, guard)]
        self._layers = (("file", PatternIndex(file)), ("bucket", PatternIndex(allowed)))
        self._overrides = PatternIndex(
            [PolicyEntry((one.pattern,), fields=(("override", (one.override,)),)) for one in overrides]
            if guard.allow_bucket
            else ()
        )

    def effective(self, subject: str, key: ConsumerKey | None = None, own: PolicyEntry | None = None) -> Effective:
        """What is in force for a consumer of a watched subject; without one, for those that no entry singles out.

        In each layer the most specific pattern that covers the subject and whose `consumers` match counts, alone.
        `own` is what the consumer's metadata says, the strongest of them. The overrides stand above all: every one
        that covers the subject and can ever be in force there. Equal results are one object.
        """
        consumer = None if key is None else key.consumer
        found = [(layer, index.most_specific(subject, consumer)) for layer, index in self._layers]
        found.append(("consumer", own))
        chosen = [(layer, entry.fields) for layer, entry in found if entry is not None and entry.fields]
        if standing := self._standing(subject):
            chosen.append(("bucket", (("override", standing),)))
        return merge_layers(tuple(chosen))

    def _standing(self, subject: str) -> tuple[Override, ...]:
        """The most specific one first. One that ends no later than a more specific one is never in force."""
        found: list[Override] = []
        for entry in self._overrides.covering(subject):
            (one,) = cast(tuple[Override], entry.fields[0][1])
            if not found or one.until > found[-1].until:
                found.append(one)
        return tuple(found)


class _Node:
    """Where the patterns that begin alike go on, token by token, and those that end here."""

    __slots__ = ("after", "here")

    def __init__(self) -> None:
        self.after: dict[str, _Node] = {}
        self.here: list[PolicyEntry] = []


class PatternIndex:
    """One layer. A look-up costs what the subject is long, however many patterns there are."""

    __slots__ = ("_literal", "_root")

    def __init__(self, entries: Iterable[PolicyEntry]) -> None:
        self._literal: dict[str, list[PolicyEntry]] = {}
        self._root = _Node()
        for entry in entries:
            for pattern in entry.subjects:
                self._at(pattern).append(entry)

    def most_specific(self, subject: str, consumer: str | None) -> PolicyEntry | None:
        return next((entry for entry in self.covering(subject) if entry.applies(consumer)), None)

    def covering(self, subject: str) -> Iterator[PolicyEntry]:
        """The entries of every pattern that covers the subject, the most specific pattern first."""
        return (entry for entries in self._covering(subject) for entry in entries)

    def _at(self, pattern: str) -> list[PolicyEntry]:
        tokens = pattern.split(".")
        if "*" not in tokens and tokens[-1] != ">":
            return self._literal.setdefault(pattern, [])
        node = self._root
        for token in tokens:
            node = node.after.setdefault(token, _Node())
        return node.here

    def _covering(self, subject: str) -> Iterator[list[PolicyEntry]]:
        """The entries of every pattern that covers the subject (itself maybe one), the most specific pattern first:
        at each token what names it, then `*`, then `>`."""
        yield self._literal.get(subject, [])
        tokens = subject.split(".")
        end = len(tokens)
        ahead = [(self._root, 0)]
        while ahead:
            node, i = ahead.pop()
            if i == end:
                yield node.here
                continue
            # Last in, first out. `>` is covered by `>` alone.
            names = (">",) if tokens[i] == ">" else (">", "*") if tokens[i] == "*" else (">", "*", tokens[i])
            ahead.extend((node.after[name], end if name == ">" else i + 1) for name in names if name in node.after)
