"""The last few samples of one consumer as evidence for a diagnosis: points some time apart, and counts over them.

A value that may be odd in one sample (a count, a pull that just ended) must hold in all points but one, and a trend for
the median. Counters (deliveries, acks, arrivals) are compared between the first and the last point.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.model.samples import ConsumerConfig

SPACING = 0.5
"""Seconds between two points at least; samples in between are not used."""
SPAN = 2.0
"""Seconds that the points cover at least; older ones are dropped while MIN_POINTS are left."""
MIN_POINTS = 3
"""Fewer points give no diagnosis."""
MAX_POINTS = 8
"""Points at most; SPAN in steps of SPACING never needs more."""


class Point(Struct, frozen=True, gc=False):
    """The part of one sample that a diagnosis needs."""

    at: float
    pending: int
    inflight: int
    waiting: int
    """Pull requests that wait; for a push consumer 1 while a client is subscribed."""
    deliveries: int
    arrived: float
    """Messages since the first sample of the consumer; so is `acked`."""
    acked: float


class ReplyFacts(Struct, frozen=True, gc=False):
    """The facts of the newest reply besides the numbers."""

    config: ConsumerConfig = ConsumerConfig()
    paused: bool = False
    backfilling: bool = False
    pushes_out: bool = False
    """The stream is full and drops old messages for new ones."""
    fill: float | None = None
    """What a stream holds of its own limits if it refuses what is beyond them; None where it drops old messages."""
    given_up: float | None = None
    """When a message was last given up or terminated, on the clock of the points."""
    refused: bool = False
    """Whether a worker that asked to pull was refused in the last seconds."""


class Evidence:
    """The last points of one consumer, and counts over them that several rules use. Bounded by MAX_POINTS."""

    __slots__ = ("acked_at", "capped", "empty", "facts", "moved_at", "points", "pulled", "queued")

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.facts = ReplyFacts()
        self.moved_at = self.acked_at = 0.0
        """When a message was last delivered or acknowledged, and when acknowledged; at first the first point's time."""

    def add(self, point: Point, facts: ReplyFacts) -> None:
        """Add a point; points older than SPAN are dropped while enough are left."""
        self.facts = facts
        points = self.points
        if not points or point.acked > points[-1].acked:
            self.acked_at = self.moved_at = point.at
        elif point.deliveries != points[-1].deliveries:
            self.moved_at = point.at
        points.append(point)
        while len(points) > MIN_POINTS and (points[1].at <= point.at - SPAN or len(points) > MAX_POINTS):
            del points[0]
        self._tally()

    def skip(self, seconds: float) -> None:
        """Go on as if the clock had stood still for so long."""
        self.points = [replace(point, at=point.at + seconds) for point in self.points]
        self.moved_at += seconds
        self.acked_at += seconds

    def with_point(self, point: Point, facts: ReplyFacts) -> Evidence:
        """A copy with one more point."""
        copy = Evidence()
        copy.points.extend(self.points)
        copy.facts, copy.moved_at, copy.acked_at = self.facts, self.moved_at, self.acked_at
        copy.add(point, facts)
        return copy

    def _tally(self) -> None:
        """Count the points in which messages wait, pulls wait, in flight is at the cap, and the consumer is empty."""
        cap = self.facts.config.max_ack_pending
        self.queued = self.pulled = self.capped = self.empty = 0
        for point in self.points:
            self.queued += point.pending > 0
            self.pulled += point.waiting > 0
            self.capped += cap is not None and point.inflight >= cap
            self.empty += point.pending == 0 and point.inflight == 0

    @property
    def thin(self) -> bool:
        """Whether there are too few points, or they cover too little time."""
        return len(self.points) < MIN_POINTS or self.points[-1].at - self.points[0].at < SPAN

    def nearly_all(self, count: int) -> bool:
        """All points but at most one."""
        return count >= len(self.points) - 1

    def hardly_any(self, count: int) -> bool:
        return count <= 1

    def delivered(self) -> int:
        return self.points[-1].deliveries - self.points[0].deliveries

    def arrived(self) -> float:
        return self.points[-1].arrived - self.points[0].arrived

    def acked(self) -> float:
        return self.points[-1].acked - self.points[0].acked

    def trend(self) -> int:
        """By how many messages the queue rose (or, below 0, fell): the median of the last three against the first."""
        late = sorted((self.points[-3].pending, self.points[-2].pending, self.points[-1].pending))
        return late[1] - self.points[0].pending
