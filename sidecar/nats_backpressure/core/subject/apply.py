"""What each input does to the state of a subject, before anything is planned for it: one function for each."""

from __future__ import annotations

import math
from functools import singledispatch

from msgspec.structs import replace

from nats_backpressure.core.admission.offered_load import with_report
from nats_backpressure.core.status.alert_times import COUNTED, running_since, unwatched
from nats_backpressure.core.subject.inputs import (
    ConsumerJoined,
    ConsumerLeft,
    ConsumerRead,
    ConsumersRead,
    Dismissed,
    EventConflict,
    EventDropped,
    EventSeen,
    EventSent,
    GatewayReported,
    Input,
    KeyRemoved,
    NewerHeartbeat,
    PolicyChanged,
    PolicyRefused,
    RecordCreated,
    RecordFollowed,
    RecordLoaded,
    RecordMissing,
    Tick,
    WriteConflict,
    WriteDone,
    WriteFailing,
)
from nats_backpressure.core.subject.left_epochs import counts, is_left_behind, is_news, with_known
from nats_backpressure.core.subject.member_update import evaluated
from nats_backpressure.core.subject.newest_record import continues, is_newest
from nats_backpressure.core.subject.read_members import with_readings
from nats_backpressure.core.subject.record import MOST_REJECTIONS
from nats_backpressure.core.subject.restart_facts import (
    new_member,
    with_released_latches_stored,
)
from nats_backpressure.core.subject.state import (
    SubjectState,
    judged_status,
    with_member,
    with_members,
    without_announced_rejections,
)
from nats_backpressure.core.subject.taking_over import taken_over, with_created
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Status

ANY_REVISION = 2**64
"""Above every revision."""


@singledispatch
def apply(input_: Input, state: SubjectState, now: Now) -> SubjectState:
    """The state after an input, before anything is planned for it. Raises TypeError for what is no input."""
    raise TypeError(f"{type(input_).__name__} is no input of a subject")


@apply.register
def _(input_: ConsumerJoined, state: SubjectState, now: Now) -> SubjectState:
    member = state.members.get(input_.key)
    if member is None:
        member = new_member(input_.key, input_.policy, state.carried, now)
    elif member.policy == input_.policy:
        return state
    else:
        member = evaluated(replace(member, policy=input_.policy))
    state = replace(state, empty_since=None, removing=False, dismissed=False)
    if member.status is Status.UNKNOWN:  # it decides nothing yet: very many may join at the start
        return replace(state, members={**state.members, member.key: member})
    return with_member(state, member)


@apply.register
def _(input_: ConsumerRead, state: SubjectState, now: Now) -> SubjectState:
    return with_readings(state, (input_.reading,), now)


@apply.register
def _(input_: ConsumersRead, state: SubjectState, now: Now) -> SubjectState:
    return with_readings(state, input_.readings, now)


@apply.register
def _(input_: ConsumerLeft, state: SubjectState, now: Now) -> SubjectState:
    if input_.key not in state.members:
        return state
    members = {key: member for key, member in state.members.items() if key != input_.key}
    lost = state.departed_lost + state.members[input_.key].unreported
    carried = {key: one for key, one in state.carried.items() if key != input_.key}
    before = judged_status(state)
    state = with_members(replace(state, carried=carried, departed_lost=lost), members)
    if members and not input_.exists and judged_status(state) < before:
        state = replace(state, member_deleted=True)
    return state if members else replace(state, unread_since=-math.inf, empty_since=now.mono)


@apply.register
def _(input_: PolicyChanged, state: SubjectState, now: Now) -> SubjectState:
    return replace(state, policy=input_.policy)


@apply.register
def _(input_: PolicyRefused, state: SubjectState, now: Now) -> SubjectState:
    rejections = {one.mark: one for one in (*state.rejections, input_.rejection)}
    newest = tuple(rejections.values())[-MOST_REJECTIONS:]
    return without_announced_rejections(replace(state, rejections=newest))


@apply.register
def _(input_: GatewayReported, state: SubjectState, now: Now) -> SubjectState:
    offered = with_report(state.offered_load, input_.offered, input_.admitted, input_.seconds, now.mono)
    return replace(state, offered_load=offered)


@apply.register
def _(input_: Dismissed, state: SubjectState, now: Now) -> SubjectState:
    return state if state.members else replace(state, dismissed=True, empty_since=state.empty_since or now.mono)


@apply.register
def _(input_: Tick, state: SubjectState, now: Now) -> SubjectState:
    return state


@apply.register
def _(input_: RecordLoaded, state: SubjectState, now: Now) -> SubjectState:
    ours, instead = state.record, input_.instead
    missed = state.followed > input_.revision
    state = replace(state, loading=False, must_reload=False, followed=0)
    if ours is not None and state.unstored and not input_.newer and input_.revision == state.revision:
        return replace(state, must_reload=missed, doubted=missed)  # the record that ours replaces
    if instead is not None and not input_.newer and is_left_behind(state, input_.record):
        # In an epoch that nobody knows: whoever knows that one, or ours as one that was left, would go on with it.
        return with_created(replace(state, unstored=True), instead, now, stored=True)
    if instead is None and not input_.newer and is_left_behind(state, input_.record):
        return replace(state, must_reload=True, doubted=True)
    if ours is not None and not state.unstored and not input_.newer and state.newer_seen_at is None:
        if instead is None and not continues(ours, input_.record):
            return replace(state, must_reload=True, doubted=True)
        later, went_back = input_.revision > state.revision > 0, input_.revision < state.revision
        if instead is not None and not is_newest(ours, input_.record, instead, later, went_back):
            return with_created(state, instead, now, stored=True)
    state = taken_over(state, input_, now)
    return replace(state, must_reload=True, doubted=True) if missed else state


@apply.register
def _(input_: RecordFollowed, state: SubjectState, now: Now) -> SubjectState:
    ours, own = state.record, state.writing is not None and state.writing.nonce == input_.nonce
    if input_.revision <= state.revision or own:
        return state
    if state.loading:
        return replace(state, followed=max(state.followed, input_.revision))
    free = ours is None or state.unstored or input_.newer or state.newer_seen_at is not None
    left = not input_.newer and is_left_behind(state, input_.record)
    if not left and (free or (ours is not None and continues(ours, input_.record))):
        state = replace(state, writing=None, removing=False)
        return taken_over(state, input_, now)
    return replace(state, must_reload=True, doubted=True, writing=None)


@apply.register
def _(input_: NewerHeartbeat, state: SubjectState, now: Now) -> SubjectState:
    return state if state.newer_seen_at is None else replace(state, newer_seen_at=now.mono)


@apply.register
def _(input_: RecordCreated, state: SubjectState, now: Now) -> SubjectState:
    return with_created(state, input_, now, stored=False)


@apply.register
def _(input_: WriteDone, state: SubjectState, now: Now) -> SubjectState:
    if state.writing is None or state.writing.nonce != input_.nonce:
        return state
    record = state.writing.record
    unsent = frozenset(event.id for event in record.unsent)
    before = () if state.record is None else state.record.unsent
    others = any(event.id in unsent and event.id not in state.published for event in before)
    stored = dict(record.latched)
    members = {key: with_released_latches_stored(member, stored.get(key, ())) for key, member in state.members.items()}
    for loss in state.writing.losses:
        if (member := members.get(loss.key)) is not None:
            members[loss.key] = replace(
                member, lost_reported=loss.lost, lost_reported_at=now.mono, account=loss.account
            )
    started_at = state.writing.started_at
    unseen_for = max(0.0, now.mono - started_at - COUNTED)  # nothing is evaluated while a write is under way
    since = running_since(record.alerts, unwatched(state.running_since, unseen_for), started_at + unseen_for)
    state = replace(
        with_members(state, members),
        departed_lost=state.departed_lost - state.writing.departed_lost,
        record=record,
        revision=input_.revision,
        running_since=since,
        writing=None,
        unstored=False,
        overwritten=False,
        publish_after=state.publish_after if others else -math.inf,  # who wrote those publishes them
        published=state.published & unsent,
        publishing=state.publishing if state.publishing in unsent else None,
    )
    return without_announced_rejections(state)


@apply.register
def _(input_: WriteFailing, state: SubjectState, now: Now) -> SubjectState:
    if state.writing is None or state.writing.nonce != input_.nonce or state.writing.failing:
        return state
    return replace(state, writing=replace(state.writing, failing=True))


@apply.register
def _(input_: WriteConflict, state: SubjectState, now: Now) -> SubjectState:
    if state.writing is None or state.writing.nonce != input_.nonce:
        return state
    return replace(state, must_reload=True, writing=None)


@apply.register
def _(input_: RecordMissing, state: SubjectState, now: Now) -> SubjectState:
    return replace(
        state,
        must_reload=True,
        doubted=True,
        writing=None,
        revision=0 if input_.recreated else state.revision,
        followed=ANY_REVISION if state.loading else 0,  # what is being read may be older than this
    )


@apply.register
def _(input_: EventSeen, state: SubjectState, now: Now) -> SubjectState:
    if not is_news(state, input_.epoch, input_.seq):
        return state
    state, writing = with_known(state, input_.epoch, input_.seq), state.writing
    if writing is not None and counts(writing.record, input_.epoch, input_.seq):
        return state  # it is stored, and its reply is under way
    return replace(state, must_reload=True, writing=None)


@apply.register
def _(input_: EventSent, state: SubjectState, now: Now) -> SubjectState:
    if state.publishing != input_.id:
        return state
    return replace(state, publishing=None, published=state.published | {input_.id})


@apply.register
def _(input_: EventConflict, state: SubjectState, now: Now) -> SubjectState:
    if state.record is None or state.publishing != input_.id:
        return state
    return replace(state, publishing=None, renumber_from=(input_.epoch, input_.seq))


@apply.register
def _(input_: KeyRemoved, state: SubjectState, now: Now) -> SubjectState:
    if state.removing and not state.members and not input_.conflict:
        return replace(state, record=None)
    return replace(state, removing=False, must_reload=True, doubted=True, writing=None)


@apply.register
def _(input_: EventDropped, state: SubjectState, now: Now) -> SubjectState:
    if state.record is None or state.publishing != input_.id:
        return state
    # As if the stream were ahead: the next event gets its number, in an epoch whose ids nobody has seen.
    seq = next((event.seq for event in state.record.unsent if event.id == input_.id), state.record.seq)
    return replace(
        state, publishing=None, published=state.published | {input_.id}, renumber_from=(input_.epoch, seq - 1)
    )
