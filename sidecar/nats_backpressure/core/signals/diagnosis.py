"""Diagnoses a consumer: eleven rules over the last few samples; the most severe one that holds is the diagnosis.

A value that may be odd in one sample (a count, a pull that just ended) must hold in all points but one, a trend must
hold for the median, and a diagnosis changes only after another one was found twice in a row: so one odd sample neither
starts nor ends a diagnosis. Counters (deliveries, acks, arrivals) are compared between the first and the last point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.model.marks import SMALL_CAP, SMALL_CAP_STALL
from nats_backpressure.core.model.samples import ConsumerConfig
from nats_backpressure.protocol.values import Diagnosis, Status

SPACING = 0.5
"""Seconds between two points at least; samples in between are not used."""
SPAN = 2.0
"""Seconds that the points cover at least; older ones are dropped while MIN_POINTS are left."""
MIN_POINTS = 3
"""Fewer points give no diagnosis."""
MAX_POINTS = 8
"""Points at most; SPAN in steps of SPACING never needs more."""
CONFIRMATIONS = 2
"""Times in a row that another diagnosis must be found before it is used; the first one needs only MIN_POINTS points."""
WORKING = 5.0
"""Seconds (or the ack wait, if shorter) for which a worker with messages may work on them without a sign."""
SLOW_TO_FIND = (Diagnosis.CAP_REACHED, Diagnosis.NOBODY_PULLING)
"""These may take WORKING seconds to be found: until then another diagnosis does not rule them out."""
SHORT_QUEUE = 10
"""Messages; a shorter queue neither grows nor drains."""
MARGIN = 1.1
"""Factor by which arrivals must exceed acks."""
FULL = 0.99
"""Share of its own limits at which a stream is full: it refuses what does not fit, so bytes hardly ever reach 1."""
POISON_SPAN = 60.0
"""Seconds for which a message given up (MAX_DELIVERIES) or terminated (TERM) is diagnosed."""


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
    if seen.facts.paused or seen.facts.refused or seen.moved_at > seen.points[0].at:
        return False
    if not (seen.nearly_all(seen.queued) and seen.hardly_any(seen.pulled)):
        return False
    # A worker with messages may work on them, without a sign, before it asks for more.
    allowed = min(WORKING, seen.facts.config.ack_wait) if seen.points[-1].inflight else 0.0
    return seen.points[-1].at - seen.moved_at >= allowed


def poison(seen: Evidence) -> bool:
    """A message was given up after max_deliver, or terminated, in the last minute: find the one no worker can take."""
    return seen.facts.given_up is not None and seen.points[-1].at - seen.facts.given_up <= POISON_SPAN


def stream_full(seen: Evidence) -> bool:
    """The stream is at its own limits: it refuses new messages, or drops old ones while this consumer has a queue."""
    if seen.facts.pushes_out:  # normal for many streams; a consumer without a queue loses nothing
        return seen.nearly_all(seen.queued)
    return seen.facts.fill is not None and seen.facts.fill >= FULL


def falling_behind(seen: Evidence) -> bool:
    """More messages arrive than are acknowledged, and the queue grows: add workers, or slow the intake."""
    if seen.facts.paused or seen.points[-1].pending <= SHORT_QUEUE:
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
    return seen.points[0].pending > SHORT_QUEUE and seen.acked() > seen.arrived() and seen.trend() < 0


def idle(seen: Evidence) -> bool:
    """Nothing waits, nothing is in flight, nothing arrives."""
    return seen.nearly_all(seen.empty) and seen.arrived() == 0 and seen.delivered() == 0


def healthy(seen: Evidence) -> bool:
    """Messages come and go, and no other rule holds. Where none do since workers are refused, nothing is said."""
    return not seen.facts.refused or seen.moved_at > seen.points[0].at


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
    """The most severe rule that holds; None while there is too little evidence."""
    if seen.thin:
        return None
    return next((name for name, holds in RULES if holds(seen)), None)


CALM_DIAGNOSES = (Diagnosis.HEALTHY, Diagnosis.IDLE)
PASSING = (Diagnosis.FALLING_BEHIND, Diagnosis.DRAINING, Diagnosis.IDLE)
"""What a healthy consumer can look like for a moment."""


def confirmed(diagnosis: Diagnosis | None, status: Status) -> Diagnosis | None:
    """The diagnosis as shown beside a status: no consumer is idle or healthy above inactive, the rules are only slower
    then."""
    return None if diagnosis in CALM_DIAGNOSES and status > Status.INACTIVE else diagnosis


class DiagnosisTracker:
    """The lasting diagnosis of one consumer, and since when it lasts.

    `before`, `lasted`: the diagnosis before a restart, and its seconds until then. It is not used until it is found
    again; then its time continues, without the time between. Another one is used once it was found CONFIRMATIONS times
    in a row, as without a restart, and not before the old one could have been found."""

    __slots__ = ("_agrees", "_before", "_failed", "_first_at", "_lasted", "evidence", "lasting", "since")

    def __init__(self, before: Diagnosis | None = None, lasted: float = 0.0) -> None:
        self.evidence = Evidence()
        self.lasting: Diagnosis | None = None
        self.since = 0.0
        self._before, self._lasted = before, lasted
        self._first_at: float | None = None
        self._agrees = True
        self._failed = 0
        """Times in a row that another diagnosis was current than `lasting`."""

    def due(self, at: float) -> bool:
        """Whether a sample at this time is far enough from the last point."""
        points = self.evidence.points
        return not points or at - points[-1].at >= SPACING

    def add_sample(self, point: Point, facts: ReplyFacts) -> Diagnosis | None:
        """The lasting diagnosis if this newest sample agrees with it, else None."""
        if self.due(point.at):
            current = self.add_point(point, facts)
        elif self.lasting is not None and self._differs(point, facts):
            current = diagnose(self.evidence.with_point(point, facts))
        else:
            return self.lasting if self._agrees else None
        # Between two of its pulls a healthy consumer may look different for a moment.
        passing = self.lasting is Diagnosis.HEALTHY and current in PASSING
        self._agrees = current is self.lasting or passing
        return self.lasting if self._agrees else None

    def is_steady(self, point: Point, facts: ReplyFacts) -> bool:
        """Whether further points like this one, with these facts, change nothing however many come. Holds only for a
        consumer with nothing to do: with a queue some rules depend on how long it lasts."""
        seen = self.evidence
        if self._before is not None or self._failed or seen.thin or facts != seen.facts:
            return False
        if facts.given_up is not None and seen.points[-1].at - facts.given_up <= POISON_SPAN:
            return False
        same = all(replace(other, at=point.at) == point for other in seen.points)
        return same and self.lasting is not None and diagnose(seen) is self.lasting

    def repeat_newest(self, times: Iterable[float], facts: ReplyFacts) -> None:
        """Add points like the newest one at these times, while `is_steady` holds; `facts` are those of the last one."""
        last = self.evidence.points[-1]
        for at in times:
            self.evidence.add(replace(last, at=at), facts)

    def _differs(self, point: Point, facts: ReplyFacts) -> bool:
        """Whether a sample differs from the newest point."""
        last = self.evidence.points[-1]
        return facts != self.evidence.facts or replace(point, at=last.at) != last

    def add_point(self, point: Point, facts: ReplyFacts) -> Diagnosis | None:
        """Add a point and update the lasting diagnosis. Returns what the points show now."""
        self.evidence.add(point, facts)
        self._first_at = point.at if self._first_at is None else self._first_at
        current = diagnose(self.evidence)
        if current is None or current is self.lasting:
            self._failed = 0
        elif self._before is not None:
            self._continue_after_restart(current, point.at)
        else:
            self._failed += 1
            if self.lasting is None or self._failed >= CONFIRMATIONS:
                self.lasting, self.since, self._failed = current, point.at, 0
        return current

    def _continue_after_restart(self, current: Diagnosis, at: float) -> None:
        """After a restart: the diagnosis from before continues, or another one replaces it."""
        assert self._first_at is not None
        self._failed = 0 if current is self._before else self._failed + 1
        if current is self._before:
            self.lasting, self.since = current, at - self._lasted
        elif self._failed >= CONFIRMATIONS and at - self._first_at >= (
            WORKING if self._before in SLOW_TO_FIND else 0.0
        ):
            self.lasting, self.since = current, at
        if self.lasting is not None:
            self._before, self._failed = None, 0
