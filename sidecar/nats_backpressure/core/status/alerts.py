"""Evaluates alert rules: pending while the condition holds, firing once it held long enough, resolved when it ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import Final

from msgspec.structs import replace

from nats_backpressure.core.model.event import SubjectAlert
from nats_backpressure.core.model.member import Member
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.status.alert_rules import AppliedRule, applied_rules
from nats_backpressure.policy.schema import AlertRule, When
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Status

FORGIVEN = 10.0
"""Seconds of the longest break that does not count while a built-in alert is pending: with the `for_seconds` of a
policy that waits for minutes, two short overloads would page."""
GRACE = 10.0
"""Seconds. A backlog found after a start or a gap grew while nobody limited the load. An alert whose condition began
before, or this soon after, fires only once its condition was seen to hold for this time."""
LIMITS = {
    "pending_above": "pending",
    "inflight_above": "inflight",
    "latency_p95_above_ms": "p95",
    "stream_fill_above": "stream_fill",
}
"""Conditions with a limit, and the field of a reading that each compares."""
RANK = {"warning": Status.WARNING, "active": Status.ACTIVE}

Value = float | str


class Undecided(Enum):
    """Whether a condition holds is not known: the alert does not change."""

    UNSURE = "unsure"


UNSURE: Final = Undecided.UNSURE


def next_alerts(
    was: Sequence[SubjectAlert],
    status: Status,
    members: Sequence[Member],
    now: Now,
    awaited: bool = False,
    watched_for: float = math.inf,
) -> tuple[SubjectAlert, ...]:
    """The alerts of a subject of this status now, by rule; those of `was`, which are `aged`, while none changes its
    state.

    `awaited`: a consumer that was known before a restart was not read again yet. `watched_for`: seconds for which the
    subject has been read, since the start of the process or the last gap. A firing alert whose rule is gone, or has
    another condition, is resolved first. The wall clock is only shown: that of the replica before us may be another.
    """
    before = {alert.name: alert for alert in was}
    worst = max((member.status for member in members), default=status)
    alerts: list[SubjectAlert] = []
    for name, candidates in applied_rules(members).items():
        alert = before.get(name)
        applied, value = _deciding(candidates, alert, status, worst, awaited)
        rule = applied.rule
        if alert is not None and not has_condition(alert, rule.when):
            if alert.state == "firing":
                continue
            alert = None
        if alert is not None:
            alert = _with_severity(alert, candidates, rule)
        before.pop(name, None)
        if alert is not None and alert.state != "resolved" and value is None and applied.built_in:
            alert = _in_break(alert, rule, now)
        else:
            alert = _next(alert, rule, value, now, watched_for)
        alerts += [alert] if alert is not None else []
    if awaited:  # a consumer with the rules that are missing may be read soon
        return (*alerts, *before.values())
    gone = (alert for alert in before.values() if alert.state == "firing")
    return (*alerts, *(replace(alert, state="resolved", since=now.wall) for alert in gone))


def changed_alerts(was: Sequence[SubjectAlert], now: Sequence[SubjectAlert]) -> tuple[SubjectAlert, ...]:
    """The alerts that started to fire, and those that were resolved."""
    before = {alert.name: alert.state for alert in was}
    announced = ("firing", "resolved")
    return tuple(alert for alert in now if alert.state in announced and before.get(alert.name) != alert.state)


def _deciding(
    candidates: Sequence[AppliedRule], alert: SubjectAlert | None, status: Status, worst: Status, awaited: bool
) -> tuple[AppliedRule, Value | Undecided | None]:
    """The rule of a name that counts now, and the value that meets its condition: of several one that holds, first that
    with the condition of the alert; of two alike the one that waits less, and forgives the longer break."""
    values = [(one, _value(one.rule.when, _status(one, status, worst), one.members, awaited)) for one in candidates]
    if len(values) == 1:
        return values[0]
    holding = [pair for pair in values if pair[1] is not None]
    sooner = 1 if holding else -1
    return min(
        holding or values,
        key=lambda pair: (
            not has_condition(alert, pair[0].rule.when),
            pair[1] is UNSURE,
            sooner * pair[0].rule.for_seconds,
        ),
    )


def _with_severity(alert: SubjectAlert, candidates: Sequence[AppliedRule], rule: AlertRule) -> SubjectAlert:
    """The alert with the severity that its rule has now. Of several rules the one that decides may change with each
    reading: it keeps the severity that any of them has."""
    severities = {one.rule.severity for one in candidates if has_condition(alert, one.rule.when)}
    over = alert.state == "resolved" or alert.severity in severities
    return alert if over else replace(alert, severity=rule.severity)


def _status(applied: AppliedRule, status: Status, worst: Status) -> Status:
    """The status of the consumers that a rule is for: that of the subject, if the worst ones are among them."""
    own = max((member.status for member in applied.members), default=status)
    return status if own == worst else own


def _in_break(alert: SubjectAlert, rule: AlertRule, now: Now) -> SubjectAlert | None:
    """A built-in alert whose condition does not hold: it ends once that has lasted `for_seconds` too, so that a status
    that goes up and down fires once."""
    firing = alert.state == "firing"
    lasted = 0.0 if alert.over_since is None else alert.over_for
    if lasted >= (rule.for_seconds if firing else min(rule.for_seconds, FORGIVEN)):
        return replace(alert, state="resolved", since=now.wall, over_since=None, over_for=0.0) if firing else None
    return alert if alert.over_since is not None else replace(alert, over_since=now.wall, over_for=0.0)


def _next(
    alert: SubjectAlert | None, rule: AlertRule, value: Value | Undecided | None, now: Now, watched_for: float
) -> SubjectAlert | None:
    """The alert after one evaluation of its condition; `value` is None while it does not hold."""
    if value is UNSURE:
        return alert
    state = None if alert is None else alert.state
    if value is None:
        if alert is not None and state == "firing":
            return replace(alert, state="resolved", since=now.wall)
        return alert if state == "resolved" else None
    if alert is not None and alert.over_since is not None:
        alert = replace(alert, over_since=None, over_for=0.0)
    if alert is None or state == "resolved":
        alert = SubjectAlert(rule.name, rule.severity, condition(rule.when), "pending", now.wall, value)
    elif state == "firing":
        return alert
    early = watched_for - alert.held < GRACE
    if alert.held < rule.for_seconds or (early and min(alert.held, watched_for) < GRACE):
        return alert
    return replace(alert, state="firing", since=now.wall, value=value, held=0.0)


def _value(when: When, status: Status, members: Sequence[Member], awaited: bool) -> Value | Undecided | None:
    """The value that meets the condition, the largest of these consumers; None where it certainly does not hold."""
    if when.status is not None:
        return status.word if status >= RANK[when.status] else None
    readings = [member.reading for member in members if member.reading is not None]
    if when.stream_fill_above is not None:  # one of another consumer may be newer than that of one that is not read
        readings = list({one.key.stream: one for one in sorted(readings, key=lambda one: one.at.mono)}.values())
    if (value := _holds(when, readings)) is not None:
        return value
    thin = when.diagnosis is not None and any(r.diagnosis is None for r in readings)
    thin |= when.latency_p95_above_ms is not None and any(not r.latency_evidence for r in readings)
    return UNSURE if awaited or thin else None


def _holds(when: When, readings: Sequence[Reading]) -> Value | None:
    if when.diagnosis is not None:
        return when.diagnosis.value if any(r.diagnosis is when.diagnosis for r in readings) else None
    name, limit = next((name, limit) for name in LIMITS if (limit := getattr(when, name)) is not None)
    values = (getattr(reading, LIMITS[name]) for reading in readings)
    return max((value for value in values if value is not None and value > limit), default=None)


def meets(when: When, member: Member) -> bool:
    """Whether one consumer meets a condition, by its newest reading."""
    if when.status is not None:
        return member.status >= RANK[when.status]
    return member.reading is not None and _holds(when, (member.reading,)) is not None


def condition(when: When) -> str:
    """The condition as text: `pending_above: 5000`. Two that differ have different texts."""
    name, value = _only(when)
    if isinstance(value, int | float):
        return f"{name}: {value:.0f}" if value == int(value) else f"{name}: {value!r}"
    return f"{name}: {value}"


def has_condition(alert: SubjectAlert | None, when: When) -> bool:
    """Whether an alert has this condition. Earlier builds stored six digits of the limit."""
    if alert is None:
        return False
    name, value = _only(when)
    return alert.when == condition(when) or (isinstance(value, int | float) and alert.when == f"{name}: {value:g}")


def _only(when: When) -> tuple[str, Value]:
    return next((name, value) for name in when.__struct_fields__ if (value := getattr(when, name)) is not None)
