"""The policies of all layers, and which of them count for a consumer of a subject."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sidecar.core.guard import OPEN, lets
from sidecar.core.model import ConsumerKey
from sidecar.core.policy import PolicyEntry, merged
from sidecar.core.rules import Effective, Guard


class Layers:
    """The file's and the bucket's policies, indexed once and never changed: another bucket is another value.

    What the guard does not let through is left out of the bucket, whoever took it in.
    """

    __slots__ = ("_layers",)

    def __init__(
        self, file: Sequence[PolicyEntry] = (), bucket: Sequence[PolicyEntry] = (), guard: Guard = OPEN
    ) -> None:
        allowed = [entry for entry in bucket if guard.allow_bucket and lets(entry.fields, guard)]
        self._layers = (("file", _Index(file)), ("bucket", _Index(allowed)))

    def effective(self, subject: str, key: ConsumerKey | None = None, own: PolicyEntry | None = None) -> Effective:
        """What is in force for a consumer of a watched subject; without one, for those that no entry singles out.

        In each layer the most specific pattern that covers the subject and whose `consumers` match counts, alone.
        `own` is what the consumer's metadata says, the strongest layer. Equal results are one object.
        """
        consumer = None if key is None else key.consumer
        found = [(layer, index.closest(subject, consumer)) for layer, index in self._layers]
        found.append(("consumer", own))
        return merged(tuple((layer, entry.fields) for layer, entry in found if entry is not None and entry.fields))


class _Node:
    """Where the patterns that begin alike go on, token by token, and those that end here."""

    __slots__ = ("after", "here")

    def __init__(self) -> None:
        self.after: dict[str, _Node] = {}
        self.here: list[PolicyEntry] = []


class _Index:
    """One layer. A look-up costs what the subject is long, however many patterns there are."""

    __slots__ = ("_literal", "_root")

    def __init__(self, entries: Iterable[PolicyEntry]) -> None:
        self._literal: dict[str, list[PolicyEntry]] = {}
        self._root = _Node()
        for entry in entries:
            for pattern in entry.subjects:
                self._at(pattern).append(entry)

    def closest(self, subject: str, consumer: str | None) -> PolicyEntry | None:
        covering = (entry for entries in self._covering(subject) for entry in entries)
        return next((entry for entry in covering if entry.applies(consumer)), None)

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
