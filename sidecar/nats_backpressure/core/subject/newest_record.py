"""Decides whether a stored record is the newest one: whether to take it over, or to store our own again."""

from __future__ import annotations

import math

from msgspec.structs import replace

from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.core.subject.inputs import RecordCreated
from nats_backpressure.core.subject.record import Record
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.protocol.values import STATUS_EVENTS, EventType, Status


def continues(ours: Record, theirs: Record) -> bool:
    """Whether a record surely follows ours: the same epoch, with every event since ours among its unsent ones."""
    if theirs.epoch != ours.epoch or theirs.seq < ours.seq:
        return False
    events = _after(theirs, ours.seq)
    return len(events) == theirs.seq - ours.seq and theirs.announced is _announced(events, ours.announced)


def is_newest(
    ours: Record, theirs: Record, published: RecordCreated, later: bool = False, went_back: bool = False
) -> bool:
    """Whether a stored record that differs from ours is the newest one, by what was published: its last status is that
    of the newest event, or of one that it lists as unsent. An older record of our epoch never is, nor, where the bucket
    `went_back`, one of another epoch that is not ahead of ours: its next ids may have been given. Nor is one of another
    epoch whose newest event the stream lacks, where it has ours. Where nothing was published it is the newest one if it
    was stored `later`: two replicas would store their own in turn."""
    if theirs.seq < ours.seq if theirs.epoch == ours.epoch else went_back and theirs.seq <= ours.seq:
        return False
    if theirs.epoch != ours.epoch and is_lost(theirs, published) and not is_lost(ours, published):
        return False
    continued = theirs.epoch == ours.epoch and theirs.seq > ours.seq  # the stream may have lost its events since
    known = continued or published.moved or any(event.type in STATUS_EVENTS for event in theirs.unsent)
    return agrees(theirs, published) and (known or later or theirs.announced is ours.announced)


def agrees(record: Record, published: RecordCreated) -> bool:
    """Whether what was published does not contradict a record, its incident included. Old events may be gone from the
    stream."""
    if record.seq < published.seq:
        return False
    events = _after(record, published.seq)
    since = any(event.type in STATUS_EVENTS for event in events)
    if not published.moved and not since:
        return True
    if record.announced is not _announced(events, published.status):
        return False
    return since or record.announced is Status.INACTIVE or record.incident == published.incident


def is_contradicted(state: SubjectState, published: RecordCreated) -> bool:
    """Whether what was published contradicts what is stored, as far as it is known. Of another stream than before: what
    was published in that and is still listed as unsent will not be published again."""
    if state.record is None:
        return False
    unsent = tuple(event for event in state.record.unsent if event.id not in state.published)
    return not agrees(replace(state.record, unsent=unsent), published)


def is_lost(record: Record, published: RecordCreated) -> bool:
    """Whether the stream lacks the newest event of a record that is not among its unsent ones."""
    return published.seq < record.seq - len(record.unsent)


def lost_since(record: Record, seq: int) -> float:
    """The lost messages that the events of a record after `seq` report. Some of them may be published, and listed no
    more: then any loss may have been in them, since its writer has the same readings."""
    events = _after(record, seq)
    if len(events) < record.seq - seq:
        return math.inf
    return sum(event.lost or 0 for event in events if event.type is EventType.DATA_LOSS)


def _after(record: Record, seq: int) -> list[SubjectEvent]:
    return [event for event in record.unsent if event.seq > seq]


def _announced(events: list[SubjectEvent], before: Status) -> Status:
    """The status that the events lead to."""
    return next((event.now for event in reversed(events) if event.type in STATUS_EVENTS), before)
