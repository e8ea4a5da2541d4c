"""Decides whether a subject needs a new record, and returns it."""

from __future__ import annotations

import math
from collections.abc import Collection

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.admission import gateway_admission
from nats_backpressure.core.model.admission import GatewayAdmission
from nats_backpressure.core.model.member import NO_LATCHES, Member
from nats_backpressure.core.model.proofs import NO_PROOFS, Proofs
from nats_backpressure.core.status.freshness import Limits, freshness, status_proof
from nats_backpressure.core.subject.admitting import counted
from nats_backpressure.core.subject.inputs import RecordCreated
from nats_backpressure.core.subject.record import Loss, Record
from nats_backpressure.core.subject.record_builder import RecordBuilder
from nats_backpressure.core.subject.restart_facts import carried_write_due, facts_to_store
from nats_backpressure.core.subject.state import (
    SubjectState,
    admission_status,
    alerts_seen_to,
    deciding_policy,
    is_surely_empty,
    newest_of,
)
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Freshness, Status


class Change(Struct, frozen=True):
    """What to store next."""

    record: Record
    losses: tuple[Loss, ...] = ()
    """The losses that its events report."""
    departed_lost: int = 0
    """The same for consumers that are gone."""
    restored: bool = False
    """Whether nothing in it was judged here: it stays under the policies that judged it."""


def first_record(state: SubjectState, created: RecordCreated, now: Now) -> Record:
    """The record of a subject for which nothing is stored: its status is that of the last published event."""
    status = max(created.status, Status.INACTIVE)
    return Record(
        subject=state.subject,
        epoch=created.epoch,
        seq=created.seq,
        status=status,
        announced=status,
        unknown=created.lost,
        unknown_announced=created.lost,
        since=now.wall,
        incident=created.incident,
        admission=gateway_admission.admission_at_status(state.policy, status),
    )


def next_record(
    state: SubjectState,
    now: Now,
    limits: Limits,
    newest_read_at: float | None = None,
    on_tick: bool = False,
    proofs: Proofs = NO_PROOFS,
    mark: bool = False,
) -> Change | None:
    """The record to store next, or None while the stored one still holds.

    `newest_read_at`: monotonic time at which anything was last read. `on_tick`: whether only time passed; only then the
    carried facts alone can be worth a write. `proofs`: what looks at the streams prove. `mark`: whether a record that
    is proved is stored again if only to show who judges it.
    """
    facts_due = (on_tick and carried_write_due(state, now)) or (mark and state.newest_proof is not None)
    if (
        not facts_due
        and is_quiescent(state)
        and not is_unobserved(state, now, limits, proofs)
        and not is_stale_alone(state, limits, newest_read_at, proofs)
    ):
        return None
    return build_record(state, now, limits, newest_read_at, facts_due, proofs)


def is_quiescent(state: SubjectState) -> bool:
    """Whether no latch is set, no event waits, and all of that is stored. By far the most frequent case: while there is
    proof, neither a calm reading nor time alone changes anything then."""
    record = state.record
    if (
        record is None
        or record.status is not Status.INACTIVE
        or record.announced is not Status.INACTIVE
        or record.unknown
        or record.stale
        or record.unknown_announced
        or state.departed_lost
        or record.reasons
        or record.latched
        or record.unsent
        or record.override is not None
        or state.unstored
        or state.overwritten
        or state.newer_seen_at is not None
        or state.renumber_from is not None
        or state.rejections
        or any(alert.state != "resolved" for alert in record.alerts)
    ):
        return False
    for member in state.members.values():
        if member.status > Status.INACTIVE or member.latches != NO_LATCHES or member.lost > member.lost_reported:
            return False
        if member.policy.override or member.policy.alerts:
            return False
    if state.worst is None or state.worst.reading is None:
        return False
    admission = gateway_admission.admission_at_status(deciding_policy(state), Status.INACTIVE, state.shedding)
    return record.admission == admission and not state.shedding.shedding


def is_unobserved(state: SubjectState, now: Now, limits: Limits, proofs: Proofs = NO_PROOFS) -> bool:
    """Whether nothing proves the status any more: no member was read, or none of those that have this status, nor of
    those that count for gateways; and no other replica has stored it lately."""
    if state.newest_proof is None:
        if state.unread_since == -math.inf:
            return True
        since = max(state.unread_since, state.proved_elsewhere_at, state.reported_at)
        return now.mono >= since + limits.unknown_after
    if now.mono < state.proved_elsewhere_at + limits.unknown_after:
        return False
    if freshness(newest_of(state, proofs), now.mono, limits) is Freshness.UNKNOWN:
        return True
    return all(_is_lost(members, now, limits, proofs) for members in (state.members.values(), _counted(state)))


def _is_lost(members: Collection[Member], now: Now, limits: Limits, proofs: Proofs) -> bool:
    """Whether these have a status above inactive, and nothing proves it."""
    if all(member.status <= Status.INACTIVE for member in members):
        return False
    return freshness(status_proof(members, proofs), now.mono, limits) is Freshness.UNKNOWN


def _counted(state: SubjectState) -> Collection[Member]:
    """The members that count for gateways."""
    return state.members.values() if state.admitting is None else counted(state.members.values())


def is_stale_alone(
    state: SubjectState, limits: Limits, newest_read_at: float | None, proofs: Proofs = NO_PROOFS
) -> bool:
    """Whether what gateways are answered was already stale when something else was read. The heartbeat reports that
    later reading, so it proves nothing about this subject. Where all subjects age together, the heartbeat shows that by
    itself."""
    if newest_read_at is None or state.unstored or newest_read_at < state.proved_elsewhere_at + limits.unknown_after:
        return False
    if state.newest_proof is None and state.unread_since < newest_read_at:
        # Everything was read or tried since, and no member of this subject could be read.
        return freshness(state.reported_at, newest_read_at, limits) is not Freshness.KNOWN
    proof = status_proof(_counted(state), proofs)
    return proof is not None and freshness(proof, newest_read_at, limits) is not Freshness.KNOWN


def build_record(
    state: SubjectState,
    now: Now,
    limits: Limits,
    newest_read_at: float | None = None,
    facts_due: bool = False,
    proofs: Proofs = NO_PROOFS,
) -> Change | None:
    """What to store if it differs from what is stored; with `facts_due` also if only the carried facts differ."""
    assert state.record is not None
    builder = RecordBuilder(state, state.record, now)
    if is_unobserved(state, now, limits, proofs):
        if not builder.record.unknown:
            builder.report_losses()
        builder.mark_unknown()
        if is_surely_empty(state, now):  # the rules went with the consumers, so nothing else would resolve an alert
            builder.update_alerts(limits, {})
    elif state.newest_proof is not None and not (
        state.record.unknown and state.newest_proof <= state.unknown_elsewhere_at
    ):
        builder.mark_known()
        builder.report_losses()
        builder.update_status()
        if (
            freshness(newest_of(state, proofs), now.mono, limits) is Freshness.KNOWN
        ):  # else time alone must change no alert
            builder.update_alerts(limits, alerts_seen_to(state, now, limits, proofs))
    builder.mark_stale(is_stale_alone(state, limits, newest_read_at, proofs))
    builder.report_rejections()
    builder.update_diagnosis()
    record = replace(builder.record, admission=_admission(state, builder.record))
    if record.unsent and all(event.id in state.published for event in record.unsent):
        record = replace(record, unsent=())
    first = state.unstored and state.newest_proof is not None
    if not (facts_due or first or state.overwritten or records_differ(record, state.record)):
        return None
    latched = frozenset(key for key, _ in record.latched)
    facts = facts_to_store(state, latched, builder.losses)
    return Change(replace(record, carried=facts), builder.losses, builder.departed_lost)


def restored_record(state: SubjectState, now: Now) -> Change | None:
    """Our last record, where it is not stored, or lists what is published: without anything that was judged since."""
    assert state.record is not None
    record = RecordBuilder(state, state.record, now).record
    if record.unsent and all(event.id in state.published for event in record.unsent):
        record = replace(record, unsent=())
    first = state.unstored and state.newest_proof is not None
    return Change(record, restored=True) if first or state.overwritten or record is not state.record else None


def named_record(state: SubjectState) -> Change | None:
    """Our last record, which names no consumers, with the facts of those; without anything that was judged since."""
    assert state.record is not None
    facts = facts_to_store(state, frozenset(), ())
    return Change(replace(state.record, carried=facts), restored=True) if facts else None


def records_differ(a: Record, b: Record) -> bool:
    """Whether two records differ in more than the carried facts and the diagnosis."""
    return a is not b and replace(a, carried=(), diagnosis=None) != replace(b, carried=(), diagnosis=None)


def _admission(state: SubjectState, record: Record) -> GatewayAdmission:
    """What is stored never opens by itself: each reader opens it by its own clock."""
    fresh = Freshness.UNKNOWN if record.unknown else Freshness.KNOWN
    policy = deciding_policy(state)
    status = admission_status(state, record.status)
    admission = gateway_admission.current_admission(policy, status, fresh, record.admission, 0.0, state.shedding)
    return gateway_admission.nearly_stored(admission, record.admission)
