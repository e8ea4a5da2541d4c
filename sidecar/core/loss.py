"""Messages that went before a consumer was given them: evicted by the stream, or purged by somebody."""

from __future__ import annotations

from sidecar.core.model import Sample, StreamLook


def purged(last: Sample, sample: Sample, before: StreamLook, look: StreamLook) -> bool:
    """Somebody purged the stream: the server moves the consumer past what went, deliveries do not explain it.

    Eviction leaves an idle consumer where it was. With deliveries in the same interval the two look alike, unless
    everything that was in the stream went at once and the stream does not stand at its own limit.
    """
    jump = sample.delivered_stream - last.delivered_stream
    given = sample.delivered_consumer - last.delivered_consumer
    if jump <= given or look.first_seq <= before.first_seq or sample.delivered_stream < look.first_seq - 1:
        return False
    if sample.config.filters and last.pending - sample.pending - given <= 0:
        return False
    return given == 0 or (look.first_seq > before.last_seq and not look.at_limit)


def evicted(last: Sample, sample: Sample, before: StreamLook, look: StreamLook, accounted: int) -> int:
    """How many messages at most went ungiven between two samples; 0 unless some surely did.

    `before` was looked at after `last` and ahead of `sample`: what had left the stream by then, and is not among what
    was given until `sample`, was never given. `accounted` is the stream sequence up to which loss was counted already.
    """
    gap = before.first_seq - 1 - max(last.delivered_stream, accounted)
    given = sample.delivered_consumer - last.delivered_consumer
    if gap <= 0:
        return 0
    if not sample.config.filters:
        return max(0, gap - given)
    if last.pending - sample.pending - given <= 0:
        return 0
    return min(gap, last.pending + look.last_seq - before.last_seq)


def losing(last: Sample, sample: Sample, look: StreamLook, accounted: int) -> bool:
    """Whether the stream's beginning has passed the consumer's place, so that its pending fell by loss."""
    if look.first_seq - 1 <= max(sample.delivered_stream, accounted):
        return False
    return not sample.config.filters or sample.pending < last.pending
