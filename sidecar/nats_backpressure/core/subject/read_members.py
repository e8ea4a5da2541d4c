"""The state of a subject after newer readings of its members, and after what adaptive admission makes of them."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from nats_backpressure.core.admission.adaptive import OPEN, next_shedding
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.status import latches
from nats_backpressure.core.subject.admitting import steering
from nats_backpressure.core.subject.member_update import with_losses, with_reading
from nats_backpressure.core.subject.state import (
    SubjectState,
    with_members,
    with_shedding,
)
from nats_backpressure.protocol.timestamps import Now


def with_readings(state: SubjectState, readings: Sequence[Reading], now: Now) -> SubjectState:
    """The state after newer readings of its members; those of others are left out, and those that this process received
    late: what another replica stored meanwhile is newer."""
    members, taken = dict(state.members), False
    for reading in readings:
        member = members.get(reading.key)
        if member is None:
            continue
        if state.proved_elsewhere_at - reading.at.mono <= member.policy.recovery_hold_seconds:
            members[reading.key], taken = with_reading(member, reading, now.mono), True
        elif reading.lost:  # no later reading shows it
            members[reading.key], taken = with_losses(member, reading, now.mono), True
    if not taken:
        return state
    return _with_shedding(with_members(replace(state, unproved_at_load=False), members), now)


def _with_shedding(state: SubjectState, now: Now) -> SubjectState:
    """The state with the result of adaptive admission after the newest readings of all members that count."""
    members = steering(state.members.values())
    if not members:
        return state if state.shedding is OPEN else with_shedding(state, OPEN)
    policy = min(members, key=lambda m: (m.policy.admission.floor, m.key)).policy
    own = {m.key: m.policy for m in members}
    readings = [m.reading for m in members if m.reading is not None and not latches.is_ignored(m.reading, m.policy)]
    return with_shedding(state, next_shedding(state.shedding, policy, readings, state.offered_load, now, own))
