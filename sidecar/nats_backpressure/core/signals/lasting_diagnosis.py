"""The diagnosis that lasts: it changes only after another one was found twice in a row, so that one odd sample neither
starts nor ends it."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from nats_backpressure.core.signals.diagnosis import POISON_SPAN, WORKING, diagnose
from nats_backpressure.core.signals.evidence import SPACING, Evidence, Point, ReplyFacts
from nats_backpressure.protocol.values import Diagnosis

CONFIRMATIONS = 2
"""Times in a row that another diagnosis must be found before it is used; the first one needs only MIN_POINTS points."""
SLOW_TO_FIND = (Diagnosis.CAP_REACHED, Diagnosis.NOBODY_PULLING)
"""These may take WORKING seconds to be found: until then another diagnosis does not rule them out."""
PASSING = (Diagnosis.FALLING_BEHIND, Diagnosis.DRAINING, Diagnosis.IDLE)
"""What a healthy consumer can look like for a moment."""


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

    def skip(self, seconds: float) -> None:
        """Nobody looked for so long: that counts for no diagnosis."""
        self.evidence.skip(seconds)
        self.since += seconds
        if self._first_at is not None:
            self._first_at += seconds

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
