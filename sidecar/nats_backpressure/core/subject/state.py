"""The state of one subject in memory: its members, its stored record, and the write and publish under way."""

from __future__ import annotations

import math
from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.admission.adaptive import OPEN, Shedding
from nats_backpressure.core.admission.offered_load import OfferedLoad
from nats_backpressure.core.model.member import Carried, Member
from nats_backpressure.core.model.proofs import Proofs, newest_proof
from nats_backpressure.core.status.alert_times import RunKey, seen_to
from nats_backpressure.core.status.freshness import Limits
from nats_backpressure.core.subject.admitting import Admitting, admitting
from nats_backpressure.core.subject.record import Record, Writing
from nats_backpressure.policy.schema import Policy, Rejection
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Status

REMOVE_AFTER = 3600.0
"""Seconds without consumers after which the stored key of a subject is removed; twice that where events wait."""


class SubjectState(Struct, frozen=True, gc=False):
    """Everything the core knows about one subject at one moment. Only `step` returns a new one."""

    subject: str
    policy: Policy
    """The policy of the subject itself; it decides while no member is known."""
    unread_since: float
    """Monotonic time since which its first reading is awaited; it is unknown `unknown_after` later without any."""
    members: dict[ConsumerKey, Member] = {}
    """Treated as frozen: only `with_members` replaces it."""
    worst: Member | None = None
    """The worst of `members`, see `worst_member`."""
    admitting: Admitting | None = None
    """Whose policy answers gateways, where the policies of `members` differ; else None."""
    newest_proof: float | None = None
    """Monotonic time of the newest proof of any of `members`; None where none has any."""
    carried: dict[ConsumerKey, Carried] = {}
    """As stored when the record was loaded, also for consumers that were not read since. Treated as frozen."""
    unwatched: frozenset[ConsumerKey] = frozenset()
    """Those of the record that are not watched here."""
    record: Record | None = None
    """What is stored, as far as known; None until a record was loaded or created."""
    revision: int = 0
    """Revision of the stored key; 0 where there is none."""
    left_epochs: tuple[tuple[str, float], ...] = ()
    """Epochs that `record` has had before, each with the highest `seq` known of it; see `core.subject.left_epochs`."""
    unstored: bool = False
    """Whether `record` was created here and is not stored yet."""
    risen_elsewhere_at: float = -math.inf
    """Monotonic time at which `record` was created here with a higher status than was known, as another replica had
    published it: only a later reading shows whether it still holds."""
    must_reload: bool = False
    """Whether another record than `record` is stored now, so that it must be read before the next write; answers
    still come from `record`."""
    doubted: bool = False
    """With `must_reload`: whether what is stored may be older than `record`, or not ours."""
    overwritten: bool = False
    """Whether something else than `record` is stored, so that `record` is stored again, without an event."""
    followed: int = 0
    """While a record is being loaded: the revision of the newest write that was seen meanwhile."""
    publish_after: float = -math.inf
    """Monotonic time before which the unsent events of a record of another replica are left to it."""
    proved_elsewhere_at: float = -math.inf
    """Monotonic time at which another replica last stored the status as known: it had a proof."""
    reported_at: float = -math.inf
    """While nothing was read here: monotonic time of the newest report of another replica that it has readings of what
    is stored."""
    status_before: Status | None = None
    changed_elsewhere_at: float = -math.inf
    """The status that was stored before the one of another replica's record, and monotonic time of that change."""
    unknown_elsewhere_at: float = -math.inf
    """Monotonic time at which another replica stored the status as unknown: only a later reading makes it known."""
    newer_seen_at: float | None = None
    """While `record` is of a newer version: monotonic time of the newest sign of such a replica. Nothing is written."""
    loading: bool = False
    writing: Writing | None = None
    running_since: dict[RunKey, float] = {}
    """Monotonic time since which each pending alert of `record` has held, and each break of one has lasted, see
    `running_since` of `core.status.alert_times`. Treated as frozen."""
    written_at: float = 0.0
    """Monotonic time at which the newest write was requested, or the record was loaded."""
    publishing: str | None = None
    """Id of the event that is being published."""
    published: frozenset[str] = frozenset()
    """Ids in `record.unsent` that are acknowledged; the next write removes these events from the record."""
    write_count: int = 0
    """Writes so far; makes each nonce another one."""
    empty_since: float | None = None
    """Monotonic time at which the last member left."""
    dismissed: bool = False
    """Whether an operator wants it removed; a member that joins cancels that."""
    read_at: float | None = None
    """Monotonic time at which any member was last read."""
    interval: float = 0.0
    """`Limits.interval` then: what made the next reading late is not part of it."""
    watched_since: float | None = None
    """Monotonic time since which it was read without a gap; None before the first reading of this process."""
    removing: bool = False
    """Whether the stored key is being removed; a member that joins meanwhile cancels the removal."""
    renumber_from: tuple[str, int] | None = None
    """Epoch and seq after which to renumber the unsent events, after the event stream turned out to be ahead."""
    shedding: Shedding = OPEN
    """The result of adaptive admission; OPEN in binary mode."""
    offered_load: OfferedLoad | None = None
    """The sum of what gateways report; None where none does."""
    rejections: tuple[Rejection, ...] = ()
    """Refused policies that are not announced yet, MOST_REJECTIONS at most."""
    departed_lost: int = 0
    """Lost messages of consumers that are gone, not reported yet."""
    unproved_at_load: bool = False
    """Whether nothing proved the record even when it was loaded at the start, and no member was read since."""
    member_deleted: bool = False
    """Whether the deletion of a member made the status fall, and that is not announced yet."""
    left_since: float | None = None
    """While a change is left to the replica that writes the subject: monotonic time since which it is due."""
    kept_back_since: float | None = None
    """While a change is due and what other replicas send may not come: monotonic time since when."""
    differs_since: float | None = None
    """While it is left to other replicas: monotonic time since which ours would have another status or action."""
    difference_reported: bool = False


def with_members(state: SubjectState, members: dict[ConsumerKey, Member]) -> SubjectState:
    """The state with these members, and with what is derived from them: once per change, since all of `step` and every
    answer reads it."""
    proofs = (member.proof for member in members.values() if member.proof is not None)
    worst = worst_member(members.values())
    chosen = admitting(members.values(), state.shedding)
    if chosen == state.admitting:
        chosen = state.admitting  # the same object: readers compare policies by identity
    return replace(state, members=members, worst=worst, admitting=chosen, newest_proof=max(proofs, default=None))


def with_member(state: SubjectState, member: Member) -> SubjectState:
    return with_members(state, {**state.members, member.key: member})


def with_shedding(state: SubjectState, shedding: Shedding) -> SubjectState:
    state = replace(state, shedding=shedding)
    return with_members(state, state.members) if state.admitting is not None else state


def worst_member(members: Iterable[Member]) -> Member | None:
    """The member whose status and numbers its subject has: by status, then pressure, then name; a member that was never
    evaluated cannot."""
    evaluated = (member for member in members if member.status is not Status.UNKNOWN)
    return min(evaluated, key=lambda member: (-member.status, -member.pressure, member.key), default=None)


def is_surely_empty(state: SubjectState, now: Now) -> bool:
    """Whether all consumers are gone, not only unread since a start."""
    if state.members or state.empty_since is None:
        return False
    return state.unread_since == -math.inf or state.dismissed or now.mono - state.empty_since >= REMOVE_AFTER


def judged_status(state: SubjectState) -> Status:
    """The status by the members as they are now; UNKNOWN while none was evaluated."""
    if state.worst is None:
        return Status.UNKNOWN
    # No request is refused without a warning.
    return max(state.worst.status, Status.WARNING) if state.shedding.shedding else state.worst.status


def newest_of(state: SubjectState, proofs: Proofs) -> float | None:
    """Monotonic time of the newest proof of any member, by its readings or by looks at its stream."""
    newest = state.newest_proof
    if newest is None:
        return None
    looked_at = max((max(one.at, one.earlier_at) for one in proofs.values()), default=newest)
    if looked_at <= newest:
        return newest
    return max(
        (proof for m in state.members.values() if (proof := newest_proof(m, proofs)) is not None), default=newest
    )


def without_announced_rejections(state: SubjectState) -> SubjectState:
    """The state with those refused policies only that its record does not have as announced."""
    if not state.rejections or state.record is None:
        return state
    announced = state.record.announced_rejections
    return replace(state, rejections=tuple(one for one in state.rejections if one.mark not in announced))


def proved_at(state: SubjectState, proofs: Proofs) -> float:
    """Monotonic time at which any member was last read, or a look proved the same; -inf if never."""
    return max(state.read_at or -math.inf, newest_of(state, proofs) or -math.inf)


def alerts_seen_to(state: SubjectState, now: Now, limits: Limits, proofs: Proofs) -> dict[str, float]:
    """Monotonic time to which each running alert of the record was seen, by its name."""
    if state.record is None or not state.record.alerts:
        return {}
    return seen_to(state.record.alerts, tuple(state.members.values()), proofs, now.mono - limits.unknown_after)


def deciding_policy(state: SubjectState) -> Policy:
    """The policy that answers gateways: that of all members, the strictest where they differ, or of the subject
    itself."""
    if state.admitting is not None:
        return state.admitting.policy
    return state.worst.policy if state.worst else state.policy


def admission_status(state: SubjectState, status: Status) -> Status:
    """The status that this policy answers to, in a subject of this status."""
    return status if state.admitting is None else state.admitting.status
