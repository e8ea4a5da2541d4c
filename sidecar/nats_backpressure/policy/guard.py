"""What policies from elsewhere than the file may not go beyond: who may write the bucket is not who wrote the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from nats_backpressure.policy.schema import Guard

NO_GUARD: Final = Guard()
"""Lets everything through."""


def guard_violations(given: Mapping[str, object], guard: Guard) -> Iterator[tuple[str, str]]:
    """What breaks the guard, field and rule: every overload mark of pending that the fields given can lead to.

    What is inherited from the file is the file's own word. A mark that follows the drain rate is only as bounded as
    its `min` and `max`.
    """
    follows = given.get("pending.overload_seconds") is not None
    for word, edge, setting, bound in (
        ("least", "pending.min", "min_pending_overload", guard.min_pending_overload),
        ("most", "pending.max", "max_pending_overload", guard.max_pending_overload),
    ):
        if bound is None:
            continue
        rule = f"at {word} {bound:,} (policy_guard.{setting})"
        for name in ("pending.overload", edge):
            mark = given.get(name)
            if isinstance(mark, int | float) and (mark < bound if word == "least" else mark > bound):
                yield name, f"must be {rule}, is {mark:,}"
        if follows and given.get(edge) is None:
            yield edge, f"is missing: with overload_seconds it must be {rule}"


def guard_allows(fields: tuple[tuple[str, object], ...], guard: Guard) -> bool:
    return next(guard_violations(dict(fields), guard), None) is None
