"""Remembers when the samples of a consumer at rest came: they all say the same, so nothing is computed for them."""

from __future__ import annotations

from array import array
from bisect import bisect_left

from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.signals.evidence import MAX_POINTS, SPACING
from nats_backpressure.core.signals.rate_window import RATE_SLOT, RATE_SPAN

LONGEST = RATE_SPAN + RATE_SLOT
"""Seconds for which the times are needed: no rate looks farther back."""
MOST_TIMES = 1024
"""Times at most, 8 KB; with more readings than that in LONGEST seconds, the next sample is computed."""


class Rest:
    """The times of equal samples, so far as what is computed later depends on them. Bounded by MOST_TIMES."""

    __slots__ = ("look", "points", "times")

    def __init__(self, at: float, point: float) -> None:
        """`at`: when the last computed sample came; `point`: the time of the newest point of the diagnosis."""
        self.times = array("d", (at,))
        self.points = array("d", (point,))
        self.look: StreamLook | None = None
        """The look at the stream that belongs to the newest of `points`; None while there is none but the first."""

    @property
    def full(self) -> bool:
        return len(self.times) >= MOST_TIMES

    @property
    def newest(self) -> float:
        return self.times[-1]

    def add(self, at: float, look: StreamLook | None = None) -> bool:
        """Another equal sample came, `at` this monotonic time; `look` came with it.

        True where nothing from before matters any more."""
        times, points = self.times, self.points
        times.append(at)
        if at - points[-1] >= SPACING:
            points.append(at)
            self.look = look
            if len(points) > 2 * MAX_POINTS:
                del points[:-MAX_POINTS]
        if at - times[0] <= 2 * LONGEST:
            return False
        # The time before the first one that matters stays: it begins the first interval.
        del times[: bisect_left(times, at - LONGEST) - 1]
        return True

    @property
    def intervals(self) -> list[tuple[float, float]]:
        """When each interval between two samples ended, and its seconds."""
        return [(until, until - since) for since, until in zip(self.times, self.times[1:], strict=False)]
