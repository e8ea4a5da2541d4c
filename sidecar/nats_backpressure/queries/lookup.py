"""Finds the watched subjects that a request is about, and computes for each its status, freshness and admission now."""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterable

from msgspec import Struct

from nats_backpressure.core.admission import gateway_admission
from nats_backpressure.core.model.admission import GatewayAdmission
from nats_backpressure.core.model.member import Member
from nats_backpressure.core.model.proofs import NO_PROOFS, Proofs, newest_proof
from nats_backpressure.core.status.freshness import (
    Limits,
    SinceProof,
    known_until,
    limits,
    since_proof,
    status_proof,
    subject_freshness,
)
from nats_backpressure.core.subject.admitting import counted
from nats_backpressure.core.subject.other_policies import is_foreign
from nats_backpressure.core.subject.state import SubjectState, deciding_policy
from nats_backpressure.policy.schema import Policy, in_force
from nats_backpressure.protocol.refusal_expiry import OPENING_STEP, holds_for
from nats_backpressure.protocol.strictness import Rank, rank
from nats_backpressure.protocol.subjects import is_literal
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Action, Freshness, StaleReason, Status
from nats_backpressure.runtime.view import ServiceView

FULLEST = 64
"""Consumers that answer a pull request which names none, or only a stream: a subject with many must not make it
expensive."""
OVERRIDE = "override"


class SubjectView(Struct, frozen=True):
    """What depends on the state and on what looks prove: computed once for each, for all requests."""

    state: SubjectState
    worst_member: Member | None
    """The member whose status and numbers are shown for the subject."""
    since_proof: SinceProof | None
    sampled_at: float | None
    """Time of the oldest proof among the members, in Unix seconds."""
    oldest_proof: float | None
    """The same in monotonic time."""
    status_proof: float | None
    """Monotonic time of the last proof of what gateways are answered; None if no member proves it."""
    fullest: tuple[Member, ...]
    """The members with the least room below their in-flight mark, at most FULLEST."""
    fullest_by_stream: dict[str, tuple[Member, ...]] = {}
    """The same of each stream. Treated as frozen."""
    proofs: Proofs = NO_PROOFS
    """What looks at its streams prove."""
    looked_at: tuple[float, ...] = ()
    """When the newest of these looks were answered."""


def subject_view(
    state: SubjectState, proofs: Proofs = NO_PROOFS, last: SubjectView | None = None, *, pulled: bool = True
) -> SubjectView:
    """`last`: the view before, which may be of the same state. `pulled`: whether it may answer a pull request; without
    that nobody asks for the fullest members."""
    members = state.members.values()
    proved = [(proof, m.reading) for m in members if m.reading and (proof := newest_proof(m, proofs)) is not None]
    oldest, reading = min(proved, key=lambda pair: pair[0], default=(None, None))
    # A look at the stream may have proved later that an older reading still holds.
    at = None if oldest is None or reading is None else reading.at.wall + oldest - reading.at.mono
    since, status = since_proof(members, proofs), status_proof(counted(members), proofs)
    fullest: tuple[Member, ...] = ()
    by_stream: dict[str, tuple[Member, ...]] = {}
    if last is not None and last.state is state:
        fullest, by_stream = last.fullest, last.fullest_by_stream
    elif pulled:
        by_stream = _fullest_by_stream(members)
        fullest = _fullest([m for of_one in by_stream.values() for m in of_one])
    return SubjectView(state, state.worst, since, at, oldest, status, fullest, by_stream, proofs, looked_at(proofs))


def looked_at(proofs: Proofs) -> tuple[float, ...]:
    """When the looks were answered that prove anything."""
    return tuple([proof.at for proof in proofs.values()])


def _fullest_by_stream(members: Iterable[Member]) -> dict[str, tuple[Member, ...]]:
    by_stream: dict[str, list[Member]] = {}
    for member in members:
        by_stream.setdefault(member.key.stream, []).append(member)
    return {stream: _fullest(its) for stream, its in by_stream.items()}


def _fullest(members: Collection[Member]) -> tuple[Member, ...]:
    def room(m: Member) -> float:
        if m.reading is None or m.reading.inflight is None or m.marks is None or m.marks.inflight is None:
            return math.inf
        return m.marks.inflight.overload - m.reading.inflight

    return tuple(members) if len(members) <= FULLEST else tuple(heapq.nsmallest(FULLEST, members, key=room))


def freshness_limits(state: SubjectState, service: ServiceView) -> Limits:
    """The limits in force for a subject."""
    observe = service.settings.observe
    heartbeat = service.settings.publish.heartbeat_seconds
    interval = service.interval(state.subject)
    return limits(observe.stale_after_seconds, observe.unknown_after_seconds, interval, heartbeat)


def age_starts_at(view: SubjectView, limits: Limits, now: Now) -> float:
    """Monotonic time from which the age of the answered status counts."""
    at = _read_at(view, limits, now)
    return at if view.since_proof is not None else max(at, _reported_until(view.state, limits))


def _reported_until(state: SubjectState, limits: Limits) -> float:
    """Monotonic time until which another replica had a proof, where none was read here."""
    record = state.record
    if record is None or not (record.unknown or record.stale):
        return state.reported_at
    unproved_for = limits.unknown_after if record.unknown else limits.stale_after
    return min(state.reported_at, state.written_at - unproved_for)


def _read_at(view: SubjectView, limits: Limits, now: Now) -> float:
    """Monotonic time of what proves the answered status here."""
    state, last = view.state, view.status_proof
    if state.unproved_at_load:
        return -math.inf  # its writer stopped refusing long ago: a restart must not refuse again
    if last is None or not math.isfinite(last):  # no member was read yet, or no member is left
        return state.unread_since if state.empty_since is None else state.empty_since
    if state.record is not None and state.record.unknown and now.mono - last < limits.stale_after:
        return -math.inf  # it proves the status that will be stored next, not the one that was answered last
    if state.writing is not None and state.writing.failing:
        return min(last, state.writing.started_at)  # the old answer is repeated because a new one cannot be stored
    return last


def current_freshness(
    view: SubjectView, limits: Limits, now: Now, elsewhere: bool = False
) -> tuple[Freshness, StaleReason | None]:
    """The freshness, and the reason if it is stale. A status that was never stored is unknown. `elsewhere`: whether
    another replica proves the status, and none of our readings does."""
    state = view.state
    if state.record is None or state.record.unknown or state.unstored:
        return Freshness.UNKNOWN, None
    if elsewhere:
        return (Freshness.STALE, "age") if state.record.stale else (Freshness.KNOWN, None)
    since = view.since_proof or SinceProof(state.reported_at, state.reported_at)
    freshness = subject_freshness(since, now.mono, limits)
    if freshness is not Freshness.KNOWN:
        return freshness, "age" if freshness is Freshness.STALE else None
    if state.writing is not None and state.writing.failing:
        return Freshness.STALE, "no_quorum"
    return Freshness.KNOWN, None


class SubjectAnswer(Struct, frozen=True):
    """What one watched subject answers at one moment."""

    view: SubjectView
    limits: Limits
    policy: Policy
    """The one that answers gateways."""
    status: Status
    freshness: Freshness
    stale_reason: StaleReason | None
    admission: GatewayAdmission
    reasons: tuple[str, ...]
    changes_at: float
    """Monotonic time at which age alone changes the answer."""
    calm_until: float = -math.inf
    """Monotonic time until which nothing but an input changes more than its times, by what is known now."""

    @property
    def state(self) -> SubjectState:
        return self.view.state

    @property
    def member(self) -> Member | None:
        return self.view.worst_member

    @property
    def pressure(self) -> float:
        return self.view.worst_member.pressure if self.view.worst_member else 0.0

    @property
    def incident(self) -> str | None:
        return self.state.record.incident if self.state.record else None

    def decides_as(self, other: SubjectAnswer) -> bool:
        """Whether a decision shows the same subject and the same of it, but for its times."""
        return (
            self.state.subject == other.state.subject
            and self.policy is other.policy
            and self.status is other.status
            and self.freshness is other.freshness
            and self.admission == other.admission
            and self.reasons == other.reasons
            and self.pressure == other.pressure
            and self.incident == other.incident
        )

    def rank(self, admission: GatewayAdmission) -> Rank:
        enforced = self.policy.mode == "enforce"
        return rank(admission.action, admission.admit_ratio, self.status, self.pressure, enforced)


class SubjectLookup:
    """Answers from the service's states; caches the view of each state until the state is replaced."""

    def __init__(self, service: ServiceView, *, keep: bool = True) -> None:
        """`keep=False`: for a scrape, which asks rarely and for all subjects. The next look makes every view another
        one, and 10,000 that are kept are 10 MiB, and 60,000 objects for the next garbage collection: 20 ms."""
        self._service, self._keep = service, keep
        self._views: dict[str, SubjectView] = {}

    def names(self, subject: str) -> list[str]:
        """Every watched subject that covers a literal subject: itself first, then by name. For a pattern: itself."""
        states = self._service.subjects
        names = [subject] if subject in states else []
        if is_literal(subject):
            names += sorted(self._service.covering(subject))
        return [name for name in names if name in states]

    def names_reported(self, subject: str) -> list[str]:
        """The watched subjects that a gateway's report is about: its own; where that is unwatched, those that cover it.
        A gateway reports a request once for each state that governs it."""
        return [subject] if subject in self._service.subjects else self.names(subject)

    def answers(self, names: Iterable[str], now: Now) -> list[SubjectAnswer]:
        """The answers of watched subjects."""
        return [self.answer(self._service.subjects[name], now) for name in names]

    def answer(self, state: SubjectState, now: Now) -> SubjectAnswer:
        view = self._view(state)
        record = state.record
        policy = deciding_policy(state)
        limits = freshness_limits(state, self._service)
        unread = view.since_proof is None
        elsewhere = unread and self._service.is_proved_elsewhere(state.subject)
        freshness, stale_reason = current_freshness(view, limits, now, elsewhere)
        hold = holds_for(policy.on_unknown, policy.hold_seconds, limits.stale_after, limits.interval)
        opens_at = age_starts_at(view, limits, now) + hold
        last = record.admission if record else GatewayAdmission()
        status = record.status if record and freshness is not Freshness.UNKNOWN else Status.UNKNOWN
        admission = gateway_admission.current_admission(
            policy, status, freshness, last, now.mono - opens_at, state.shedding, state.admitting is not None
        )
        is_left_to_others = unread or state.left_since is not None or is_foreign(record, self._service.policies.mark)
        if freshness is Freshness.KNOWN:  # as its writer judged it, like the status
            admission = last if is_left_to_others else gateway_admission.nearly_stored(admission, last)
        override = in_force(policy, now)
        admission = gateway_admission.with_override(admission, override, policy)
        # The stored reasons follow with the next write; an override is named exactly while it is in force.
        reasons = record.reasons if record and status is not Status.UNKNOWN else ()
        if override is not None or OVERRIDE in reasons:
            reasons = (*(reason for reason in reasons if reason != OVERRIDE), *([OVERRIDE] if override else []))
        changes_at = math.inf
        if admission.action is not Action.CONTINUE and override is None:
            changes_at = max(opens_at, now.mono + OPENING_STEP)
        calm_until = -math.inf
        if freshness is Freshness.KNOWN and not elsewhere and not policy.override and now.mono < opens_at:
            calm_until = min(opens_at, known_until(view.since_proof, limits))
        return SubjectAnswer(
            view, limits, policy, status, freshness, stale_reason, admission, reasons, changes_at, calm_until
        )

    def _view(self, state: SubjectState) -> SubjectView:
        proofs = self._service.proofs(state.subject)
        if not self._keep:
            return subject_view(state, proofs, pulled=False)
        view = self._views.get(state.subject)
        if view is None or view.state is not state or view.looked_at != looked_at(proofs):
            if len(self._views) > 2 * len(self._service.subjects):
                self._views.clear()  # many belong to subjects that were removed
            view = self._views[state.subject] = subject_view(state, proofs, view)
        return view
