"""How long the condition of a pending alert has held, and a break of one has lasted: only what was seen counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from nats_backpressure.core.model.event import SubjectAlert
from nats_backpressure.core.model.member import Member
from nats_backpressure.core.model.proofs import Proofs, newest_proof
from nats_backpressure.core.status.alert_rules import applied_rules
from nats_backpressure.core.status.alerts import has_condition, meets
from nats_backpressure.core.status.freshness import Limits

COUNTED = 2.0
"""Seconds between two readings, at most, that count as watched; an interval, if that is longer."""

RunKey = tuple[str, str, str, float]
"""What runs of an alert: its name, its condition, the field that counts its seconds (`held`, `over_for`), and when it
began, in Unix seconds: the same in all replicas."""


def running_since(
    alerts: Sequence[SubjectAlert], known: Mapping[RunKey, float], stored_at: float
) -> dict[RunKey, float]:
    """Monotonic time since which the condition of each pending alert has held, and each break has lasted, if somebody
    had looked all the time: as is `known`, or as was stored at that time where that is earlier, since another replica
    may have looked when this one did not."""
    stored = {key: stored_at - seconds for alert in alerts for key, seconds in _running(alert).items()}
    return {key: min(known.get(key, at), at) for key, at in stored.items()}


def unwatched(since: Mapping[RunKey, float], seconds: float) -> dict[RunKey, float]:
    """The same after so many seconds in which nobody looked: they count for nothing."""
    return {key: at + seconds for key, at in since.items()}


def aged(
    alerts: Sequence[SubjectAlert], since: Mapping[RunKey, float], seen_to: Mapping[str, float]
) -> tuple[SubjectAlert, ...]:
    """The alerts, with how long each that is pending has held, and each break has lasted, by the monotonic time to
    which it was seen (see `seen_to`)."""
    return tuple(_aged(alert, since, seen_to) for alert in alerts) if since else tuple(alerts)


def seen_to(
    alerts: Sequence[SubjectAlert], members: Sequence[Member], proofs: Proofs, oldest: float
) -> dict[str, float]:
    """Monotonic time to which the consumers were seen on which each running alert depends, by its name: the newest
    proof of one that meets its condition. Where none does, the oldest proof of those that it is for, since each of them
    may meet it unseen. One with no proof since `oldest` decides nothing."""
    running = [alert for alert in alerts if _running(alert)]
    if not running:
        return {}
    rules, times = applied_rules(members), {member.key: newest_proof(member, proofs) or -math.inf for member in members}
    seen: dict[str, float] = {}
    for alert in running:
        its = [
            (times[member.key], meets(one.rule.when, member))
            for one in rules.get(alert.name, ())
            if has_condition(alert, one.rule.when)
            for member in one.members
            if times[member.key] >= oldest
        ]
        meeting = [time for time, is_met in its if is_met]
        seen[alert.name] = max(meeting) if meeting else min((time for time, _ in its), default=-math.inf)
    return seen


def without_unseen(
    since: Mapping[RunKey, float], before: Mapping[str, float], after: Mapping[str, float], start: float, limits: Limits
) -> dict[RunKey, float]:
    """The same without the seconds between two states that nobody watched, given to when each alert was `seen_to` in
    both. Between two readings COUNTED seconds count; none after a gap in which the evidence grew old, or before the
    first reading since the monotonic time `start`."""

    def unseen(key: RunKey, at: float) -> float:
        was = before.get(key[0], -math.inf)
        lasted = after.get(key[0], -math.inf) - max(was, start, at)
        counted = 0.0 if was == -math.inf or lasted >= limits.stale_after else max(COUNTED, limits.interval)
        return max(0.0, lasted - counted)

    return {key: at + unseen(key, at) for key, at in since.items()}


def _aged(alert: SubjectAlert, since: Mapping[RunKey, float], seen: Mapping[str, float]) -> SubjectAlert:
    running, to = _running(alert).items(), seen.get(alert.name, -math.inf)
    lasted = {key[2]: max(seconds, to - since[key]) for key, seconds in running if key in since}
    return replace(alert, **lasted) if lasted else alert


def _running(alert: SubjectAlert) -> dict[RunKey, float]:
    """What runs of an alert, with its seconds."""
    running: dict[RunKey, float] = {}
    if alert.state == "pending":
        running[alert.name, alert.when, "held", alert.since] = alert.held
    if alert.over_since is not None:
        running[alert.name, alert.when, "over_for", alert.over_since] = alert.over_for
    return running
