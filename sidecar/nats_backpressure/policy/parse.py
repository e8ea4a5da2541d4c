"""Parses and validates policies as entries of a layer, and merges the layers, field by field, into one policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Annotated, Any, Final, cast

from msgspec import Meta, Struct, to_builtins

from nats_backpressure.policy.conflicts import PatternClaims
from nats_backpressure.policy.schema import AlertRule, Effective, MarkRule, Override, Policy, in_force
from nats_backpressure.policy.validation import FieldProblem, Problems, join_path, read_partial
from nats_backpressure.protocol import timestamps
from nats_backpressure.protocol.patterns import glob, glob_problem, pattern_problem
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import PolicySource

MOST_POLICIES: Final = 10_000
"""Entries of one layer; a file with more is refused."""

Value = str | int | float | bool | tuple[Any, ...] | None
"""The value of a policy field; a tuple holds alerts or overrides (msgspec allows one kind of tuple per union)."""
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
"""Fields that make an overload mark follow a measured value."""


class PolicyEntry(Struct, frozen=True):
    """One entry of a layer: where it applies, and the fields it sets (dotted field, value). Others are inherited."""

    subjects: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ("*",)
    fields: tuple[tuple[str, Value], ...] = ()

    def applies(self, consumer: str | None) -> bool:
        """Whether the entry is for this consumer; for None, whether it is for all consumers."""
        if consumer is None:
            return any(name.strip("*") == "" for name in self.consumers)
        return any(name == "*" or glob(name, consumer) for name in self.consumers)


class OverrideEntry(Struct, frozen=True):
    """An override for the subjects that a pattern covers."""

    pattern: str
    override: Override
    seconds: float = 0.0
    """From the time it was stored to its end."""


class _Document(Policy, frozen=True, forbid_unknown_fields=True):
    """A policy as people write it, with what it applies to."""

    subjects: Names = ()
    consumers: Names = ("*",)


def parse_entry(
    document: object, path: str = "", need_subjects: bool = True, problems: Problems | None = None
) -> tuple[PolicyEntry | None, tuple[FieldProblem, ...]]:
    """The entry, or None and all problems with it (added to `problems`, where that is given)."""
    problems = Problems() if problems is None else problems
    before = len(problems)
    entry = _parse(document, path, need_subjects, problems)
    return entry if len(problems) == before else None, problems.listed()


def _parse(document: object, path: str, need_subjects: bool, problems: Problems) -> PolicyEntry:
    """The valid part of an entry, so that the rest can be checked even where a part is wrong."""
    given = read_partial(_Document, _without_override(document, path, problems), path, problems)
    subjects, consumers = given.pop("subjects", ()), given.pop("consumers", ("*",))
    for i, pattern in enumerate(subjects):
        _add(problems, f"{join_path(path, 'subjects')}[{i}]", pattern_problem(pattern))
    for i, name in enumerate(consumers):
        _add(problems, f"{join_path(path, 'consumers')}[{i}]", glob_problem(name))
    if need_subjects and not (isinstance(document, Mapping) and "subjects" in document):
        problems.add(join_path(path, "subjects"), "is missing: a list of subjects or patterns the policy applies to")
    fields = tuple(flat_fields(given))
    check_together(dict(fields), path, problems)
    return PolicyEntry(subjects, consumers, fields)


def parse_entries(value: object, path: str, problems: Problems) -> tuple[PolicyEntry, ...]:
    """The entries of the layer above the default, each checked with what it inherits, and for conflicts."""
    if not isinstance(value, list | tuple):
        problems.add(path, "must be a list of policies")
        return ()
    if len(value) > MOST_POLICIES:
        problems.add(path, f"must have at most {MOST_POLICIES} entries, has {len(value)}")
        return ()
    entries: list[PolicyEntry] = []
    claims = PatternClaims()
    for i, document in enumerate(value):
        here = f"{path}[{i}]"
        entry = _parse(document, here, True, problems)
        check_inherited(entry, _DEFAULT, here, problems)
        claims.add(entry.subjects, entry.consumers, here, problems)
        entries.append(entry)
    return tuple(entries)


def validate_document(document: object) -> tuple[tuple[FieldProblem, ...], dict[str, Any] | None]:
    """The problems of a policy above the default, and the policy that results where there are none."""
    problems = Problems()
    entry = _parse(document, "", False, problems)
    check_inherited(entry, _DEFAULT, "", problems)
    return problems.listed(), None if problems else policy_document(over_default(entry).policy)


def check_together(given: Mapping[str, Value], path: str, problems: Problems) -> None:
    """Check the fields that one entry sets against each other."""
    for signal in _MARKED:
        marks = [(name, _number(given[f"{signal}.{name}"])) for name in _MARKS if f"{signal}.{name}" in given]
        for (lower, low), (upper, high) in pairwise(marks):
            if low > high:
                problems.add(
                    join_path(path, f"{signal}.{lower}"), f"must not be above {upper}, {low:,} is above {high:,}"
                )
    seconds, least, most = (given.get(name) for name in _FOLLOWING["pending"])
    if seconds is None and not problems.has_path(join_path(path, "pending.overload_seconds")):
        for name, bound in (("min", least), ("max", most)):
            if bound is not None:
                problems.add(join_path(path, f"pending.{name}"), "may be given only together with overload_seconds")
    if least is not None and most is not None and _number(least) > _number(most):
        problems.add(join_path(path, "pending.min"), f"must not be above max, {least:,} is above {most:,}")
    names = [rule.name for rule in cast(tuple[AlertRule, ...], given.get("alerts", ()))]
    for i, name in enumerate(names):
        if name in names[:i]:
            problems.add(f"{join_path(path, 'alerts')}[{i}].name", "is the name of two alerts: give each its own name")


def check_inherited(entry: PolicyEntry, inherited: Policy, path: str, problems: Problems) -> None:
    """Check that no mark of the entry is above the next higher mark that it inherits: it must set that one too.

    (An inherited mark above one that the entry sets is lowered instead: see `merge_layers`.)
    """
    given = dict(entry.fields)
    for signal in _MARKED:
        for lower, upper in (("warn", "critical"), ("warn", "overload"), ("critical", "overload")):
            own, higher = given.get(f"{signal}.{lower}"), getattr(getattr(inherited, signal), upper)
            if own is not None and f"{signal}.{upper}" not in given and _number(own) > higher:
                text = f"must not be above {upper}, which is {higher:,} (inherited); set {upper} too"
                problems.add(join_path(path, f"{signal}.{lower}"), text)
                break


def merge_layers(chosen: tuple[tuple[str, tuple[tuple[str, Value], ...]], ...]) -> Effective:
    """Merge (layer, fields) pairs over the default: the fields of each replace those of the pairs before it.

    Then a mark above the next higher one is lowered to it, so that warn <= critical <= overload always holds: overload
    alone moves the status, and only a layer that sets overload moves overload. A lowered mark gets the source of the
    mark it was lowered to.
    """
    values = dict(flat_fields({name: getattr(_DEFAULT, name) for name in Policy.__struct_fields__}))
    sources: dict[str, PolicySource] = dict.fromkeys(values, "default")
    for layer, fields in chosen:
        given = _whole(dict(fields), values)
        values.update(given)
        sources.update(dict.fromkeys(given, cast(PolicySource, layer)))
    for signal in _MARKED:
        for lower, upper in (("critical", "overload"), ("warn", "critical")):
            low, high = f"{signal}.{lower}", f"{signal}.{upper}"
            if _number(values[low]) > _number(values[high]):
                values[low], sources[low] = values[high], sources[high]
    return Effective(_built(values), sources)


def over_default(entry: PolicyEntry, layer: str = "file") -> Effective:
    """The policy of one entry above the default."""
    return merge_layers(((layer, entry.fields),))


def entry_document(entry: PolicyEntry) -> dict[str, Any]:
    """An entry as people write it: `parse_entry` returns the same entry for it."""
    document: dict[str, Any] = {"subjects": list(entry.subjects), "consumers": list(entry.consumers)}
    for name, value in entry.fields:
        head, _, leaf = name.partition(".")
        if leaf:
            document.setdefault(head, {})[leaf] = value
        else:
            document[head] = alert_documents(value) if isinstance(value, tuple) else value
    return document


def policy_document(policy: Policy, now: Now | None = None) -> dict[str, Any]:
    """A whole policy as people write it, with the override that is in force `now`."""
    document: dict[str, Any] = to_builtins(policy)
    document["alerts"] = alert_documents(policy.alerts)
    override = in_force(policy, now) if now is not None else None
    document["override"] = override and {"action": override.action, "until": timestamps.format_rfc3339(override.until)}
    return document


def alert_documents(rules: tuple[AlertRule, ...]) -> list[dict[str, Any]]:
    """Alerts as people write them."""
    document: list[dict[str, Any]] = [to_builtins(rule) for rule in rules]
    for alert in document:
        alert["when"] = {name: value for name, value in alert["when"].items() if value is not None}
    return document


def flat_fields(given: Mapping[str, Any]) -> Iterable[tuple[str, Value]]:
    """The fields of a policy; fields of its groups by dotted name."""
    for name, value in given.items():
        if name in _GROUPS:
            members = (
                value if isinstance(value, dict) else {leaf: getattr(value, leaf) for leaf in value.__struct_fields__}
            )
            yield from ((f"{name}.{leaf}", item) for leaf, item in members.items())
        else:
            yield name, value


def _whole(given: dict[str, Value], inherited: Mapping[str, Value]) -> dict[str, Value]:
    """The fields of a layer, completed where it decides an overload mark: one layer alone decides it. A layer that sets
    `overload`, `overload_seconds` or the ratio therefore resets what it inherits of the other fields and of the bounds.
    A layer with `overload_seconds` alone still inherits `overload`, which holds until the rate is known."""
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


def _without_override(document: object, path: str, problems: Problems) -> object:
    """The document without `override`, which is a problem unless it is `null` (as an effective policy shows it): an
    override in a policy would not reach subjects that another policy governs."""
    if not isinstance(document, Mapping) or "override" not in document:
        return document
    if document["override"] is not None:
        problems.add(
            join_path(path, "override"),
            "must not be in a policy. An override has its own key in the policy bucket, `=override.<encoded "
            "subject or pattern>`: run `nats-backpressure override SUBJECT open|reject --for 10m`",
        )
    return {name: value for name, value in document.items() if name != "override"}


def _add(problems: Problems, path: str, message: str | None) -> None:
    if message is not None:
        problems.add(path, message)
