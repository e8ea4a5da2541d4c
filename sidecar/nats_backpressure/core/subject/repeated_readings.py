"""Replaces readings by newer ones that say the same, where nothing else of the subject can change."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from nats_backpressure.core.admission.adaptive import OPEN
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.status.freshness import status_proof
from nats_backpressure.core.subject.admitting import steering
from nats_backpressure.core.subject.next_record import is_quiescent
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.protocol.timestamps import Now


def is_at_rest(state: SubjectState) -> bool:
    """Whether readings that say the same as the last ones move nothing of the subject but the proof of its members: no
    latch, no event, no adaptive admission, nothing to store."""
    if state.removing or state.must_reload or state.unproved_at_load or state.read_at is None:
        return False
    if state.shedding is not OPEN or steering(state.members.values()):
        return False
    # Losses that another replica reported are taken over after some time.
    return is_quiescent(state) and all(member.lost >= member.lost_reported for member in state.members.values())


def with_repeated_readings(
    state: SubjectState,
    repeated: Sequence[tuple[Reading, Reading]],
    now: Now,
    newest_read_at: float,
    stale_after: float,
) -> SubjectState | None:
    """The state of a subject at rest after newer readings, each with the one before it that it repeats: what `step`
    returns for them. None where it may do more: a member is not proved, or all of them were not for a while."""
    if state.read_at is None or now.mono - state.read_at >= stale_after:
        return None
    members = dict(state.members)
    newest = state.newest_proof or 0.0
    for before, reading in repeated:
        member = members.get(reading.key)
        if member is None or member.reading is not before:
            return None
        proof = reading.at.mono
        members[reading.key] = replace(member, reading=reading, proof=proof, account=reading.account)
        newest = max(newest, proof)
    oldest = newest if len(members) == 1 else status_proof(members.values())
    if oldest is None or max(now.mono, newest_read_at) - oldest >= stale_after or state.worst is None:
        return None
    worst = members[state.worst.key]
    return replace(state, members=members, worst=worst, newest_proof=newest, read_at=now.mono)
