"""The only place where a subject's state moves: step(state, stimulus, now, limits) -> (state, acts).

A change is stored first, its events inside the record, and told only once it is stored; one write and one publish
are on their way at most. So a crash at any point repeats nothing and forgets nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch

from msgspec.structs import replace

from nats_backpressure.core.admission.adaptive import OPEN, SHEDDING, Shedding, next_shedding
from nats_backpressure.core.admission.gateway_reports import with_report
from nats_backpressure.core.model import (
    DATA_LOSS,
    NO_LATCHES,
    NOTHING_CARRIED,
    PURGED,
    Carried,
    Latch,
    Latches,
    Marks,
    Member,
    Reading,
)
from nats_backpressure.core.status import latches, thresholds
from nats_backpressure.core.status.freshness import Limits
from nats_backpressure.core.subject import next_record
from nats_backpressure.core.subject.inputs import (
    ConsumerJoined,
    ConsumerLeft,
    ConsumerRead,
    DropSubject,
    Effect,
    EventConflict,
    EventDropped,
    EventSent,
    GatewayReported,
    Input,
    KeyRemoved,
    LoadRecord,
    PolicyChanged,
    PolicyRefused,
    PublishEvent,
    RecordCreated,
    RecordLoaded,
    RecordMissing,
    RemoveKey,
    Tick,
    WriteConflict,
    WriteDone,
    WriteFailing,
    WriteRecord,
)
from nats_backpressure.core.subject.state import LOSS_INTERVAL, Record, SubjectState, Writing
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.opening import aged, holds_for
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Status

FORGET_AFTER = 3600.0
"""Seconds after which the stored key of a subject without consumers goes."""


class Context(Limits, frozen=True):
    """What a step needs to know besides the state: the freshness limits in force, who writes, what else is read."""

    writer: str = ""
    """Unique for this process; makes each write's nonce."""
    newest_read_at: float | None = None
    """Monotonic time of the newest reading of anything, which the heartbeat tells; None before the first."""


def step(state: SubjectState, stimulus: Input, now: Now, context: Context) -> tuple[SubjectState, list[Effect]]:
    """The state after `stimulus`, and what is to be done. Results of the acts come back as stimuli."""
    if isinstance(stimulus, ConsumerRead):
        gap = state.read_at is not None and now.mono - state.read_at >= context.stale_after
        watched = now.mono if gap or state.watched_since is None else state.watched_since
        state = replace(_opened(state, now, context) if gap else state, read_at=now.mono, watched_since=watched)
    return plan_writes(apply(stimulus, state, now), now, context, isinstance(stimulus, Tick))


@singledispatch
def apply(stimulus: Input, state: SubjectState, now: Now) -> SubjectState:
    raise TypeError(f"{type(stimulus).__name__} is no stimulus")


@apply.register
def _(stimulus: ConsumerJoined, state: SubjectState, now: Now) -> SubjectState:
    member = state.members.get(stimulus.key)
    if member is None:
        member = _known(stimulus.key, stimulus.policy, state.carried, now)
    elif member.policy == stimulus.policy:
        return state
    else:
        member = _judged(replace(member, policy=stimulus.policy))
    return replace(_with(state, member), empty_since=None, removing=False)


@apply.register
def _(stimulus: ConsumerRead, state: SubjectState, now: Now) -> SubjectState:
    reading = stimulus.reading
    if (member := state.members.get(reading.key)) is None:
        return state
    lost = member.lost + reading.lost
    if lost < member.lost_reported and (
        member.lost_reported_at is None or now.mono - member.lost_reported_at >= LOSS_INTERVAL
    ):
        lost = member.lost_reported  # another replica saw what was not seen here
    causes = member.causes
    if reading.lost or reading.losing:
        causes |= {DATA_LOSS}
    if reading.purged:
        causes |= {PURGED}
    account = reading.account if lost <= member.lost_reported else member.account
    member = replace(member, reading=reading, proof=reading.at.mono, lost=lost, causes=causes, account=account)
    return _shed(_with(replace(state, unproved_at_load=False), _judged(member)), now)


@apply.register
def _(stimulus: ConsumerLeft, state: SubjectState, now: Now) -> SubjectState:
    if stimulus.key not in state.members:
        return state
    members = {key: member for key, member in state.members.items() if key != stimulus.key}
    left_lost = state.departed_lost + state.members[stimulus.key].unreported
    carried = {key: one for key, one in state.carried.items() if key != stimulus.key}
    deleted = state.member_deleted or not stimulus.exists
    state = replace(state, members=members, carried=carried, departed_lost=left_lost, member_deleted=deleted)
    return state if members else replace(state, deadline=now.mono, empty_since=now.mono)


@apply.register
def _(stimulus: PolicyChanged, state: SubjectState, now: Now) -> SubjectState:
    return replace(state, policy=stimulus.policy)


@apply.register
def _(stimulus: PolicyRefused, state: SubjectState, now: Now) -> SubjectState:
    return replace(state, rejection=stimulus.rejection)


@apply.register
def _(stimulus: GatewayReported, state: SubjectState, now: Now) -> SubjectState:
    offered = with_report(state.offered_load, stimulus.offered, stimulus.admitted, stimulus.seconds, now.mono)
    return replace(state, offered_load=offered)


@apply.register
def _(stimulus: Tick, state: SubjectState, now: Now) -> SubjectState:
    return state


@apply.register
def _(stimulus: RecordLoaded, state: SubjectState, now: Now) -> SubjectState:
    carried = dict(stimulus.record.carried)
    members = {key: _resumed(member, carried.get(key), now) for key, member in state.members.items()}
    for key, names in stimulus.record.latched:
        member = members.get(key) or _known(key, state.policy, carried, now)
        members[key] = _restored(member, names, carried.get(key, NOTHING_CARRIED))
    emptied = None if members else now.mono
    if state.record is None:
        state = replace(state, unproved_at_load=stimulus.record.unknown or stimulus.record.stale)
    return replace(
        state,
        members=members,
        carried=carried,
        written_at=now.mono,
        record=stimulus.record,
        revision=stimulus.revision,
        unstored=False,
        loading=False,
        must_reload=False,
        publishing=None,
        published=frozenset(),
        empty_since=emptied,
        shedding=_shed_before(stimulus.record, now),
    )


@apply.register
def _(stimulus: RecordCreated, state: SubjectState, now: Now) -> SubjectState:
    record = next_record.begin_record(state, stimulus, now)
    return replace(
        state,
        record=record,
        revision=stimulus.revision,
        unstored=True,
        loading=False,
        must_reload=False,
        publishing=None,
        published=frozenset(),
    )


@apply.register
def _(stimulus: WriteDone, state: SubjectState, now: Now) -> SubjectState:
    if state.writing is None or state.writing.nonce != stimulus.nonce:
        return state
    record = state.writing.record
    left = frozenset(event.id for event in record.unsent)
    members = dict(state.members)
    for loss in state.writing.losses:
        if (member := members.get(loss.key)) is not None:
            members[loss.key] = replace(
                member, lost_reported=loss.lost, lost_reported_at=now.mono, account=loss.account
            )
    return replace(
        state,
        members=members,
        departed_lost=state.departed_lost - state.writing.departed_lost,
        record=record,
        revision=stimulus.revision,
        writing=None,
        unstored=False,
        published=state.published & left,
        publishing=state.publishing if state.publishing in left else None,
    )


@apply.register
def _(stimulus: WriteFailing, state: SubjectState, now: Now) -> SubjectState:
    if state.writing is None or state.writing.nonce != stimulus.nonce or state.writing.failing:
        return state
    return replace(state, writing=replace(state.writing, failing=True))


@apply.register
def _(stimulus: WriteConflict, state: SubjectState, now: Now) -> SubjectState:
    if state.writing is None or state.writing.nonce != stimulus.nonce:
        return state
    return replace(state, must_reload=True, writing=None)


@apply.register
def _(stimulus: RecordMissing, state: SubjectState, now: Now) -> SubjectState:
    return replace(state, must_reload=True, writing=None)


@apply.register
def _(stimulus: EventSent, state: SubjectState, now: Now) -> SubjectState:
    if state.publishing != stimulus.id:
        return state
    return replace(state, publishing=None, published=state.published | {stimulus.id})


@apply.register
def _(stimulus: EventConflict, state: SubjectState, now: Now) -> SubjectState:
    if state.record is None or state.publishing != stimulus.id:
        return state
    return replace(state, publishing=None, renumber_from=(stimulus.epoch, stimulus.seq))


@apply.register
def _(stimulus: KeyRemoved, state: SubjectState, now: Now) -> SubjectState:
    if not state.members:
        return replace(state, record=None)
    return replace(state, removing=False, must_reload=True, writing=None)


@apply.register
def _(stimulus: EventDropped, state: SubjectState, now: Now) -> SubjectState:
    if state.record is None or state.publishing != stimulus.id:
        return state
    # As if the stream were ahead: its number goes to the next one, under ids that nobody has seen.
    seq = next((event.seq for event in state.record.unsent if event.id == stimulus.id), state.record.seq)
    return replace(
        state, publishing=None, published=state.published | {stimulus.id}, renumber_from=(stimulus.epoch, seq - 1)
    )


def plan_writes(state: SubjectState, now: Now, context: Context, passing: bool) -> tuple[SubjectState, list[Effect]]:
    """Bring what is stored and told up to what is known, one write and one publish at a time; `passing`: on a Tick."""
    if state.removing:
        return state, [] if state.record is not None else [DropSubject(state.subject)]
    if state.record is None or state.must_reload:
        if state.loading or not state.members:
            return state, []
        return replace(state, loading=True), [LoadRecord(state.subject)]
    acts: list[Effect] = []
    if state.writing is None:
        if state.empty_since is not None and now.mono - state.empty_since >= FORGET_AFTER:
            return replace(state, removing=True), [RemoveKey(state.subject, state.revision)]
        if (change := next_record.next_record(state, now, context, context.newest_read_at, passing)) is not None:
            nonce = f"{context.writer}.{state.write_count}"
            writing = Writing(
                change.record,
                state.revision,
                nonce,
                losses=change.losses,
                departed_lost=change.departed_lost,
                started_at=now.mono,
            )
            writes = state.write_count + 1
            state = replace(
                state,
                writing=writing,
                write_count=writes,
                written_at=now.mono,
                member_deleted=False,
                renumber_from=None,
            )
            acts.append(WriteRecord(state.subject, writing))
    if state.publishing is None and state.renumber_from is None and state.record is not None:
        event = next((e for e in state.record.unsent if e.id not in state.published), None)
        if event is not None and _still_listed(event.id, state.writing):
            state = replace(state, publishing=event.id)
            acts.append(PublishEvent(state.subject, event))
    return state, acts


def _still_listed(event_id: str, writing: Writing | None) -> bool:
    """An event that the write under way renumbers must not be told under its old id."""
    return writing is None or any(event.id == event_id for event in writing.record.unsent)


def _with(state: SubjectState, member: Member) -> SubjectState:
    return replace(state, members={**state.members, member.key: member})


def _opened(state: SubjectState, now: Now, limits: Limits) -> SubjectState:
    """After a gap the share goes on from where gateways have opened it to meanwhile, not from where it was."""
    was, policy = state.shedding, next_record.policy_of(state)
    if state.read_at is None or was.ratio >= 1:
        return state
    holds = holds_for(policy.on_unknown, policy.hold_seconds, limits.stale_after, limits.interval)
    opening = now.mono - state.read_at - holds
    action, ratio = aged("throttle", was.ratio, policy.on_unknown, opening, False)
    retry_after = 0 if action == "continue" else was.retry_after
    return replace(
        state, shedding=replace(was, ratio=ratio, unstepped_ratio=ratio, applied=ratio, retry_after=retry_after)
    )


def _shed(state: SubjectState, now: Now) -> SubjectState:
    """What adaptive admission comes to after the newest readings of all that count."""
    policy = next_record.policy_of(state)
    if policy.admission.mode == "binary" and state.shedding is OPEN:
        return state
    members = state.members.values()
    readings = [m.reading for m in members if m.reading is not None and not latches.is_ignored(m.reading, m.policy)]
    return replace(state, shedding=next_shedding(state.shedding, policy, readings, state.offered_load, now))


def _judged(member: Member) -> Member:
    """The member after its newest reading under its policy."""
    if (reading := member.reading) is None:
        return replace(member, status=latches.status(member.latches, member.policy)) if member.latches.names else member
    marks = thresholds.marks(member.policy, reading)
    pressure = thresholds.pressure(reading, marks)
    if pressure <= 1 and member.latches == NO_LATCHES:  # nothing is above its mark, and nothing is there to be released
        return replace(
            member, marks=marks, status=Status.INACTIVE, pressure=pressure, counted_diagnosis=None, stalled=False
        )
    judged = latches.next_latches(member.latches, reading, marks, member.policy)
    counts = latches.diagnosis_counts(reading, judged, member.policy)
    return replace(
        member,
        latches=judged,
        marks=marks,
        status=latches.status(judged, member.policy),
        pressure=0.0 if latches.is_ignored(reading, member.policy) else pressure,
        counted_diagnosis=reading.diagnosis if counts else member.counted_diagnosis if judged.diagnosed.on else None,
        stalled=_stalled(member, judged, reading, marks),
        causes=frozenset() if judged.pending.on and not member.latches.pending.on else member.causes,
    )


def _known(key: ConsumerKey, policy: Policy, carried: Mapping[ConsumerKey, Carried], now: Now) -> Member:
    """A member that was not here yet, with what was stored of it."""
    return _resumed(Member(key=key, policy=policy, joined_at=now.mono), carried.get(key), now)


def _resumed(member: Member, carried: Carried | None, now: Now) -> Member:
    """The member with the losses that the store says are reported: none of them is reported again."""
    if carried is None:
        return member
    reported, at = member.lost_reported, member.lost_reported_at
    if carried.lost > reported:
        reported, at = carried.lost, now.mono
    return replace(
        member,
        # One that is read already counts by itself what another replica reported, and does not report it again.
        lost=member.lost if member.reading else max(member.lost, carried.lost),
        lost_reported=reported,
        lost_reported_at=at if member.reading else member.lost_reported_at,
        account=member.account or carried.account,
        causes=member.causes | frozenset(carried.causes),
    )


def _restored(member: Member, names: tuple[str, ...], carried: Carried) -> Member:
    """The member with its stored latches set, as it keeps its last status until it is read again."""
    stored = {name: Latch(on=True) for name in names if name in Latches.__struct_fields__}
    member = replace(
        member,
        latches=replace(member.latches, **stored),
        counted_diagnosis=member.counted_diagnosis or carried.counted,
        stalled=member.stalled or carried.stalled,
    )
    return _judged(member)


def _shed_before(record: Record, now: Now) -> Shedding:
    """What was shed goes on, and where somebody was shed lately that is so for a while longer."""
    shedding = SHEDDING in record.reasons
    verdict = record.admission
    return Shedding(verdict.admit_ratio, verdict.retry_after, shedding, refused_at=now.mono if shedding else None)


def _stalled(member: Member, latches: Latches, reading: Reading, marks: Marks) -> bool:
    """Whether a stall set or holds the latency latch: until that is off, or a latency that was measured holds it."""
    if not latches.latency_p95.on:
        return False
    release = marks.latency.overload * member.policy.recovery_threshold
    if reading.stalled and reading.latency is not None and reading.latency > release:
        return True
    return member.stalled and not reading.latency_evidence
