"""The epochs that a subject has had before. Where the stores go back again and again, a record of one of them may be
stored again: its next ids were given long ago, though neither the bucket nor the stream shows it."""

from __future__ import annotations

import math

from msgspec.structs import replace

from nats_backpressure.core.subject.record import Record
from nats_backpressure.core.subject.state import SubjectState

REMEMBERED = 32
"""Epochs of a subject; the oldest goes. Another one begins only where a store lost something."""
OVER = math.inf
"""In place of the highest known number of an epoch, once another one was stored after it: others may have given any."""


def with_left_epoch(before: SubjectState, state: SubjectState) -> SubjectState:
    """The state after its record changed: the epoch of the one before is remembered where it was left. It is over once
    a record of another one is stored: until then others may go on with it."""
    was, record = before.record, state.record
    stored = record is not None and not state.unstored
    left = was is not None and not before.unstored and (record is None or record.epoch != was.epoch)
    if was is not None and left:
        state = with_known(state, was.epoch, was.seq)
    if record is None or not stored or not (left or before.unstored):
        return state
    known = ((epoch, OVER) for epoch, _ in state.left_epochs if epoch != record.epoch)
    return replace(state, left_epochs=tuple(known))


def with_known(state: SubjectState, epoch: str, seq: int) -> SubjectState:
    """The state that knows how far the numbers of an epoch went, at least."""
    others = dict(state.left_epochs)
    reached = max(seq, others.pop(epoch, 0))
    return replace(state, left_epochs=(*tuple(others.items())[1 - REMEMBERED :], (epoch, reached)))


def is_left_behind(state: SubjectState, record: Record) -> bool:
    """Whether a record is of an epoch that is over, or older than what is known of its epoch."""
    return record.seq < dict(state.left_epochs).get(record.epoch, 0)


def counts(record: Record, epoch: str, seq: int) -> bool:
    """Whether an event is one of those that a record has counted."""
    return record.epoch == epoch and seq <= record.seq


def is_news(state: SubjectState, epoch: str, seq: int) -> bool:
    """Whether an event that was published shows that another record than ours is stored, or was."""
    if state.record is None or counts(state.record, epoch, seq):
        return False
    return seq > dict(state.left_epochs).get(epoch, 0)
