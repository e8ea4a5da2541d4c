"""Counts messages in flight that a worker returned with a delayed NAK; they must not look like a stalled worker.

What the server shows of them (measured on 2.15.1): they stay in `num_ack_pending`, `num_redelivered` does not count
them until they are redelivered, a NAK with a delay moves `delivered.last_active` without a delivery, and a pull gets
them only after the delay. An advisory reports each NAK, and may be lost.
"""

from __future__ import annotations

from nats_backpressure.core.model.samples import Sample

SLACK = 0.1
"""Seconds by which the travel times of two replies may differ."""
LATE = 1.0
"""Seconds after the ack wait within which the server has certainly redelivered what was not acknowledged."""


class DelayedNaks:
    """How many messages in flight of one consumer are known to be returned; `before`: before a restart, when so many
    messages were `delivered`. Each delivery since may be one of them."""

    __slots__ = ("_delivered", "_expired", "_returned", "_worker_active")

    def __init__(self, before: int = 0, delivered: int | None = None) -> None:
        self._returned, self._delivered = before, delivered
        self._worker_active = False
        """Whether a worker acted on a message since the newest delivery, by the server's own clock."""
        self._expired = False
        """Whether a message in flight was redelivered after its ack wait: the worker that had it may hang."""

    def add_naks(self, times: int = 1) -> None:
        """Advisories reported so many NAKs."""
        self._returned += times

    def take_stored(self, returned: int, delivered: int, last: Sample) -> None:
        """Another replica knew of so many when so many messages were `delivered`: NAKs may not have come here."""
        left = min(returned - max(0, last.delivered_consumer - delivered), last.inflight)
        self._returned = max(self._returned, left)

    def add_sample(self, last: Sample | None, sample: Sample) -> bool:
        """Add the next sample. True where all that was in flight was redelivered before its ack wait: it was
        returned, and what is in flight now starts with this delivery."""
        if last is None and self._delivered is not None:
            again = sample.delivered_consumer - self._delivered
            self._returned = max(0, self._returned - again) if again >= 0 else 0
        if last is None or sample.inflight == 0:
            self._returned, self._worker_active = min(self._returned, sample.inflight), False
            self._expired = sample.inflight > 0 and sample.redelivered > 0
            return False
        delivered = sample.delivered_consumer - last.delivered_consumer
        redelivered = _redelivered(last, sample, delivered)
        early = False
        if redelivered > 0:
            gap = (last.since_delivery or 0.0) + sample.at.mono - last.at.mono
            early = gap < min(sample.config.backoff, default=sample.config.ack_wait) - SLACK
            self._expired = self._expired or not early
        if delivered > 0:
            self._worker_active = False
        elif last.since_delivery is not None and sample.since_delivery is not None:
            moved = (sample.at.mono - sample.since_delivery) - (last.at.mono - last.since_delivery)
            self._worker_active = self._worker_active or moved > SLACK
        self._returned = min(max(0, self._returned - redelivered), sample.inflight)
        return early and redelivered >= last.inflight

    def count_in_flight(self, sample: Sample) -> int:
        """How many of the messages in flight are returned, as far as known."""
        inflight, wait = sample.inflight, sample.config.ack_wait
        since = sample.since_delivery
        if not inflight or sample.pending:
            return 0  # with a queue, a stall always counts
        overdue = since is not None and since > wait + LATE
        if sample.waiting and overdue:
            return inflight  # a waiting pull would have received what was not returned
        if inflight == 1 and self._worker_active and not overdue:
            return 1
        return self._returned

    def all_may_be(self, sample: Sample) -> bool:
        """Whether all messages in flight may be returned or in work, which cannot be seen: at least as many pulls
        wait as there are messages in flight, and no message waits. That lasts no longer than the ack wait."""
        spare = sample.pending == 0 and sample.waiting >= sample.inflight > 0
        return spare and not self._expired and sample.since_delivery is not None


def _redelivered(last: Sample, sample: Sample, delivered: int) -> int:
    """How many deliveries between two samples were redeliveries, as far as sequences show."""
    moved = sample.delivered_stream - last.delivered_stream
    if not sample.config.filters:
        return max(0, delivered - moved)
    return delivered if moved == 0 else max(0, sample.redelivered - last.redelivered)
