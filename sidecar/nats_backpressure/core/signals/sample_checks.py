"""Checks whether a sample is possible for its stream and can follow the sample before it; returns the reason if not.

The tracker decides what happens then: the next sample must confirm it.
"""

from __future__ import annotations

from msgspec.structs import replace

from nats_backpressure.core.model.samples import Sample, StreamLook
from nats_backpressure.protocol.timestamps import parse_rfc3339

SAME_CREATION = 1.0
"""Seconds by which the creation time of one consumer may differ: servers before 2.12 report it a tenth of a millisecond
or so later after their first restart, since they store another clock reading than they report at first."""


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


def as_last(last: Sample, sample: Sample) -> Sample:
    """The sample with the creation time of the last one, where both can be of one consumer."""
    if sample.created == last.created:
        return sample
    was, now = parse_rfc3339(last.created), parse_rfc3339(sample.created)
    if was is None or now is None or abs(now - was) >= SAME_CREATION or _went_backwards(last, sample):
        return sample
    return replace(sample, created=last.created)


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
