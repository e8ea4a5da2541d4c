"""What is going on with a consumer: eleven rules over the last few samples, the most severe that holds is the verdict.

A value that may be odd in one sample (a count, a pull that just ran out) must hold in all points but one, a trend must
hold for the median, and something else is said only once the old verdict failed twice in a row: so one odd sample
neither begins nor ends a diagnosis. What only ever rises (deliveries, acks, arrivals) is compared from end to end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.model import SMALL_CAP, SMALL_CAP_STALL, ConsumerConfig
from nats_backpressure.protocol.values import Diagnosis, Status

SPACING = 0.5
"""Seconds between two points at least; samples in between are passed over."""
SPAN = 2.0
"""Seconds that the points cover at least; older ones are forgotten while ENOUGH are left."""
ENOUGH = 3
"""Points below which nothing is said."""
POINTS = 8
"""Points kept at most; SPAN in steps of SPACING never needs more."""
AGAIN = 2
"""Times in a row that something else must be found before it is said; the first verdict needs no more than ENOUGH."""
WORKING = 5.0
"""Seconds (or the ack wait, if shorter) for which who holds messages may be at work on them without a sign."""
PATIENT = (Diagnosis.CAP_REACHED, Diagnosis.NOBODY_PULLING)
"""What may take WORKING to be found: before that, that something else is found proves nothing."""
HANDFUL = 10
"""Messages; a shorter queue is not said to grow or to drain."""
MARGIN = 1.1
"""Arrivals this many times over the acks outrun them."""
FULL = 0.99
"""Share of its own limits at which a stream is full: it refuses what does not fit, so bytes hardly ever come to 1."""
POISON_SPAN = 60.0
"""Seconds for which a message given up (MAX_DELIVERIES) or terminated (TERM) is told."""


class Point(Struct, frozen=True, gc=False):
    """One sample, as far as a diagnosis needs it."""

    at: float
    pending: int
    inflight: int
    waiting: int
    """Pull requests that wait; for a push consumer 1 while somebody is subscribed."""
    deliveries: int
    arrived: float
    """Messages since the consumer has been followed; so is `acked`."""
    acked: float


class Facts(Struct, frozen=True):
    """What is so now, whatever the numbers do."""

    config: ConsumerConfig = ConsumerConfig()
    paused: bool = False
    backfilling: bool = False
    pushes_out: bool = False
    """The stream is full and drops old messages for new ones."""
    fill: float | None = None
    given_up: float | None = None
    """When a message was last given up or terminated, on the clock of the points."""


class Evidence:
    """The last points of one consumer, and what can be counted in them once for all rules. Bounded by POINTS."""

    __slots__ = ("acked_at", "capped", "empty", "facts", "moved_at", "points", "pulled", "queued")

    def __init__(self) -> None:
        self.points: deque[Point] = deque(maxlen=POINTS)
        self.facts = Facts()
        self.moved_at = self.acked_at = 0.0
        """When a message was last seen delivered or acknowledged, and acknowledged; at first when we began to look."""

    def add(self, point: Point, facts: Facts) -> None:
        self.facts = facts
        points = self.points
        if not points or point.acked > points[-1].acked:
            self.acked_at = self.moved_at = point.at
        elif point.deliveries != points[-1].deliveries:
            self.moved_at = point.at
        points.append(point)
        while len(points) > ENOUGH and points[1].at <= point.at - SPAN:
            points.popleft()
        self._tally()

    def with_point(self, point: Point, facts: Facts) -> Evidence:
        """The same with one more point, which is not kept."""
        found = Evidence()
        found.points.extend(self.points)
        found.facts, found.moved_at, found.acked_at = self.facts, self.moved_at, self.acked_at
        found.add(point, facts)
        return found

    def _tally(self) -> None:
        """In how many points messages wait, pulls wait, in flight is at the cap, and there is nothing at all."""
        cap = self.facts.config.max_ack_pending
        self.queued = self.pulled = self.capped = self.empty = 0
        for point in self.points:
            self.queued += point.pending > 0
            self.pulled += point.waiting > 0
            self.capped += cap is not None and point.inflight >= cap
            self.empty += point.pending == 0 and point.inflight == 0

    @property
    def thin(self) -> bool:
        return len(self.points) < ENOUGH or self.points[-1].at - self.points[0].at < SPAN

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


def server_stuck(seen: Evidence) -> bool:
    """Messages and pulls both wait, below the cap, and the server delivers nothing: look at the server."""
    config = seen.facts.config
    if config.push or config.priority_groups or config.rate_limited or config.original_replay or seen.facts.paused:
        return False  # each of these may hold messages back on purpose
    waits = seen.nearly_all(seen.queued) and seen.nearly_all(seen.pulled)
    return waits and seen.hardly_any(seen.capped) and seen.delivered() == 0


def cap_reached(seen: Evidence) -> bool:
    """Messages wait because in flight is at max_ack_pending: make the worker faster, or raise the cap."""
    if not (seen.nearly_all(seen.capped) and seen.nearly_all(seen.queued)):
        return False
    # A small cap is full whenever the worker works: that is trouble only once no ack comes.
    cap = seen.facts.config.max_ack_pending or 0
    return cap > SMALL_CAP or seen.points[-1].at - seen.acked_at >= SMALL_CAP_STALL / 1000


def nobody_pulling(seen: Evidence) -> bool:
    """Messages wait, nobody asks for them and none is acknowledged: see whether the worker runs."""
    if seen.facts.paused or seen.moved_at > seen.points[0].at:
        return False
    if not (seen.nearly_all(seen.queued) and seen.hardly_any(seen.pulled)):
        return False
    # Who holds messages may be at work on them, without a sign, before it asks for more.
    patience = min(WORKING, seen.facts.config.ack_wait) if seen.points[-1].inflight else 0.0
    return seen.points[-1].at - seen.moved_at >= patience


def poison(seen: Evidence) -> bool:
    """A message was given up after max_deliver, or terminated, in the last minute: find the one nobody can handle."""
    return seen.facts.given_up is not None and seen.points[-1].at - seen.facts.given_up <= POISON_SPAN


def stream_full(seen: Evidence) -> bool:
    """The stream is at its own limits: it refuses new messages, or drops old ones while this consumer has a queue."""
    if seen.facts.pushes_out:  # for many streams that is their daily work; who has no queue loses nothing
        return seen.nearly_all(seen.queued)
    return seen.facts.fill is not None and seen.facts.fill >= FULL


def falling_behind(seen: Evidence) -> bool:
    """More messages arrive than are acknowledged, and the queue grows: add workers, or slow the intake."""
    if seen.facts.paused or seen.points[-1].pending <= HANDFUL:
        return False
    return seen.arrived() > MARGIN * seen.acked() and seen.trend() > 0


def paused(seen: Evidence) -> bool:
    """The consumer is paused and delivers nothing until it is resumed."""
    return seen.facts.paused


def backfilling(seen: Evidence) -> bool:
    """The consumer is new and still reads what the stream held before it: its queue is history."""
    return seen.facts.backfilling


def draining(seen: Evidence) -> bool:
    """More is acknowledged than arrives, and the queue shrinks: wait."""
    return seen.points[0].pending > HANDFUL and seen.acked() > seen.arrived() and seen.trend() < 0


def idle(seen: Evidence) -> bool:
    """Nothing waits, nothing is in flight, nothing arrives."""
    return seen.nearly_all(seen.empty) and seen.arrived() == 0 and seen.delivered() == 0


def healthy(seen: Evidence) -> bool:
    """Messages come and go, and nothing else is to be said."""
    return True


RULES: tuple[tuple[Diagnosis, Callable[[Evidence], bool]], ...] = (
    (Diagnosis.SERVER_STUCK, server_stuck),
    (Diagnosis.CAP_REACHED, cap_reached),
    (Diagnosis.NOBODY_PULLING, nobody_pulling),
    (Diagnosis.POISON, poison),
    (Diagnosis.STREAM_FULL, stream_full),
    (Diagnosis.FALLING_BEHIND, falling_behind),
    (Diagnosis.PAUSED, paused),
    (Diagnosis.BACKFILLING, backfilling),
    (Diagnosis.DRAINING, draining),
    (Diagnosis.IDLE, idle),
    (Diagnosis.HEALTHY, healthy),
)
"""The most severe first."""


def diagnose(seen: Evidence) -> Diagnosis | None:
    """The most severe rule that holds; None while evidence is thin."""
    if seen.thin:
        return None
    return next(name for name, holds in RULES if holds(seen))


CALM = (Diagnosis.HEALTHY, Diagnosis.IDLE)
PASSING = (Diagnosis.FALLING_BEHIND, Diagnosis.DRAINING, Diagnosis.IDLE)
"""What a healthy consumer looks like now and then."""


def confirmed(found: Diagnosis | None, status: Status) -> Diagnosis | None:
    """What is reported beside a status: nobody is idle or healthy above inactive, the rules are only slower then."""
    return None if found in CALM and status > Status.INACTIVE else found


class DiagnosisTracker:
    """The diagnosis of one consumer as it goes: what is said, and since when.

    `before`: what was said before a restart, and for how many seconds. It is not said again until it is found again;
    its time then goes on, without the time in which nobody looked. Something else is said once it was found AGAIN, as
    if there had been no restart, and not before the old verdict could have been found.
    """

    __slots__ = ("_before", "_began", "_failed", "_fits", "_lasted", "evidence", "lasting", "since")

    def __init__(self, before: Diagnosis | None = None, lasted: float = 0.0) -> None:
        self.evidence = Evidence()
        self.lasting: Diagnosis | None = None
        self.since = 0.0
        self._before, self._lasted = before, lasted
        self._began: float | None = None
        self._fits = True
        self._failed = 0
        """Times in a row that something else was found than what is said."""

    def due(self, at: float) -> bool:
        """Whether a sample of this moment is far enough from the last one."""
        points = self.evidence.points
        return not points or at - points[-1].at >= SPACING

    def add_sample(self, point: Point, facts: Facts) -> Diagnosis | None:
        """What is said, if this sample, the newest, bears it out too: else None."""
        if self.due(point.at):
            found = self.add_point(point, facts)
        elif self.lasting is not None and self._news(point, facts):
            found = diagnose(self.evidence.with_point(point, facts))
        else:
            return self.lasting if self._fits else None
        # Between two of its pulls a healthy consumer may look otherwise for a moment.
        passing = self.lasting is Diagnosis.HEALTHY and found in PASSING
        self._fits = found is self.lasting or passing
        return self.lasting if self._fits else None

    def _news(self, point: Point, facts: Facts) -> bool:
        """Whether a sample says anything else than the newest point that was taken up."""
        last = self.evidence.points[-1]
        return facts != self.evidence.facts or replace(point, at=last.at) != last

    def add_point(self, point: Point, facts: Facts) -> Diagnosis | None:
        """Take a point up, and see whether something else is to be said; what was found."""
        self.evidence.add(point, facts)
        self._began = point.at if self._began is None else self._began
        found = diagnose(self.evidence)
        if found is None or found is self.lasting:
            self._failed = 0
        elif self._before is not None:
            self._go_on(found, point.at)
        else:
            self._failed += 1
            if self.lasting is None or self._failed >= AGAIN:
                self.lasting, self.since, self._failed = found, point.at, 0
        return found

    def _go_on(self, found: Diagnosis, at: float) -> None:
        """After a restart: what was said before goes on, or something else is said for the first time."""
        assert self._began is not None
        self._failed = 0 if found is self._before else self._failed + 1
        if found is self._before:
            self.lasting, self.since = found, at - self._lasted
        elif self._failed >= AGAIN and at - self._began >= (WORKING if self._before in PATIENT else 0.0):
            self.lasting, self.since = found, at
        if self.lasting is not None:
            self._before, self._failed = None, 0
