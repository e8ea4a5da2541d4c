"""The alert rules of a subject: those of the policies of all its consumers, each with the consumers that it is for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.model.member import Member
from nats_backpressure.policy.schema import AlertRule, Policy, When

ACTIVE = AlertRule("backpressure_active", When(status="active"), severity="critical")
WARNING = AlertRule("backpressure_warning", When(status="warning"), severity="warning")
"""The two built-in rules, switched on by flags of the policy; `alert_for_seconds` is their `for_seconds`."""


class AppliedRule(Struct, frozen=True):
    """A rule, and the consumers whose policies have it."""

    rule: AlertRule
    members: tuple[Member, ...]
    built_in: bool = False


def applied_rules(members: Sequence[Member]) -> dict[str, list[AppliedRule]]:
    """The rules by name. Which consumer is the worst decides nothing here: it changes with each reading. One name has
    several rules where the policies of the consumers differ."""
    applied: dict[tuple[AlertRule, bool], list[Member]] = {}
    for group in _by_policy(members):
        for rule, built_in in _rules(group[0].policy):
            applied.setdefault((rule, built_in), []).extend(group)
    by_name: dict[str, list[AppliedRule]] = {}
    for (rule, built_in), its in applied.items():
        by_name.setdefault(rule.name, []).append(AppliedRule(rule, tuple(its), built_in))
    return by_name


def _by_policy(members: Sequence[Member]) -> Iterable[list[Member]]:
    """The members that have one policy, in an order that is the same in all replicas."""
    groups: dict[int, list[Member]] = {}
    for member in members:
        groups.setdefault(id(member.policy), []).append(member)
    if len(groups) == 1:
        return groups.values()
    return sorted(groups.values(), key=lambda group: min(member.key for member in group))


def _rules(policy: Policy) -> Iterable[tuple[AlertRule, bool]]:
    """Each with whether it is built in."""
    names = [rule.name for rule in policy.alerts]
    for rule, wanted in ((ACTIVE, policy.alert_on_active), (WARNING, policy.alert_on_warning)):
        if wanted and rule.name not in names:  # one's own rule of that name stands for it
            yield replace(rule, for_seconds=policy.alert_for_seconds), True
    yield from ((rule, False) for rule in policy.alerts)
