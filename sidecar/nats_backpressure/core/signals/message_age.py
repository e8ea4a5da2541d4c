"""Estimates how long a message has been in its stream, from the reads of the stream: it costs no request."""

from __future__ import annotations

from nats_backpressure.core.model.samples import Sample, StreamLook
from nats_backpressure.protocol.patterns import covers_all

LOOKS = 128
"""Looks per stream; when there are more, every second one of the older half is dropped, never the first."""


class MessageAges:
    """The last sequence of one stream over time, shared by all its consumers. Bounded by LOOKS."""

    __slots__ = ("_created", "_looks")

    def __init__(self) -> None:
        self._created = ""
        self._looks: list[tuple[int, float]] = []
        """Last sequence and when it was first seen, both rising."""

    def add_look(self, look: StreamLook, at: float) -> None:
        """Add a look at the stream, taken `at` this monotonic time; another incarnation starts again from nothing."""
        looks = self._looks
        if looks and (look.created != self._created or look.last_seq < looks[-1][0]):
            looks.clear()
        self._created = look.created
        if looks and look.last_seq == looks[-1][0]:
            return
        looks.append((look.last_seq, at))
        if len(looks) > LOOKS:
            del looks[1 : LOOKS // 2 : 2]

    def age_of(self, seq: int, now: float) -> float | None:
        """Seconds for which a message has been there, at least: since the first look that included it.

        Too small by no more than the time between two looks; None if it was there before the first one.
        """
        looks = self._looks
        if not looks or seq <= looks[0][0] or seq > looks[-1][0]:
            return None
        low, high = 0, len(looks) - 1
        while low < high:
            middle = (low + high) // 2
            if looks[middle][0] < seq:
                low = middle + 1
            else:
                high = middle
        return max(0.0, now - looks[low][1])

    def oldest_waiting(self, sample: Sample, look: StreamLook) -> float | None:
        """Seconds the message to be delivered next has waited: 0 where none waits.

        None for a consumer of a part of the stream: finding its next message would cost a request.
        """
        if not sample.pending:
            return 0.0
        mixed = look.retention is not None and look.retention.mixed
        if sample.config.filters and (mixed or not covers_all(sample.config.filters, look.subjects)):
            return None
        following = sample.delivered_stream + 1
        return look.oldest_age if following <= look.first_seq else self.age_of(following, sample.at.mono)
