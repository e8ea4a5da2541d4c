"""Policies in layers: parsed, validated, and merged into what is in force for one consumer of one subject."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Any, Final

from msgspec import Meta, Struct, to_builtins

from sidecar.core.document import Problem, Problems, join, read_given
from sidecar.core.patterns import covers, glob, glob_problem, globs_meet, pattern_problem, specificity
from sidecar.core.rules import Effective, MarkRule, Policy

LAYERS: Final = ("default", "file", "bucket", "consumer")
"""From the weakest to the strongest."""
MOST_POLICIES: Final = 10_000

Value = str | int | float | bool
Names = Annotated[tuple[str, ...], Meta(min_length=1, max_length=1000)]

_MARKS: Final = ("warn", "critical", "overload")
_LATER: Final = {
    "pending.overload_seconds": "marks that follow the drain rate",
    "pending.min": "marks that follow the drain rate",
    "pending.max": "marks that follow the drain rate",
    "inflight.overload_ratio": "a mark as a share of max_ack_pending",
    "admission.floor": "adaptive admission",
    "admission.target_drain_seconds": "adaptive admission",
    "alerts": "alerts by rule",
    "override": "overrides",
}
"""What policies may say by the contract and this version does not do: refused, since silence would be a lie."""
_OFF: Final[dict[str, object]] = {"alerts": []}
"""What of these amounts to not using them, where that is not null."""


class PolicyEntry(Struct, frozen=True):
    """One entry of one layer: where it applies, and the fields it gives (dotted field, value), the others inherited."""

    subjects: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ("*",)
    fields: tuple[tuple[str, Value], ...] = ()


Layers = Mapping[str, Sequence[PolicyEntry]]


class _Document(Policy, frozen=True, forbid_unknown_fields=True):
    """A policy as it is written down, with what it applies to."""

    subjects: Names = ()
    consumers: Names = ("*",)


def parse_entry(
    document: object, path: str = "", need_subjects: bool = True, found: Problems | None = None
) -> tuple[PolicyEntry | None, tuple[Problem, ...]]:
    """The entry, or None and everything that is wrong with it (added to `found`, where that is given)."""
    found = Problems() if found is None else found
    before = len(found)
    entry = _parse(document, path, need_subjects, found)
    return entry if len(found) == before else None, found.told()


def _parse(document: object, path: str, need_subjects: bool, found: Problems) -> PolicyEntry:
    """What is good of an entry, so that the rest of it can be checked even where a part is wrong."""
    given = read_given(_Document, _without_later(document, path, found), path, found)
    subjects, consumers = given.pop("subjects", ()), given.pop("consumers", ("*",))
    for i, pattern in enumerate(subjects):
        _add(found, f"{join(path, 'subjects')}[{i}]", pattern_problem(pattern))
    for i, name in enumerate(consumers):
        _add(found, f"{join(path, 'consumers')}[{i}]", glob_problem(name))
    if need_subjects and not (isinstance(document, Mapping) and "subjects" in document):
        found.add(join(path, "subjects"), "is missing: a list of subjects or patterns the policy applies to")
    fields = tuple(_flat(given))
    _check_order(dict(fields), path, found)
    return PolicyEntry(subjects, consumers, fields)


def parse_entries(value: object, path: str, found: Problems) -> tuple[PolicyEntry, ...]:
    """A layer straight over the default: each entry, what it inherits, and that no two claim the same."""
    if not isinstance(value, list | tuple):
        found.add(path, "must be a list of policies")
        return ()
    if len(value) > MOST_POLICIES:
        found.add(path, f"must have at most {MOST_POLICIES} entries, has {len(value)}")
        return ()
    entries: list[PolicyEntry] = []
    claims = _Claims()
    for i, document in enumerate(value):
        here = f"{path}[{i}]"
        entry = _parse(document, here, True, found)
        check_inherited(entry, {}, here, found)
        claims.claim(entry, here, found)
        entries.append(entry)
    return tuple(entries)


def validate_document(document: object) -> tuple[tuple[Problem, ...], dict[str, Any] | None]:
    """What is wrong with a policy laid over the default; what would be in force if nothing is."""
    found = Problems()
    entry = _parse(document, "", False, found)
    check_inherited(entry, {}, "", found)
    return found.told(), None if found else plain(over_default(entry).policy)


def check_inherited(entry: PolicyEntry, below: Layers, path: str, found: Problems) -> None:
    """A given warn or critical must not stand above the next higher mark it inherits: that one must be given too.

    (The other way round the inherited one gives way: see `effective`.)
    """
    given = dict(entry.fields)
    for subject in entry.subjects or (">",):
        inherited = plain(effective(below, subject).policy)
        for signal in _marked():
            for lower, upper in (("warn", "critical"), ("warn", "overload"), ("critical", "overload")):
                mine, theirs = given.get(f"{signal}.{lower}"), inherited[signal][upper]
                if mine is not None and f"{signal}.{upper}" not in given and _number(mine) > theirs:
                    text = f"must not be above {upper}, which is {theirs:,} by inheritance; give {upper} too"
                    found.add(join(path, f"{signal}.{lower}"), text)
                    break
        if not below:
            return  # what the default says is the same for every subject


def effective(layers: Layers, subject: str, consumer: str | None = None) -> Effective:
    """What is in force for a consumer of a watched subject; without a consumer, for those that no entry singles out.

    In each layer the most specific pattern that covers the subject and whose `consumers` match counts; its fields go
    over those of the layers below. Then a mark above the next higher one is lowered to it, so that warn <= critical <=
    overload always holds: overload alone moves the status, and nothing but a given overload moves overload. A lowered
    mark has the source of the one it was lowered to.
    """
    chosen = []
    for layer in LAYERS[1:]:
        entry = _closest(layers[layer], subject, consumer) if layer in layers else None
        if entry is not None:
            chosen.append((layer, entry.fields))
    return _merged(tuple(chosen))


def over_default(entry: PolicyEntry, layer: str = "file") -> Effective:
    """The entry alone, over the default."""
    return _merge([(layer, entry.fields)])


def plain(policy: Policy) -> dict[str, Any]:
    """A policy as it would be written down in full."""
    written: dict[str, Any] = to_builtins(policy)
    return written


def _closest(entries: Sequence[PolicyEntry], subject: str, consumer: str | None) -> PolicyEntry | None:
    best, best_key = None, None
    for entry in entries:
        for pattern in entry.subjects:
            if covers(pattern, subject):
                key = specificity(pattern)
                if (best_key is None or key < best_key) and _applies(entry.consumers, consumer):
                    best, best_key = entry, key
    return best


def _applies(consumers: Sequence[str], consumer: str | None) -> bool:
    if consumer is None:
        return any(name.strip("*") == "" for name in consumers)
    return any(name == "*" or glob(name, consumer) for name in consumers)


@lru_cache(maxsize=1024)
def _merged(chosen: tuple[tuple[str, tuple[tuple[str, Value], ...]], ...]) -> Effective:
    """Kept, because thousands of consumers share a few policies: each is then one object in memory."""
    return _merge(chosen)


def _merge(chosen: Iterable[tuple[str, tuple[tuple[str, Value], ...]]]) -> Effective:
    values: dict[str, Value] = dict(_flat(plain(Policy())))
    sources = dict.fromkeys(values, "default")
    for layer, fields in chosen:
        values.update(fields)
        sources.update((name, layer) for name, _ in fields)
    for signal in _marked():
        for lower, upper in (("critical", "overload"), ("warn", "critical")):
            low, high = f"{signal}.{lower}", f"{signal}.{upper}"
            if _number(values[low]) > _number(values[high]):
                values[low], sources[low] = values[high], sources[high]
    return Effective(_built(values), sources)


def _built(values: Mapping[str, Value]) -> Policy:
    groups: dict[str, Any] = {}
    for name, value in values.items():
        head, _, leaf = name.partition(".")
        if leaf:
            groups.setdefault(head, {})[leaf] = value
        else:
            groups[head] = value
    default = Policy()
    return Policy(**{k: type(getattr(default, k))(**v) if isinstance(v, dict) else v for k, v in groups.items()})


def _flat(given: Mapping[str, Any]) -> Iterable[tuple[str, Value]]:
    for name, value in given.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{leaf}", item) for leaf, item in value.items())
        else:
            yield name, value


@lru_cache(maxsize=1)
def _marked() -> tuple[str, ...]:
    """The fields that hold marks."""
    default = Policy()
    return tuple(name for name in Policy.__struct_fields__ if isinstance(getattr(default, name), MarkRule))


def _number(value: Value) -> float:
    assert not isinstance(value, str)
    return value


def _check_order(given: Mapping[str, Value], path: str, found: Problems) -> None:
    """warn <= critical <= overload among the marks given together."""
    for signal in _marked():
        marks = [(name, _number(given[f"{signal}.{name}"])) for name in _MARKS if f"{signal}.{name}" in given]
        for (lower, low), (upper, high) in pairwise(marks):
            if low > high:
                found.add(join(path, f"{signal}.{lower}"), f"must not be above {upper}, {low:,} is above {high:,}")


def _without_later(document: object, path: str, found: Problems) -> object:
    """The document without what this version does not do yet, which is said unless it amounts to "off"."""
    if not isinstance(document, Mapping):
        return document
    kept: dict[Any, Any] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in document.items()}
    for name, what in _LATER.items():
        head, _, leaf = name.partition(".")
        group, key = (kept.get(head), leaf) if leaf else (kept, head)
        if isinstance(group, dict) and key in group and group.pop(key) != _OFF.get(name):
            found.add(join(path, name), f"this version cannot do that yet ({what})")
    admission = kept.get("admission")
    if isinstance(admission, dict) and admission.get("mode") == "adaptive":
        del admission["mode"]
        found.add(join(path, "admission.mode"), "this version cannot do that yet (adaptive admission); use binary")
    return kept


def _add(found: Problems, path: str, message: str | None) -> None:
    if message is not None:
        found.add(path, message)


class _Claims:
    """Which pattern is claimed for which consumers in one layer."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, str]] = {}
        self._globs: dict[str, list[tuple[str, str]]] = {}

    def claim(self, entry: PolicyEntry, path: str, found: Problems) -> None:
        for i, pattern in enumerate(entry.subjects):
            taken = next((t for t in (self._taken(pattern, c) for c in entry.consumers) if t), None)
            if pattern in entry.subjects[:i] or taken:
                where = f"{path}.subjects[{i}]"
                found.add(where, f"the same pattern stands in {taken or path}, for consumers that overlap")
        for pattern in entry.subjects:
            for consumer in entry.consumers:
                if "*" in consumer:
                    self._globs.setdefault(pattern, []).append((consumer, path))
                else:
                    self._names.setdefault(pattern, {})[consumer] = path

    def _taken(self, pattern: str, consumer: str) -> str | None:
        """The path of an earlier entry that claims the pattern for some of the same consumers."""
        names, globs = self._names.get(pattern, {}), self._globs.get(pattern, ())
        if "*" not in consumer:
            return names.get(consumer) or next((p for other, p in globs if glob(other, consumer)), None)
        by_name = next((p for name, p in names.items() if glob(consumer, name)), None)
        return by_name or next((p for other, p in globs if globs_meet(other, consumer)), None)
