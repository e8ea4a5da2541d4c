"""Checks whether a sample is possible for its stream and can follow the sample before it; returns the reason if not.

The tracker decides what happens then: the next sample must confirm it.
"""

from __future__ import annotations

from nats_backpressure.core.model.samples import Sample, StreamLook
from nats_backpressure.core.signals.incarnations import may_be_one


def impossible_reason(sample: Sample, look: StreamLook) -> str | None:
    """Why a sample is impossible for its stream, read just after it; None if it is not (nats-server #2357, #4189)."""
    if sample.pending > look.last_seq:
        return "more pending than the stream ever held"
    if sample.delivered_stream > look.last_seq and not _starts_later(sample):
        return "delivered past the end of the stream"
    return None


def _starts_later(sample: Sample) -> bool:
    """Whether it may start behind the end of its stream (`opt_start_seq`, CONSUMER.RESET): then it has nothing."""
    return not sample.pending and not sample.inflight and sample.delivered_stream == sample.floor_stream


def is_one_consumer(last: Sample, sample: Sample) -> bool:
    """Whether a sample with another creation time can be of the same consumer, later."""
    return may_be_one(last.created, sample.created) and not _went_backwards(last, sample)


def contradiction(last: Sample, sample: Sample, before: StreamLook, look: StreamLook) -> str | None:
    """Why `sample` cannot follow `last` in the same incarnation of consumer and stream; None if it can."""
    if look.created != before.created or look.last_seq < before.last_seq:
        return "another incarnation of the stream"
    if sample.created != last.created:
        return "another incarnation of the consumer"
    return "a sequence went backwards" if _went_backwards(last, sample) else None


def _went_backwards(last: Sample, sample: Sample) -> bool:
    return (
        sample.delivered_stream < last.delivered_stream
        or sample.delivered_consumer < last.delivered_consumer
        or sample.floor_stream < last.floor_stream
    )
