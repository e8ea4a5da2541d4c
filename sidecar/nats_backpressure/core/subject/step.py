"""The only function that changes the state of a subject: step(state, input, now, context) -> (state, effects).

A change is stored first, with its events inside the record. The events are published only once it is stored, and at
most one write and one publish run at a time. So a crash at any point repeats nothing and loses nothing.
"""

from __future__ import annotations

import math

from msgspec.structs import replace

from nats_backpressure.core.status.alert_times import running_since, without_unseen
from nats_backpressure.core.status.freshness import Limits
from nats_backpressure.core.subject.apply import apply
from nats_backpressure.core.subject.inputs import (
    ConsumerRead,
    ConsumersRead,
    Effect,
    GatewayReported,
    Input,
    RecordFollowed,
    Tick,
)
from nats_backpressure.core.subject.left_epochs import with_left_epoch
from nats_backpressure.core.subject.other_policies import is_foreign
from nats_backpressure.core.subject.plan_writes import StepContext, plan_writes
from nats_backpressure.core.subject.state import (
    SubjectState,
    alerts_seen_to,
    deciding_policy,
    proved_at,
    with_shedding,
)
from nats_backpressure.protocol.refusal_expiry import aged, holds_for
from nats_backpressure.protocol.timestamps import Now


def step(state: SubjectState, input_: Input, now: Now, context: StepContext) -> tuple[SubjectState, list[Effect]]:
    """The state after an input, and the effects to perform. Their results come back as inputs."""
    before, is_read = state, isinstance(input_, ConsumerRead | ConsumersRead)
    if is_read:
        state = _watched(state, now, context)
    state = apply(input_, state, now)
    if state.record is not before.record:
        state = with_left_epoch(before, state)
    if isinstance(input_, Tick) and input_.reported_at > state.reported_at:
        state = _with_report(state, input_.reported_at, context)
    if is_read and state.running_since:
        state = _without_unseen(before, state, now, context)
    # What another replica stored is answered to by the next reading or tick: two that evaluate differently would write
    # in turn, as fast as they hear from each other. A report of a gateway counts with the next reading, too: there are
    # up to a thousand a second, and a conclusion looks at all consumers of the subject.
    conclude = not isinstance(input_, RecordFollowed | GatewayReported)
    return plan_writes(state, now, context, isinstance(input_, Tick), conclude)


def _watched(state: SubjectState, now: Now, context: StepContext) -> SubjectState:
    """The state when a reading comes: after a gap it is watched anew."""
    gap = state.read_at is not None and now.mono - proved_at(state, context.proofs) >= context.stale_after
    if gap:
        state = _reopened(state, now, context)
    watched = now.mono if gap or state.watched_since is None else state.watched_since
    return replace(state, read_at=now.mono, watched_since=watched, interval=context.interval)


def _with_report(state: SubjectState, at: float, context: StepContext) -> SubjectState:
    """The state where another replica has readings of the subject. Only where it is left to that one: two that read
    nothing of one consumer, and see that the other reads its stream, would wait for each other."""
    record = state.record
    if state.newest_proof is not None or record is None or record.unknown or record.stale:
        return state
    left = is_foreign(record, context.policy_mark) or context.writer_seen_at not in (None, -math.inf)
    return replace(state, reported_at=at) if left else state


def _without_unseen(before: SubjectState, state: SubjectState, now: Now, context: StepContext) -> SubjectState:
    """The state after a reading, with what its alerts were not watched for since the one before left out."""
    alerts = () if state.record is None else state.record.alerts
    last = Now(proved_at(before, context.proofs), now.wall)  # what was seen until then had not grown old then
    was = alerts_seen_to(before, last, context, context.proofs)
    to = alerts_seen_to(state, now, context, context.proofs)
    usual = Limits(context.stale_after, context.unknown_after, min(context.interval, before.interval))
    since = without_unseen(state.running_since, was, to, state.unread_since, usual)
    return replace(state, running_since=running_since(alerts, since, now.mono))


def _reopened(state: SubjectState, now: Now, limits: Limits) -> SubjectState:
    """After a gap the admit ratio continues from where gateways have opened it to meanwhile, not from where it was."""
    was, policy = state.shedding, deciding_policy(state)
    if state.read_at is None or was.ratio >= 1:
        return state
    holds = holds_for(policy.on_unknown, policy.hold_seconds, limits.stale_after, limits.interval)
    opening = now.mono - state.read_at - holds
    action, ratio = aged("throttle", was.ratio, policy.on_unknown, opening, False)
    retry_after = 0 if action == "continue" else was.retry_after
    opened = replace(was, ratio=ratio, unstepped_ratio=ratio, applied=ratio, retry_after=retry_after)
    return with_shedding(state, opened)
