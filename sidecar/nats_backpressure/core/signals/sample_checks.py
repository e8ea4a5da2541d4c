"""Which samples are believed: one that contradicts what is known is set aside until a second one agrees with it."""

from __future__ import annotations

from nats_backpressure.core.model import Sample, StreamLook


def impossible_reason(sample: Sample, look: StreamLook) -> str | None:
    """A sample that no state of its stream, looked at just after it, allows (nats-server #2357, #4189)."""
    if sample.pending > look.last_seq:
        return "more pending than the stream ever held"
    if sample.delivered_stream > look.last_seq:
        return "delivered past the end of the stream"
    return None


def contradiction(last: Sample, sample: Sample, before: StreamLook, look: StreamLook) -> str | None:
    """Why `sample` cannot have followed `last` in one life of consumer and stream; None if it can."""
    if look.created != before.created or look.last_seq < before.last_seq:
        return "another incarnation of the stream"
    if sample.created != last.created:
        return "another incarnation of the consumer"
    if (
        sample.delivered_stream < last.delivered_stream
        or sample.delivered_consumer < last.delivered_consumer
        or sample.floor_stream < last.floor_stream
    ):
        return "a sequence went backwards"
    return None
