"""Evaluates alert rules: pending while the condition holds, firing once it held long enough, resolved when it ends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Final

from msgspec.structs import replace

from nats_backpressure.core.model.event import Alert
from nats_backpressure.core.model.member import Member
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.policy.schema import AlertRule, Policy, When
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Status

ACTIVE = AlertRule("backpressure_active", When(status="active"), severity="critical")
WARNING = AlertRule("backpressure_warning", When(status="warning"), severity="warning")
"""The two built-in rules, switched on by flags of the policy; `alert_for_seconds` is their `for_seconds`."""
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
PendingKey = tuple[str, str, float]
"""The name, the condition and the `since` of a pending alert: the same in all replicas."""


class Undecided(Enum):
    """Whether a condition holds is not known: the alert does not change."""

    UNSURE = "unsure"


UNSURE: Final = Undecided.UNSURE


def next_alerts(
    was: Sequence[Alert],
    policy: Policy,
    status: Status,
    members: Sequence[Member],
    now: Now,
    awaited: bool = False,
    watched_for: float = math.inf,
) -> tuple[Alert, ...]:
    """The alerts of a subject now, by rule; those of `was`, which are `aged`, while none changes its state.

    `awaited`: a consumer that was known before a restart was not read again yet. `watched_for`: seconds for which the
    subject has been read, since the start of the process or the last gap. A firing alert whose rule is gone, or has
    another condition, is resolved first. The wall clock is only shown: that of the replica before us may be another.
    """
    before = {alert.name: alert for alert in was}
    readings = [member.reading for member in members if member.reading is not None]
    alerts: list[Alert] = []
    for rule in _rules(policy):
        alert = before.get(rule.name)
        if alert is not None and alert.when != _condition(rule.when):
            if alert.state == "firing":
                continue
            alert = None
        before.pop(rule.name, None)
        value = _value(rule.when, status, readings, awaited)
        if alert is not None and alert.state != "resolved" and value is None and rule not in policy.alerts:
            alert = _in_break(alert, rule, now)
        else:
            alert = _next(alert, rule, value, now, watched_for)
        alerts += [alert] if alert is not None else []
    gone = (alert for alert in before.values() if alert.state == "firing")
    return (*alerts, *(replace(alert, state="resolved", since=now.wall) for alert in gone))


def changed_alerts(was: Sequence[Alert], now: Sequence[Alert]) -> tuple[Alert, ...]:
    """The alerts that started to fire, and those that were resolved."""
    before = {alert.name: alert.state for alert in was}
    announced = ("firing", "resolved")
    return tuple(alert for alert in now if alert.state in announced and before.get(alert.name) != alert.state)


def pending_since(
    alerts: Sequence[Alert], known: Mapping[PendingKey, float], stored_at: float
) -> dict[PendingKey, float]:
    """Monotonic time since which the condition of each pending alert has held: as is `known`, or as was stored then."""
    pending = ((_key(alert), alert.held) for alert in alerts if alert.state == "pending")
    return {key: known.get(key, stored_at - held) for key, held in pending}


def aged(alerts: Sequence[Alert], since: Mapping[PendingKey, float], now: float) -> tuple[Alert, ...]:
    """The alerts, with how long the condition of each pending one has held by `now`, monotonic time."""
    if not since:
        return tuple(alerts)
    return tuple(
        replace(alert, held=max(0.0, now - since[_key(alert)]))
        if alert.state == "pending" and _key(alert) in since
        else alert
        for alert in alerts
    )


def _key(alert: Alert) -> PendingKey:
    return alert.name, alert.when, alert.since


def _rules(policy: Policy) -> Iterable[AlertRule]:
    names = [rule.name for rule in policy.alerts]
    for rule, wanted in ((ACTIVE, policy.alert_on_active), (WARNING, policy.alert_on_warning)):
        if wanted and rule.name not in names:  # one's own rule of that name stands for it
            yield replace(rule, for_seconds=policy.alert_for_seconds)
    yield from policy.alerts


def _in_break(alert: Alert, rule: AlertRule, now: Now) -> Alert | None:
    """A built-in alert whose condition does not hold: it ends once that has lasted `for_seconds` too, so that a status
    that goes up and down fires once."""
    began = now.wall if alert.over_since is None else min(alert.over_since, now.wall)
    if now.wall - began >= rule.for_seconds:
        return replace(alert, state="resolved", since=now.wall, over_since=None) if alert.state == "firing" else None
    return alert if alert.over_since == began else replace(alert, over_since=began)


def _next(
    alert: Alert | None, rule: AlertRule, value: Value | Undecided | None, now: Now, watched_for: float
) -> Alert | None:
    """The alert after one evaluation of its condition; `value` is None while it does not hold."""
    if value is UNSURE:
        return alert
    state = None if alert is None else alert.state
    if value is None:
        if alert is not None and state == "firing":
            return replace(alert, state="resolved", since=now.wall)
        return alert if state == "resolved" else None
    if alert is not None and alert.over_since is not None:
        alert = replace(alert, over_since=None)
    if alert is None or state == "resolved":
        alert = Alert(rule.name, rule.severity, _condition(rule.when), "pending", now.wall, value)
    elif state == "firing":
        return alert
    early = watched_for - alert.held < GRACE
    if alert.held < rule.for_seconds or (early and min(alert.held, watched_for) < GRACE):
        return alert
    return replace(alert, state="firing", since=now.wall, value=value, held=0.0)


def _value(when: When, status: Status, readings: Sequence[Reading], awaited: bool) -> Value | Undecided | None:
    """The value that meets the condition, the largest of all consumers; None where it certainly does not hold."""
    if when.status is not None:
        return status.word if status >= RANK[when.status] else None
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


def _condition(when: When) -> str:
    """The condition as text: `pending_above: 5000`."""
    name, value = next((name, value) for name in when.__struct_fields__ if (value := getattr(when, name)) is not None)
    return f"{name}: {value:g}" if isinstance(value, int | float) else f"{name}: {value}"
