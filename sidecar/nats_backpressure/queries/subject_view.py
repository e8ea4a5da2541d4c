"""What is worked out from a subject's state: who speaks for it, how old the truth is, who has the least room."""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection

from msgspec import Struct

from nats_backpressure.core.model import Member
from nats_backpressure.core.status.freshness import (
    Limits,
    SinceProof,
    limits,
    since_proof,
    status_proof,
    subject_freshness,
)
from nats_backpressure.core.subject.next_record import worst_member
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Freshness
from nats_backpressure.runtime.view import ServiceView

FULLEST = 64
"""Consumers asked for their room when a pull names none: a crowd must not make a question expensive."""


class SubjectView(Struct, frozen=True):
    """What is worked out from a state alone, once for all who ask before it changes."""

    state: SubjectState
    worst_member: Member | None
    """The member that speaks for the subject."""
    since_proof: SinceProof | None
    sampled_at: float | None
    """When the oldest proof among the members was had, in Unix seconds."""
    status_proof: float | None
    """Monotonic time of the last proof of what is answered; None where no member proves it."""
    age_from: float | None
    """The same in monotonic time."""
    fullest: tuple[Member, ...]
    """Those with the least room under their in-flight mark, FULLEST at most."""


def subject_view(state: SubjectState) -> SubjectView:
    members = state.members.values()
    proved = [(m.proof, m.reading) for m in members if m.proof is not None and m.reading is not None]
    oldest, reading = min(proved, key=lambda found: found[0], default=(None, None))
    # A look at the stream may have proved later that an older reading still holds.
    at = None if oldest is None or reading is None else reading.at.wall + oldest - reading.at.mono
    return SubjectView(
        state, worst_member(members), since_proof(members), at, status_proof(members), oldest, _fullest(members)
    )


def _fullest(members: Collection[Member]) -> tuple[Member, ...]:
    def room(m: Member) -> float:
        if m.reading is None or m.reading.inflight is None or m.marks is None or m.marks.inflight is None:
            return math.inf
        return m.marks.inflight.overload - m.reading.inflight

    return tuple(members) if len(members) <= FULLEST else tuple(heapq.nsmallest(FULLEST, members, key=room))


def bounds(state: SubjectState, book: ServiceView) -> Limits:
    observe = book.settings.observe
    beat = book.settings.publish.heartbeat_seconds
    return limits(observe.stale_after_seconds, observe.unknown_after_seconds, book.interval(state.subject), beat)


def proved(found: SubjectView, limits: Limits, now: Now) -> float:
    """The moment from which on what is answered ages, in monotonic time."""
    state, last = found.state, found.status_proof
    if state.unproved_at_load:
        return -math.inf  # whoever stored it let go of it long ago: a restart refuses nothing anew
    if last is None or not math.isfinite(last):  # nobody was read yet, or nobody is left
        return state.deadline - limits.unknown_after if state.empty_since is None else state.empty_since
    if state.record is not None and state.record.unknown and now.mono - last < limits.stale_after:
        return -math.inf  # it proves what will be answered once that is stored, not what was answered last
    if state.writing is not None and state.writing.failing:
        return min(last, state.writing.started_at)  # the old answer is repeated because a new one cannot be stored
    return last


def truth(found: SubjectView, limits: Limits, now: Now) -> tuple[Freshness, str | None]:
    """How old the truth is, and why it is stale. What was never stored was never told: it is unknown."""
    state = found.state
    if state.record is None or state.record.unknown or state.unstored:
        return Freshness.UNKNOWN, None
    fresh_ = subject_freshness(found.since_proof, now.mono, limits)
    if fresh_ is not Freshness.KNOWN:
        return fresh_, "age" if fresh_ is Freshness.STALE else None
    if state.writing is not None and state.writing.failing:
        return Freshness.STALE, "no_quorum"
    return Freshness.KNOWN, None
