"""The epochs that a subject has had before. Where the stores go back again and again, a record of one of them may be
stored again: its next ids were given long ago, though neither the bucket nor the stream shows it."""

from __future__ import annotations

from msgspec.structs import replace

from nats_backpressure.core.subject.record import Record
from nats_backpressure.core.subject.state import SubjectState

REMEMBERED = 8
"""Epochs of a subject; the oldest goes. Another one begins only where a store lost something."""


def with_left_epoch(before: SubjectState, state: SubjectState) -> SubjectState:
    """The state after its record changed: the epoch of the one before is remembered where it was left."""
    was, record = before.record, state.record
    if was is None or before.unstored or (record is not None and record.epoch == was.epoch):
        return state
    others = dict(state.left_epochs)
    reached = max(was.seq, others.pop(was.epoch, 0))
    return replace(state, left_epochs=(*tuple(others.items())[1 - REMEMBERED :], (was.epoch, reached)))


def is_left_behind(state: SubjectState, record: Record) -> bool:
    """Whether a record is older than what is known of its epoch, which was left."""
    return any(record.epoch == epoch and record.seq < seq for epoch, seq in state.left_epochs)
