"""Leaves a subject to the replicas whose policies judged what is stored, and notices where ours judge otherwise.

While a settings file is changed on one replica after the other, some have the new policies and some the old ones. Each
would take back what the others write. So only those write that have the policies of the stored record; once none of
them is left, the first change under other policies hands the subject over.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from nats_backpressure.core.model.admission import GatewayAdmission
from nats_backpressure.core.model.proofs import Proofs
from nats_backpressure.core.status.freshness import Limits, freshness
from nats_backpressure.core.subject.inputs import ReportDifference
from nats_backpressure.core.subject.next_record import Change
from nats_backpressure.core.subject.record import CARRIED_LIMIT, Record
from nats_backpressure.core.subject.restart_facts import awaits_reading
from nats_backpressure.core.subject.state import SubjectState, newest_of
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Action, ConsumerKey, Freshness, Status

REPORTED_AFTER = 1.0
"""Seconds for which policies must differ about a subject before that is reported: by then every replica has written and
read what all of them see."""


HANDED_OVER_AFTER = 3.0
"""Seconds for which others leave a subject unknown that is known here, after which it is written here."""


def is_foreign(record: Record | None, mark: str) -> bool:
    """Whether policies of another settings file judged a record."""
    return record is not None and record.policy_mark not in ("", mark)


def is_left_to_others(
    record: Record | None, mark: str, other_marks: frozenset[str] | None, narrower_marks: frozenset[str] = frozenset()
) -> bool:
    """Whether other replicas, of these marks, write the subject, and this one does not; None: too early to know. Those
    with `narrower_marks` see fewer of its consumers than this one, which takes the subject over."""
    if record is None or not is_foreign(record, mark) or record.policy_mark in narrower_marks:
        return False
    return other_marks is None or record.policy_mark in other_marks


def is_unseen_elsewhere(state: SubjectState, now: Now) -> bool:
    """Whether those that write the subject stored it as unknown, while this replica has had a proof for longer than a
    writer needs: they do not watch it any more, or cannot read it."""
    unknown = state.record is not None and state.record.unknown and state.newest_proof is not None
    return unknown and state.differs_since is not None and now.mono - state.differs_since >= HANDED_OVER_AFTER


def is_seen_whole(
    state: SubjectState, watches: Callable[[ConsumerKey], bool], now: Now, limits: Limits, proofs: Proofs
) -> bool:
    """Whether this replica sees all that those who judged the record see: it watches each consumer that the record
    names, and has read all of them. A record with as many as it can hold may leave some out, and one that names none
    shows nothing."""
    if (record := state.record) is None or awaits_reading(state, now, limits):
        return False
    named = [key for key, _ in (*record.latched, *record.carried)]
    if not named or len(record.carried) >= CARRIED_LIMIT:
        return False
    if freshness(newest_of(state, proofs), now.mono, limits) is not Freshness.KNOWN:
        return False
    return all(watches(key) for key in named)


def is_anybodys(state: SubjectState, mark: str, other_marks: frozenset[str] | None) -> bool:
    """Whether a subject of which nothing is known here may be the one of another replica, which has a proof: then it
    becomes unknown here in time, but is not stored as stale."""
    record = state.record
    return (
        state.newest_proof is None and record is not None and record.policy_mark != mark and other_marks != frozenset()
    )


def is_to_be_marked(
    record: Record | None, mark: str, other_marks: frozenset[str] | None, narrower_marks: frozenset[str] = frozenset()
) -> bool:
    """Whether those that judged a record are gone, or see less than this replica, and replicas with other policies
    than ours run: the next one of them that has no reading of the subject must find that it is ours."""
    if record is None or other_marks is None or not other_marks - {mark}:
        return False
    return record.policy_mark != mark and record.policy_mark not in other_marks - narrower_marks


def with_difference(
    state: SubjectState, change: Change | None, now: Now
) -> tuple[SubjectState, list[ReportDifference]]:
    """The state while the subject is left to others, given the change that our policies would make; with a report, once
    each time they begin to differ in status or action."""
    stored, ours = state.record, None if change is None else change.record
    judged = ours is not None and not (ours.unknown and state.newest_proof is None)  # what is not read is not judged
    if stored is None or ours is None or not judged or _judgement(ours) == _judgement(stored):
        if state.differs_since is None:
            return state, []
        return replace(state, differs_since=None, difference_reported=False), []
    if state.differs_since is None:
        return replace(state, differs_since=now.mono), []
    if state.difference_reported or now.mono - state.differs_since < REPORTED_AFTER:
        return state, []
    return replace(state, difference_reported=True), [ReportDifference(state.subject, stored, ours)]


def _judgement(record: Record) -> tuple[Status, bool, Action, Action | None]:
    admission: GatewayAdmission = record.admission
    return record.status, record.unknown, admission.action, admission.would
