"""Policies: parsed and validated as entries of a layer, and merged, field by field, into what is in force."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Any, Final, cast

from msgspec import Meta, Struct, to_builtins

from nats_backpressure.policy.conflicts import PatternClaims
from nats_backpressure.policy.schema import AlertRule, Effective, MarkRule, Override, Policy, in_force
from nats_backpressure.policy.validation import Problem, Problems, join_path, read_partial
from nats_backpressure.protocol import timestamps
from nats_backpressure.protocol.patterns import glob, glob_problem, pattern_problem
from nats_backpressure.protocol.timestamps import Now

MOST_POLICIES: Final = 10_000
"""Entries of one layer; a file with more is refused."""

Value = str | int | float | bool | tuple[Any, ...] | None
"""What a field of a policy can be; a tuple holds alerts or overrides (msgspec lets a union have one kind of tuple)."""
Names = Annotated[tuple[str, ...], Meta(min_length=1, max_length=1000)]

_MARKS: Final = ("warn", "critical", "overload")
_DEFAULT: Final = Policy()
_GROUPS: Final[dict[str, type[Struct]]] = {
    name: type(value) for name in Policy.__struct_fields__ if isinstance(value := getattr(_DEFAULT, name), Struct)
}
"""The fields that are merged member by member; every other one is replaced whole."""
_MARKED: Final = tuple(name for name, kind in _GROUPS.items() if issubclass(kind, MarkRule))
_FOLLOWING: Final = {
    "pending": ("pending.overload_seconds", "pending.min", "pending.max"),
    "inflight": ("inflight.overload_ratio",),
}
"""What makes an overload mark follow something measured."""


class PolicyEntry(Struct, frozen=True):
    """One entry of one layer: where it applies, and the fields it gives (dotted field, value), the others inherited."""

    subjects: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ("*",)
    fields: tuple[tuple[str, Value], ...] = ()

    def applies(self, consumer: str | None) -> bool:
        """Whether the entry is for this consumer; for None, whether it singles no consumer out."""
        if consumer is None:
            return any(name.strip("*") == "" for name in self.consumers)
        return any(name == "*" or glob(name, consumer) for name in self.consumers)


class OverrideEntry(Struct, frozen=True):
    """An operator's word for what a pattern covers."""

    pattern: str
    override: Override


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
    return entry if len(found) == before else None, found.listed()


def _parse(document: object, path: str, need_subjects: bool, found: Problems) -> PolicyEntry:
    """What is good of an entry, so that the rest of it can be checked even where a part is wrong."""
    given = read_partial(_Document, _without_override(document, path, found), path, found)
    subjects, consumers = given.pop("subjects", ()), given.pop("consumers", ("*",))
    for i, pattern in enumerate(subjects):
        _add(found, f"{join_path(path, 'subjects')}[{i}]", pattern_problem(pattern))
    for i, name in enumerate(consumers):
        _add(found, f"{join_path(path, 'consumers')}[{i}]", glob_problem(name))
    if need_subjects and not (isinstance(document, Mapping) and "subjects" in document):
        found.add(join_path(path, "subjects"), "is missing: a list of subjects or patterns the policy applies to")
    fields = tuple(flat_fields(given))
    check_together(dict(fields), path, found)
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
    claims = PatternClaims()
    for i, document in enumerate(value):
        here = f"{path}[{i}]"
        entry = _parse(document, here, True, found)
        check_inherited(entry, _DEFAULT, here, found)
        claims.add(entry.subjects, entry.consumers, here, found)
        entries.append(entry)
    return tuple(entries)


def validate_document(document: object) -> tuple[tuple[Problem, ...], dict[str, Any] | None]:
    """What is wrong with a policy laid over the default; what would be in force if nothing is."""
    found = Problems()
    entry = _parse(document, "", False, found)
    check_inherited(entry, _DEFAULT, "", found)
    return found.listed(), None if found else policy_document(over_default(entry).policy)


def check_together(given: Mapping[str, Value], path: str, found: Problems) -> None:
    """What the fields given in one place must be to each other."""
    for signal in _MARKED:
        marks = [(name, _number(given[f"{signal}.{name}"])) for name in _MARKS if f"{signal}.{name}" in given]
        for (lower, low), (upper, high) in pairwise(marks):
            if low > high:
                found.add(join_path(path, f"{signal}.{lower}"), f"must not be above {upper}, {low:,} is above {high:,}")
    seconds, least, most = (given.get(name) for name in _FOLLOWING["pending"])
    if seconds is None and not found.has_path(join_path(path, "pending.overload_seconds")):
        for name, bound in (("min", least), ("max", most)):
            if bound is not None:
                found.add(join_path(path, f"pending.{name}"), "may be given only together with overload_seconds")
    if least is not None and most is not None and _number(least) > _number(most):
        found.add(join_path(path, "pending.min"), f"must not be above max, {least:,} is above {most:,}")
    names = [rule.name for rule in cast(tuple[AlertRule, ...], given.get("alerts", ()))]
    for i, name in enumerate(names):
        if name in names[:i]:
            found.add(f"{join_path(path, 'alerts')}[{i}].name", "stands twice: the names of alerts must differ")


def check_inherited(entry: PolicyEntry, inherited: Policy, path: str, found: Problems) -> None:
    """A given warn or critical must not stand above the next higher mark it inherits: that one must be given too.

    (The other way round the inherited one gives way: see `merge_layers`.)
    """
    given = dict(entry.fields)
    for signal in _MARKED:
        for lower, upper in (("warn", "critical"), ("warn", "overload"), ("critical", "overload")):
            mine, theirs = given.get(f"{signal}.{lower}"), getattr(getattr(inherited, signal), upper)
            if mine is not None and f"{signal}.{upper}" not in given and _number(mine) > theirs:
                text = f"must not be above {upper}, which is {theirs:,} by inheritance; give {upper} too"
                found.add(join_path(path, f"{signal}.{lower}"), text)
                break


@lru_cache(maxsize=4096)
def merge_layers(chosen: tuple[tuple[str, tuple[tuple[str, Value], ...]], ...]) -> Effective:
    """The fields of each (layer, fields) over those of the layers before it, the first over the default.

    Then a mark above the next higher one is lowered to it, so that warn <= critical <= overload always holds: overload
    alone moves the status, and nothing but a given overload moves overload. A lowered mark has the source of the one
    it was lowered to. Kept, because thousands of consumers share a few policies: each is then one object in memory.
    """
    values = dict(flat_fields({name: getattr(_DEFAULT, name) for name in Policy.__struct_fields__}))
    sources = dict.fromkeys(values, "default")
    for layer, fields in chosen:
        given = _whole(dict(fields), values)
        values.update(given)
        sources.update(dict.fromkeys(given, layer))
    for signal in _MARKED:
        for lower, upper in (("critical", "overload"), ("warn", "critical")):
            low, high = f"{signal}.{lower}", f"{signal}.{upper}"
            if _number(values[low]) > _number(values[high]):
                values[low], sources[low] = values[high], sources[high]
    return Effective(_built(values), sources)


def over_default(entry: PolicyEntry, layer: str = "file") -> Effective:
    """The entry alone, over the default."""
    return merge_layers(((layer, entry.fields),))


def entry_document(entry: PolicyEntry) -> dict[str, Any]:
    """An entry as people would write it down: `parse_entry` makes the same entry of it."""
    written: dict[str, Any] = {"subjects": list(entry.subjects), "consumers": list(entry.consumers)}
    for name, value in entry.fields:
        head, _, leaf = name.partition(".")
        if leaf:
            written.setdefault(head, {})[leaf] = value
        else:
            written[head] = _alerts(value) if isinstance(value, tuple) else value
    return written


def policy_document(policy: Policy, now: Now | None = None) -> dict[str, Any]:
    """A policy as people would write it down in full, with the override that is in force `now`."""
    written: dict[str, Any] = to_builtins(policy)
    written["alerts"] = _alerts(policy.alerts)
    override = in_force(policy, now) if now is not None else None
    written["override"] = override and {"action": override.action, "until": timestamps.format_rfc3339(override.until)}
    return written


def _alerts(rules: tuple[AlertRule, ...]) -> list[dict[str, Any]]:
    written: list[dict[str, Any]] = [to_builtins(rule) for rule in rules]
    for alert in written:
        alert["when"] = {name: value for name, value in alert["when"].items() if value is not None}
    return written


def flat_fields(given: Mapping[str, Any]) -> Iterable[tuple[str, Value]]:
    """Fields of a policy, the members of its groups by dotted name."""
    for name, value in given.items():
        if name in _GROUPS:
            members = (
                value if isinstance(value, dict) else {leaf: getattr(value, leaf) for leaf in value.__struct_fields__}
            )
            yield from ((f"{name}.{leaf}", item) for leaf, item in members.items())
        else:
            yield name, value


def _whole(given: dict[str, Value], inherited: Mapping[str, Value]) -> dict[str, Value]:
    """How an overload mark comes about is said by one layer: what gives `overload` or `overload_seconds` (or the ratio)
    leaves nothing of what it inherits of the other and of its bounds. A bare `overload_seconds` inherits `overload`,
    which holds until the rate is known."""
    for signal, names in _FOLLOWING.items():
        if f"{signal}.overload" in given or names[0] in given:
            given = {name: None for name in names if inherited[name] is not None} | given
    return given


def _built(values: Mapping[str, Value]) -> Policy:
    groups: dict[str, dict[str, Value]] = {name: {} for name in _GROUPS}
    whole: dict[str, Any] = {}
    for name, value in values.items():
        head, _, leaf = name.partition(".")
        (groups[head] if leaf else whole)[leaf or head] = value
    whole |= {name: _GROUPS[name](**members) for name, members in groups.items()}
    return Policy(**whole)


def _number(value: Value) -> float:
    assert isinstance(value, int | float)
    return value


def _without_override(document: object, path: str, found: Problems) -> object:
    """An override is no field of a policy: one in there would not reach what another policy governs. `null`, as an
    effective policy shows it, is none."""
    if not isinstance(document, Mapping) or "override" not in document:
        return document
    if document["override"] is not None:
        found.add(
            join_path(path, "override"),
            "has no place in a policy; an override is a key of its own in the policy bucket, `=override.<encoded "
            "subject or pattern>`: run `nats-backpressure override SUBJECT open|reject --for 10m`",
        )
    return {name: value for name, value in document.items() if name != "override"}


def _add(found: Problems, path: str, message: str | None) -> None:
    if message is not None:
        found.add(path, message)
