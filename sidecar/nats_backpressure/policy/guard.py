"""Checks policies from the bucket or consumer metadata against the limits (Guard) that the settings file sets.

Not everyone who may write the bucket wrote the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from nats_backpressure.policy.schema import Guard

NO_GUARD: Final = Guard()
"""Allows everything."""


def guard_violations(given: Mapping[str, object], guard: Guard) -> Iterator[tuple[str, str]]:
    """The fields that break the guard, each with its rule: of every pending overload mark that `given` can lead to.

    What is inherited from the file is not checked. A mark that follows the drain rate is bounded only by its `min` and
    `max`.
    """
    follows = given.get("pending.overload_seconds") is not None
    for word, limit_field, setting, bound in (
        ("least", "pending.min", "min_pending_overload", guard.min_pending_overload),
        ("most", "pending.max", "max_pending_overload", guard.max_pending_overload),
    ):
        if bound is None:
            continue
        rule = f"at {word} {bound:,} (policy_guard.{setting})"
        for name in ("pending.overload", limit_field):
            mark = given.get(name)
            if isinstance(mark, int | float) and (mark < bound if word == "least" else mark > bound):
                yield name, f"must be {rule}, is {mark:,}"
        if follows and given.get(limit_field) is None:
            yield limit_field, f"is missing: with overload_seconds it must be {rule}"


def guard_allows(fields: tuple[tuple[str, object], ...], guard: Guard) -> bool:
    """Whether the fields of an entry break no rule of the guard."""
    return next(guard_violations(dict(fields), guard), None) is None
