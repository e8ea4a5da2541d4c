"""Headroom: how many messages must arrive in a stream before a consumer can be above a mark."""

from __future__ import annotations

import math

from nats_backpressure.core.model.marks import SMALL_CAP
from nats_backpressure.core.model.member import NO_LATCHES, Member
from nats_backpressure.protocol.values import Status


def headroom(member: Member, shedding: bool = False) -> float:
    """How many messages must arrive in the stream before the member can be above a mark: 0 if it may be above one now,
    infinite if it never can. The marks are those that move a status or an alert, and pending's critical mark, above
    which drain is evaluated. `shedding`: adaptive admission is at work.

    In flight at a small cap counts only after a stall, and latency by time alone: both can wait QUIET_INTERVAL.
    """
    reading, marks, policy = member.reading, member.marks, member.policy
    if reading is None or marks is None or shedding or member.status is not Status.INACTIVE:
        return 0.0
    if member.latches != NO_LATCHES and member.latches.names:
        return 0.0
    pending, inflight, cap = reading.pending, reading.inflight or 0, reading.cap
    room = _room(pending, min(marks.pending.critical, marks.pending.overload))
    if marks.inflight is not None and (cap is None or cap > max(SMALL_CAP, marks.inflight.overload)):
        room = min(room, _room(pending + inflight, marks.inflight.overload))
    if policy.admission.mode == "adaptive":  # its loop needs every change of the backlog
        room = min(room, _room(pending + inflight, 0.0))
    for rule in policy.alerts:
        if rule.when.pending_above is not None:
            room = min(room, _room(pending, rule.when.pending_above))
        if (limit := rule.when.inflight_above) is not None and (cap is None or cap > limit):
            room = min(room, _room(pending + inflight, limit))
    return room


def _room(most: int, limit: float) -> float:
    """How many more messages exceed a limit, where `most` may count towards it now; 0 if those may."""
    return 0.0 if most > limit else math.floor(limit - most) + 1.0
