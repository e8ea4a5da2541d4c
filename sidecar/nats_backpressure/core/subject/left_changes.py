"""Leaves the changes of a subject to the replica that writes it: the reader of the first of its streams.

All replicas have the same readings, and each would write the same change: one write, and a conflict for every other
replica. And two may judge the same reading differently, because one of them started a moment ago: each would take back
what the other one wrote. So the others wait until the writer's record comes. They write themselves once LEFT_FOR has
passed without a sign of the writer.
"""

from __future__ import annotations

import math

from msgspec.structs import replace

from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Status

LEFT_FOR = 1.5
"""Seconds for which a change is left to the writer without a sign that it runs; it gives one each second."""
UNSURE_FOR = 0.5
"""The same where it is not known yet which replica that is: by then the readings of another one have come."""
UNNAMED_FOR = 10.0
"""The same, with or without a sign, while no record shows in which streams the subject has consumers: replicas that
know different ones may each take the other one for the writer."""
KEPT_BACK_FOR = 60.0
"""Seconds of connection for which a replica stores nothing that others may know better. Then it does, though it stands
still again and again: the others leave that to it while it gives signs."""


def is_left_to_writer(state: SubjectState, now: Now, writer_seen_at: float | None, kept_back: bool = False) -> bool:
    """Whether a change that is due now is left to the writer. `writer_seen_at`: the monotonic time of its newest sign;
    -inf where it is not known yet which replica that is, None where it is this one. `kept_back`: a sign may be missing
    only here."""
    if writer_seen_at is None or (state.unstored and writer_seen_at == -math.inf):
        return False
    if kept_back:
        return True
    since = now.mono if state.left_since is None else state.left_since
    left_for = UNSURE_FOR if writer_seen_at == -math.inf else LEFT_FOR
    return now.mono - max(since, writer_seen_at) < left_for


def takes_back(state: SubjectState, status: Status, now: Now) -> bool:
    """Whether a change to this status is left for a moment, since another replica has just changed it from that: two
    may take themselves for the writer, and that one may have the newest policies already."""
    return not state.unstored and status is state.status_before and now.mono - state.changed_elsewhere_at < LEFT_FOR


def with_kept_back(state: SubjectState, now: Now, cut_off: bool) -> SubjectState:
    """The state after a look at whether a change is due while what the other replicas send may not come."""
    if cut_off == (state.kept_back_since is not None):
        return state
    return replace(state, kept_back_since=now.mono if cut_off else None)


def is_kept_back(state: SubjectState, now: Now, connected_for: float) -> bool:
    """Whether that is a reason to wait. After a time without connection it always is one: what was concluded in it is
    old."""
    since = state.kept_back_since
    return since is not None and min(now.mono - since, connected_for) < KEPT_BACK_FOR


def with_left_change(state: SubjectState, now: Now) -> SubjectState:
    """The state while a change is left to the writer."""
    return state if state.left_since is not None else replace(state, left_since=now.mono)


def without_left_change(state: SubjectState) -> SubjectState:
    """The state once nothing is left to change."""
    return state if state.left_since is None else replace(state, left_since=None)


def is_named_here(state: SubjectState, now: Now) -> bool:
    """Whether this replica stores the last record again with its consumers, since that names none: then all replicas
    come to the same writer, which judges."""
    record = state.record
    named = record is None or bool(record.carried or record.latched)
    return not named and state.left_since is not None and now.mono - state.left_since >= UNNAMED_FOR


def is_restored_here(state: SubjectState, now: Now) -> bool:
    """Whether this replica stores the last record again, or without what is published, although the writer runs: it
    wrote that record, or the writer has had LEFT_FOR and may not know. What that one judges otherwise stays its own."""
    if state.publish_after == -math.inf and not state.unstored:
        return True
    return state.left_since is not None and now.mono - state.left_since >= LEFT_FOR
