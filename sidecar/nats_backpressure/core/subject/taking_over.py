"""The state of a subject after another replica's record was read, or what is stored was found not to be the newest."""

from __future__ import annotations

import math

from msgspec.structs import replace

from nats_backpressure.core.model.member import NOTHING_CARRIED
from nats_backpressure.core.status.alert_times import running_since
from nats_backpressure.core.subject import next_record
from nats_backpressure.core.subject.inputs import RecordCreated, RecordFollowed, RecordLoaded
from nats_backpressure.core.subject.left_epochs import is_left_behind
from nats_backpressure.core.subject.newest_record import agrees, is_lost, lost_since
from nats_backpressure.core.subject.restart_facts import (
    new_member,
    stored_shedding,
    with_latches_of,
    with_reported_losses,
)
from nats_backpressure.core.subject.state import SubjectState, with_members, without_announced_rejections
from nats_backpressure.protocol.timestamps import Now

UNSENT_WAIT = 0.3
"""Seconds for which the unsent events of another replica's record are left to it; then each replica publishes them."""


def taken_over(state: SubjectState, stored_as: RecordLoaded | RecordFollowed, now: Now) -> SubjectState:
    """The state with a stored record as its own: status, reasons and incident are the record's; metrics and grants stay
    its own, and of the latches that the record lacks those whose value is above the mark now."""
    record, revision = stored_as.record, stored_as.revision
    carried, stored = dict(record.carried), dict(record.latched)
    members = {key: with_reported_losses(member, carried.get(key), now) for key, member in state.members.items()}
    joining = stored.keys() - members.keys() - stored_as.unwatched
    members |= {key: new_member(key, state.policy, carried, now) for key in joining}
    other = state.record is not None and record.incident not in (None, state.record.incident)
    members = {
        key: with_latches_of(
            member,
            stored.get(key, ()),
            carried.get(key, NOTHING_CARRIED),
            now,
            other_incident=other,
            gone=key in stored_as.absent,
        )
        for key, member in members.items()
    }
    unproved = record.unknown or record.stale
    reported = 0 if state.record is None else lost_since(record, state.record.seq)
    before = () if state.record is None else state.record.unsent
    known = frozenset(event.id for event in record.unsent if event in before)
    if state.record is None:
        state = replace(state, unproved_at_load=unproved)
    else:  # another replica stored it
        if record.status is not state.record.status:
            state = replace(state, status_before=state.record.status, changed_elsewhere_at=now.mono)
        state = replace(
            state,
            publish_after=state.publish_after if len(known) == len(record.unsent) else now.mono + UNSENT_WAIT,
            proved_elsewhere_at=state.proved_elsewhere_at if unproved else now.mono,
            unknown_elsewhere_at=now.mono if record.unknown else -math.inf,
        )
    seen_at = state.newer_seen_at if revision == state.revision else None
    state = replace(
        with_members(state, members),
        carried=carried,
        unwatched=stored_as.unwatched,
        departed_lost=int(max(0, state.departed_lost - reported)),
        left_since=None,
        running_since=running_since(record.alerts, state.running_since, now.mono),
        member_deleted=state.member_deleted
        and state.record is not None
        and record.announced is state.record.announced,  # else its writer has announced the fall
        written_at=now.mono,
        record=record,
        revision=revision,
        newer_seen_at=None if not stored_as.newer else now.mono if seen_at is None else seen_at,
        unstored=False,
        must_reload=False,
        doubted=False,
        overwritten=False,
        publishing=state.publishing if state.publishing in known else None,
        published=state.published & known,
        # Its writer has numbered its events; if the stream is ahead of these, the next publish shows it.
        renumber_from=state.renumber_from if revision == state.revision else None,
        empty_since=None if members else now.mono,
        shedding=stored_shedding(record, now, state.shedding),
    )
    return without_announced_rejections(state)


def with_created(state: SubjectState, input_: RecordCreated, now: Now, *, stored: bool) -> SubjectState:
    """The state where what is stored is not the newest record. `stored`: there is one, which is to be replaced."""
    ours, missed = state.record, state.followed > input_.revision
    if state.newer_seen_at is not None or state.unstored or (ours is not None and is_left_behind(state, ours)):
        ours = None  # of a newer version whose replicas are gone, not stored at all, or its next ids were given
    state = replace(
        state,
        loading=False,
        must_reload=missed,
        doubted=missed,
        followed=0,
        newer_seen_at=None,
        publishing=None,
        published=frozenset() if ours is None else state.published,
    )
    if ours is not None:
        published = frozenset(event.id for event in ours.unsent if event.id in state.published)
        if agrees(ours, input_):  # what the stream has, of any replica, is not published again; what it lost is
            published = frozenset(event.id for event in ours.unsent if event.seq <= input_.seq)
        unpublished = len(ours.unsent) - len(published)
        if not unpublished and not state.members and not stored:  # another replica has removed the key
            return replace(state, record=None, removing=True)
        older = input_.revision < state.revision or not state.revision
        if agrees(ours, input_) and not (older and is_lost(ours, input_)):
            renumber_from = (input_.epoch, ours.seq - unpublished) if older else state.renumber_from
            return replace(
                state, revision=input_.revision, overwritten=True, renumber_from=renumber_from, published=published
            )
    return replace(
        state,
        record=next_record.first_record(state, input_, now),
        revision=input_.revision,
        unstored=True,
        risen_elsewhere_at=now.mono if ours is not None and input_.status > ours.status else -math.inf,
        overwritten=False,
        published=frozenset(),
        publish_after=-math.inf,
        renumber_from=None,  # of the record before
    )
