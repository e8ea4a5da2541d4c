"""The carried facts: what a record stores of each consumer, and how a new process continues with it."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from nats_backpressure.core.admission.adaptive import SHEDDING, Shedding
from nats_backpressure.core.model.member import (
    CAUSES,
    NO_LATCHES,
    NOTHING_CARRIED,
    STORED_CAUSES,
    Carried,
    Latch,
    Latches,
    Member,
)
from nats_backpressure.core.signals.diagnosis import confirmed
from nats_backpressure.core.signals.incarnations import is_of_another, marks_match
from nats_backpressure.core.status.freshness import Limits
from nats_backpressure.core.status.latches import next_latches
from nats_backpressure.core.status.latches import status as status_of
from nats_backpressure.core.subject.member_update import evaluated
from nats_backpressure.core.subject.record import CARRIED_LIMIT, Loss, Record
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Action, ConsumerKey, Diagnosis, Status

CARRY_EVERY = 30.0
"""Seconds without a write after which a change of the carried facts (a diagnosis above all) is written by itself."""
ALERTS_EVERY = 10.0
"""The same while an alert is pending, or in a break: what was measured since the last write is lost with a process."""
ACCOUNT_EVERY = 2.0
"""The same for a backlog that grew: losses of it while no sidecar runs are counted from what was stored."""
BACKLOG_STEP, BACKLOG_SLACK = 1.2, 10
"""Factor, and messages beside it, by which a backlog must exceed what is stored of it to be worth such a write."""
CAPACITY_STEP = 1.2
"""Factor by which the learnt capacity must differ from the stored one to be worth such a write."""


def carried_write_due(state: SubjectState, now: Now) -> bool:
    """Whether the carried facts alone are worth a write: after CARRY_EVERY any change; after ALERTS_EVERY how long a
    pending alert has held, or a break of one has lasted; after ACCOUNT_EVERY a backlog that grew, or a message that was
    returned with a delayed NAK."""
    record = state.record
    if record is None or record.unknown or now.mono - state.written_at < ACCOUNT_EVERY:
        return False
    if now.mono - state.written_at >= ALERTS_EVERY and any(
        alert.state == "pending" or alert.over_since is not None for alert in record.alerts
    ):
        return True
    every = now.mono - state.written_at >= CARRY_EVERY
    if not every and not any(_may_be_due(member) for member in state.members.values()):
        return False
    stored = dict(record.carried)
    room = len(stored) < CARRIED_LIMIT
    pairs = [(stored.get(key, NOTHING_CARRIED), m) for key, m in state.members.items() if room or key in stored]
    if any(_backlog_grew(before, member) or _more_returned(before, member) for before, member in pairs):
        return True
    if not every:
        return False
    reading = state.worst.reading if state.worst else None
    if reading is not None and confirmed(reading.lasting_diagnosis, record.status) is not record.diagnosis:
        return True
    return any(_facts_moved(before, member) for before, member in pairs)


def _may_be_due(member: Member) -> bool:
    """Avoids the comparison for most subjects: this runs on every tick."""
    if member.account is not None and member.account.pending > BACKLOG_SLACK:
        return True
    return member.reading is not None and member.reading.handed_back > 0


def _more_returned(stored: Carried, member: Member) -> bool:
    """Whether more are than the deliveries since what is stored leave of it."""
    if (reading := member.reading) is None:
        return False
    if is_of_another(stored.made, reading.made):
        return reading.handed_back > 0
    again = 0 if stored.delivered is None else max(0, reading.delivered_consumer - stored.delivered)
    return reading.handed_back > max(0, stored.handed_back - again)


def _backlog_grew(carried: Carried, member: Member) -> bool:
    """Whether much more waits than the stored account could still explain."""
    stored, account = carried.account, member.account
    if account is None:
        return False
    same = stored is not None and marks_match(stored.kind, account.kind)
    known = stored.pending - (account.given - stored.given) if stored is not None and same else 0
    return account.pending > max(0, known) * BACKLOG_STEP + BACKLOG_SLACK


def _facts_moved(stored: Carried, member: Member) -> bool:
    """Whether the diagnosis is another, or a capacity that moves a mark differs much."""
    reading = member.reading
    if reading is None:
        return False
    if reading.lasting_diagnosis is not None and reading.lasting_diagnosis is not stored.diagnosis:
        return True
    before, capacity = stored.capacity, reading.capacity
    if capacity is None or member.policy.pending.overload_seconds is None:
        return False
    return before is None or not before / CAPACITY_STEP <= capacity <= before * CAPACITY_STEP


def facts_to_store(
    state: SubjectState, latched: frozenset[ConsumerKey], losses: tuple[Loss, ...]
) -> tuple[tuple[ConsumerKey, Carried], ...]:
    """The facts of CARRIED_LIMIT consumers at most: those in `latched` first, then by how much waits. `losses` are the
    losses that the same write reports."""
    reported, before = {loss.key: loss for loss in losses}, state.carried
    read = {
        key: carried_of(m, before.get(key, NOTHING_CARRIED), reported.get(key))
        for key, m in state.members.items()
        if m.reading is not None
    }
    entries = [(key, facts) for key, facts in (before | read).items() if facts != NOTHING_CARRIED]

    def order(entry: tuple[ConsumerKey, Carried]) -> tuple[bool, int, ConsumerKey]:
        key, facts = entry
        return key not in latched, -facts.account.pending if facts.account else 0, key

    return tuple(sorted(entries, key=order)[:CARRIED_LIMIT])


def carried_of(member: Member, before: Carried = NOTHING_CARRIED, loss: Loss | None = None) -> Carried:
    """The facts of one consumer, once `loss` is reported. `before` is what was loaded: its diagnosis stays until there
    is another one."""
    reading = member.reading
    if reading is not None and is_of_another(before.made, reading.made):
        before = NOTHING_CARRIED
    lasting = reading.lasting_diagnosis if reading else None
    facts = Carried(
        diagnosis=lasting or before.diagnosis,
        diagnosed_for=reading.diagnosed_for if reading and lasting else before.diagnosed_for,
        capacity=reading.capacity if reading else None,
        account=loss.account if loss else member.account,
        lost=loss.lost if loss else member.lost_reported,
        causes=tuple(cause for cause in CAUSES if cause in member.causes)[:STORED_CAUSES],
        counted=member.counted_diagnosis,
        stalled=member.stalled,
        delivered=reading.delivered_consumer if reading and reading.handed_back else None,
        handed_back=reading.handed_back if reading else 0,
        history=reading.history if reading else 0,
    )
    return replace(facts, made=reading.made) if reading is not None and facts != NOTHING_CARRIED else facts


def awaits_reading(state: SubjectState, now: Now, limits: Limits) -> bool:
    """Whether a consumer that is known from the record was not read since the start, and may still be."""
    members = state.members
    return now.mono < state.unread_since + limits.unknown_after and any(
        key not in members or members[key].reading is None
        for key in (*state.carried, *members)
        if key not in state.unwatched
    )


def new_member(key: ConsumerKey, policy: Policy, carried: Mapping[ConsumerKey, Carried], now: Now) -> Member:
    """A member that joins, with the facts that were stored of it."""
    return with_reported_losses(Member(key=key, policy=policy, joined_at=now.mono), carried.get(key), now)


def with_reported_losses(member: Member, carried: Carried | None, now: Now) -> Member:
    """The member with the losses that the record marks as reported: none of them is reported again."""
    if carried is None:
        return member
    reported, at = member.lost_reported, member.lost_reported_at
    if carried.lost > reported:
        reported, at = carried.lost, now.mono
    return replace(
        member,
        # A member that is read counts for itself what another replica reported, and does not report it again.
        lost=member.lost if member.reading else max(member.lost, carried.lost),
        lost_reported=reported,
        lost_reported_at=at if member.reading else member.lost_reported_at,
        account=member.account or carried.account,
        causes=member.causes | frozenset(carried.causes),
    )


def with_released_latches_stored(member: Member, names: tuple[str, ...]) -> Member:
    """The member after a write that stored the latches `names` as set: what is stored as released needs no memory of
    its hold. A latch that was released during the write is stored as set, and still needs it."""
    by_name = {name: getattr(member.latches, name) for name in {*member.latches.names, *names}}
    latches = Latches(**by_name)
    return member if latches == member.latches else replace(member, latches=latches)


def with_latches_of(
    member: Member,
    names: tuple[str, ...],
    carried: Carried,
    now: Now,
    *,
    other_incident: bool = False,
    gone: bool = False,
) -> Member:
    """The member with the latches of a stored record, `names`. Without a reading it has the status that they give.
    `other_incident`: the record's is not the one that we knew, so that no hold from before it goes on. `gone`: the
    newest list lacks the consumer, so that its last reading shows nothing about now.

    Of those that it lacks only the ones whose value is above its mark now stay set: otherwise a recovery of another
    replica would be followed by a rise that no value supports. A reading from before the hold of that recovery shows
    nothing about now, since this process may have been suspended. A latch that was released here, which another write
    hid, is released again; the hold of one that was not set here begins with the next reading.
    """
    reading, was = member.reading, member.latches
    marks = member.marks
    recent = reading is not None and not gone and now.mono - reading.at.mono <= member.policy.recovery_hold_seconds
    above = next_latches(NO_LATCHES, reading, marks, member.policy) if recent and reading and marks else NO_LATCHES
    stored = {name: replace(getattr(was, name), on=True) for name in names if name in Latches.__struct_fields__}
    released = {
        name: Latch()
        for name in Latches.__struct_fields__
        if name not in names and not (getattr(was, name).on and getattr(above, name).on)
    }
    set_elsewhere = {name: Latch(on=True) for name in stored if other_incident or getattr(was, name) == Latch()}
    counted, stalled = member.counted_diagnosis or carried.counted, member.stalled or carried.stalled
    after = _with_latches(member, replace(was, **stored, **released), counted, stalled)
    if not recent:
        return after
    after = evaluated(after)
    return _with_latches(after, replace(after.latches, **set_elsewhere), counted, after.stalled or carried.stalled)


def _with_latches(member: Member, latches: Latches, counted: Diagnosis | None, stalled: bool) -> Member:
    """The member with latches that no reading of its own set or released."""
    if latches == member.latches:
        return member
    if member.reading is None and not latches.names:
        return replace(member, latches=latches, status=Status.UNKNOWN)
    return replace(
        member,
        latches=latches,
        status=status_of(latches, member.policy),
        counted_diagnosis=counted if latches.diagnosed.on else None,
        stalled=stalled and latches.latency_p95.on,
    )


def stored_shedding(record: Record, now: Now, was: Shedding) -> Shedding:
    """The stored admit ratio goes on, with what was measured here; where a request was refused recently, `shedding`
    lasts a while longer."""
    shedding, stored = SHEDDING in record.reasons, record.admission
    refused_at = now.mono if shedding else None
    if was.at is None:
        return Shedding(stored.admit_ratio, stored.retry_after, shedding, refused_at=refused_at)
    # Under `observe` no ratio is stored, nor while one with binary admission rejects.
    if stored.would is not None or stored.action is Action.REJECT:
        return replace(was, shedding=shedding, refused_at=refused_at)
    return replace(
        was,
        ratio=stored.admit_ratio,
        unstepped_ratio=stored.admit_ratio,
        retry_after=stored.retry_after,
        shedding=shedding,
        refused_at=refused_at,
    )
