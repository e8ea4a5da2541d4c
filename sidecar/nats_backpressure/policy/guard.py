"""Checks policies and overrides from outside the settings file against the limits (Guard) that the file sets.

Not everyone who may write the bucket, or create a consumer, wrote the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from msgspec import Struct

from nats_backpressure.policy.parse import OverrideEntry, flat_fields
from nats_backpressure.policy.schema import Guard, Policy
from nats_backpressure.policy.validation import Problems, join_path

NO_GUARD: Final = Guard()
"""Allows everything."""
CLOCKS_APART: Final = 3600.0
"""Seconds by which the clock of who writes an override may be ahead of the server's."""
CLOCKS_APART_SHARE: Final = 0.1
"""Of a shorter limit: an hour beyond one of a minute would be another limit."""
POLICY_FIELDS: Final = {
    name: value
    for name, value in flat_fields({name: getattr(Policy(), name) for name in Policy.__struct_fields__})
    if name != "override"
}
"""Every field of a policy, by its dotted name, with its default."""
WITHOUT_DEFAULT: Final = ("pending.overload_seconds", "pending.min", "pending.max", "inflight.overload_ratio")
"""Fields with a number of which the default is null."""
NUMBERS: Final = tuple(
    name
    for name, value in POLICY_FIELDS.items()
    if name in WITHOUT_DEFAULT or (isinstance(value, int | float) and not isinstance(value, bool))
)
"""The fields that `limits` can bound. All others can be `fixed`."""


class _Bound(Struct, frozen=True):
    """Bounds of a field, and the settings that they come from."""

    field: str
    least: float | None
    most: float | None
    settings: tuple[str, str] = ("limits", "limits")


def guard_violations(given: Mapping[str, object], guard: Guard) -> Iterator[tuple[str, str]]:
    """The fields that break the guard, each with its rule. What is inherited from the file is not checked."""
    for name in given:
        if setting := next((each for each in guard.fixed if name == each or name.startswith(f"{each}.")), None):
            yield name, f"must not be set here: policy_guard.fixed has `{setting}`"
    bounds = [_Bound(limit.field, limit.min, limit.max) for limit in guard.limits]
    settings = ("min_pending_overload", "max_pending_overload")
    bounds.append(_Bound("pending.overload", guard.min_pending_overload, guard.max_pending_overload, settings))
    for bound in bounds:
        yield from _beyond(given, bound, bound.field, bound.field)
        if bound.field == "pending.overload":
            yield from _beyond(given, bound, "pending.min", "pending.max", given.get("pending.overload_seconds"))
    names = {limit.field for limit in guard.limits}
    ratio = "inflight.overload_ratio"
    if given.get(ratio) is not None and "inflight.overload" in names and ratio not in names:
        yield (
            ratio,
            f"must not be set here: policy_guard.limits has inflight.overload, which it replaces, and not {ratio}",
        )


def _beyond(
    given: Mapping[str, Any], bound: _Bound, lower: str, upper: str, follows: object = None
) -> Iterator[tuple[str, str]]:
    """Where the field `lower` is below the bounds, or `upper` above; they must be given where a mark `follows`."""
    for name, word, limit, setting in (
        (lower, "least", bound.least, bound.settings[0]),
        (upper, "most", bound.most, bound.settings[1]),
    ):
        if limit is None:
            continue
        rule = f"at {word} {limit:,} (policy_guard.{setting})"
        value = given.get(name)
        if value is None and follows is not None:
            yield name, f"is missing: with overload_seconds it must be {rule}"
        elif value is None and name in given and name == bound.field:
            yield name, f"must be {rule}, not null"
        elif value is not None and (value < limit if word == "least" else value > limit):
            yield name, f"must be {rule}, is {value:,}"


def guard_allows(fields: tuple[tuple[str, object], ...], guard: Guard) -> bool:
    """Whether the fields of an entry break no rule of the guard."""
    return next(guard_violations(dict(fields), guard), None) is None


def override_violations(entry: OverrideEntry, guard: Guard) -> Iterator[tuple[str, str]]:
    """The fields of an override that break the guard, each with its rule."""
    if entry.override.action not in guard.override_actions:
        allowed = ", ".join(guard.override_actions) or "none"
        yield "action", f"must not be {entry.override.action}: policy_guard.override_actions allows {allowed}"
    longest = guard.max_override_seconds
    if entry.seconds > longest + min(CLOCKS_APART, CLOCKS_APART_SHARE * longest):
        rule = f"{longest:,} s ahead (policy_guard.max_override_seconds)"
        yield "until", f"must be at most {rule}, is {entry.seconds:,.0f} s; give a shorter time, then renew it"


def check_guard(guard: Guard, path: str, problems: Problems) -> None:
    """Add what is wrong with the guard itself: fields that do not exist, and limits that nothing can meet."""
    for i, limit in enumerate(guard.limits):
        here = join_path(path, f"limits[{i}]")
        if limit.field not in NUMBERS:
            problems.add(f"{here}.field", f"must be a field of a policy with a number: {', '.join(NUMBERS)}")
        if limit.min is not None and limit.max is not None and limit.min > limit.max:
            problems.add(f"{here}.min", "must not be above max")
    known = {name: None for field in POLICY_FIELDS for name in (field.partition(".")[0], field)}
    for i, field in enumerate(guard.fixed):
        if field not in known:
            problems.add(join_path(path, f"fixed[{i}]"), f"must be a field of a policy: {', '.join(known)}")
    least, most = guard.min_pending_overload, guard.max_pending_overload
    if least is not None and most is not None and least > most:
        problems.add(join_path(path, "min_pending_overload"), "must not be above max_pending_overload")
