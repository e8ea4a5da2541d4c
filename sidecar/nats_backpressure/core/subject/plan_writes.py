"""Plans what comes next of a subject after an input: which load, which write, and which event to publish."""

from __future__ import annotations

import math

from msgspec.structs import replace

from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.core.model.proofs import NO_PROOFS, Proofs
from nats_backpressure.core.status.alert_times import aged
from nats_backpressure.core.status.freshness import Limits
from nats_backpressure.core.subject import next_record
from nats_backpressure.core.subject.inputs import (
    DropSubject,
    Effect,
    LoadRecord,
    PublishEvent,
    RemoveKey,
    WriteRecord,
)
from nats_backpressure.core.subject.left_changes import (
    is_kept_back,
    is_left_to_writer,
    is_named_here,
    is_restored_here,
    takes_back,
    with_kept_back,
    with_left_change,
    without_left_change,
)
from nats_backpressure.core.subject.other_policies import (
    is_anybodys,
    is_left_to_others,
    is_to_be_marked,
    is_unseen_elsewhere,
    with_difference,
)
from nats_backpressure.core.subject.record import Record, Writing
from nats_backpressure.core.subject.state import REMOVE_AFTER, SubjectState, alerts_seen_to, judged_status, newest_of
from nats_backpressure.protocol.timestamps import Now

RELOAD_INTERVAL = 2.0
"""Seconds between two readings of a record that a newer version stores."""


class StepContext(Limits, frozen=True):
    """What a step needs to know besides the state: the freshness limits, which process writes, what else was read."""

    writer: str = ""
    """Unique for this process; part of each write's nonce."""
    newest_read_at: float | None = None
    """Monotonic time of the newest reading of anything, which the heartbeat reports; None before the first."""
    proofs: Proofs = NO_PROOFS
    """What looks at the streams of the subject prove."""
    policy_mark: str = ""
    """Of the settings file whose policies are in force here."""
    other_marks: frozenset[str] | None = frozenset()
    """Those of the other replicas that can write; None while it is too early to know."""
    narrower_marks: frozenset[str] = frozenset()
    """Those of them whose replicas do not watch all consumers of the subject that this one has read, while this one
    sees all that the record names."""
    writer_seen_at: float | None = None
    """Monotonic time of the newest sign of the replica to which changes of the subject are left, see `left_changes`;
    -inf where it is not known yet which one that is, None where this replica writes them."""
    others_are_cut_off: bool = False
    """Whether other replicas may see what this one does not, and it would not know."""
    connected_for: float = math.inf
    """Seconds for which the connection is there, as far as round trips prove it."""


def plan_writes(
    state: SubjectState, now: Now, context: StepContext, on_tick: bool, conclude: bool = True
) -> tuple[SubjectState, list[Effect]]:
    """Start what is missing to store and publish the state: one load, or one write and one publish at a time. Nothing
    is written unless `conclude`."""
    if state.removing:
        return state, [] if state.record is not None else [DropSubject(state.subject)]
    if state.record is None or state.must_reload:
        if state.loading or (state.record is None and not state.members):
            return state, []
        return replace(state, loading=True), [LoadRecord(state.subject, doubted=state.doubted)]
    if state.newer_seen_at is not None:
        return _beside_newer(state, state.newer_seen_at, now, context)
    effects: list[Effect] = []
    if state.writing is None and conclude and not _is_older_than_rise(state, now, context):
        state, effects = _plan_write(state, now, context, on_tick)
        if state.removing:
            return state, effects
    if now.mono >= state.publish_after and (event := _next_to_publish(state)) is not None:
        state = replace(state, publishing=event.id)
        effects.append(PublishEvent(state.subject, event))
    return state, effects


def _plan_write(
    state: SubjectState, now: Now, context: StepContext, on_tick: bool
) -> tuple[SubjectState, list[Effect]]:
    """Write what has changed, unless that is left to another replica."""
    if state.member_deleted and state.record is not None and judged_status(state) >= state.record.announced:
        state = replace(state, member_deleted=False)  # nothing fell, or it rose again
    waits = state.record is not None and _waits_for_events(state.record)
    if state.dismissed and state.record is not None and not waits:
        return replace(state, removing=True), [RemoveKey(state.subject, state.revision)]  # whichever replica was asked
    empty_for = 0.0 if state.empty_since is None else now.mono - state.empty_since
    removal = empty_for >= (2 if waits else 1) * REMOVE_AFTER  # what can never be published keeps no key for ever
    change = None if removal else _next_change(state, now, context, on_tick)
    state = with_kept_back(state, now, change is not None and context.others_are_cut_off)
    others = is_left_to_others(state.record, context.policy_mark, context.other_marks, context.narrower_marks)
    if others and not is_unseen_elsewhere(state, now):
        state, reports = with_difference(state, change, now)
        return state, [*reports]
    if change is None and not removal:
        return with_difference(without_left_change(state), None, now)[0], []
    effects: list[Effect] = []
    kept_back = is_kept_back(state, now, context.connected_for)
    unproved = kept_back and change is not None and change.record.unknown
    back = change is not None and takes_back(state, change.record.status, now)
    if unproved or back or is_left_to_writer(state, now, context.writer_seen_at, kept_back):
        state = with_left_change(state, now)
        if not back:  # else it is judged alike in a moment
            state, reports = with_difference(state, change, now)
            effects += reports
        change = next_record.restored_record(state, now) if is_restored_here(state, now) else None
        if change is None and is_named_here(state, now):
            change = next_record.named_record(state)
        if change is None:
            return state, effects
    if change is None:
        return replace(state, removing=True), [RemoveKey(state.subject, state.revision)]
    state, writing = _with_write(state, change, now, context)
    return state, [*effects, WriteRecord(state.subject, writing)]


def _waits_for_events(record: Record) -> bool:
    """Whether an event is to be published before the key of a subject without consumers goes."""
    return bool(record.unsent) or any(alert.state == "firing" for alert in record.alerts)


def _next_change(state: SubjectState, now: Now, context: StepContext, on_tick: bool) -> next_record.Change | None:
    """What is to be stored by what is known here, whichever replica stores it."""
    marks = context.other_marks, context.narrower_marks
    mark = on_tick and is_to_be_marked(state.record, context.policy_mark, *marks)
    change = next_record.next_record(state, now, context, context.newest_read_at, on_tick, context.proofs, mark)
    known = change is not None and not change.record.unknown
    if known and is_anybodys(state, context.policy_mark, context.other_marks):
        return next_record.restored_record(state, now)
    return change


def _is_older_than_rise(state: SubjectState, now: Now, context: StepContext) -> bool:
    """Whether all that was read may be older than a rise that another replica published."""
    newest = newest_of(state, context.proofs)
    if newest is None or newest > state.risen_elsewhere_at:
        return False
    return not next_record.is_unobserved(state, now, context, context.proofs)


def _beside_newer(
    state: SubjectState, seen_at: float, now: Now, context: StepContext
) -> tuple[SubjectState, list[Effect]]:
    """A newer version stores this subject: read again what it stored, and write nothing. Once it has shown no sign for
    `unknown_after`, start from the events stream in its place."""
    if state.empty_since is not None:
        gone = now.mono - state.empty_since >= REMOVE_AFTER
        return state, [DropSubject(state.subject)] if gone else []
    silent = now.mono - seen_at >= context.unknown_after
    if state.loading or not (silent or now.mono - state.written_at >= RELOAD_INTERVAL):
        return state, []
    return replace(state, loading=True), [LoadRecord(state.subject, replacing=state.revision if silent else 0)]


def _with_write(
    state: SubjectState, change: next_record.Change, now: Now, context: StepContext
) -> tuple[SubjectState, Writing]:
    writing = Writing(
        replace(
            change.record,
            policy_mark=(change.restored and change.record.policy_mark) or context.policy_mark,
            alerts=aged(change.record.alerts, state.running_since, alerts_seen_to(state, now, context, context.proofs)),
        ),
        state.revision,
        nonce=f"{context.writer}.{state.write_count}",
        losses=change.losses,
        departed_lost=change.departed_lost,
        started_at=now.mono,
    )
    state = replace(
        state,
        writing=writing,
        write_count=state.write_count + 1,
        written_at=now.mono,
        member_deleted=False,
        differs_since=None,
        left_since=None,
        difference_reported=False,
        renumber_from=None,
    )
    return state, writing


def _next_to_publish(state: SubjectState) -> SubjectEvent | None:
    """The first stored event that is not published; none that the write under way gives another number."""
    if state.publishing is not None or state.renumber_from is not None or state.record is None:
        return None
    event = next((event for event in state.record.unsent if event.id not in state.published), None)
    if event is None or state.writing is None or any(event.id == e.id for e in state.writing.record.unsent):
        return event
    return None
