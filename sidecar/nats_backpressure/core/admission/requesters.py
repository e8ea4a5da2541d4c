"""Requesters: what those that report it hold of a consumer, exactly, between two readings.

A reading is up to an interval old: the acks since are not in it, and would leave no room where the mark is little above
what the workers need. Requesters that report how many messages they hold show them with their next request.
"""

from __future__ import annotations

import math
from collections import deque

from msgspec import Struct

from nats_backpressure.core.model.reading import Reading

ACTIVE_FOR = 3.0
"""Seconds after its last request for which a requester that holds nothing counts as one that wants its part: those
whose pull found nothing ask once a second."""
REPORT_LIFE = 60.0
"""Seconds for which a report counts; then what it held is taken from readings, as for those that report nothing."""
PLAIN_FOR = 60.0
"""Seconds after the request of one that reports nothing in which only readings show what is in flight."""
OTHERS_FOR = 2.0
"""Seconds of readings whose highest excess counts as held by others: by who died, or reports nothing."""
KNOWN_AFTER = 0.03
"""Seconds after which all replicas know what one of them granted."""
SLOT = 0.02
"""Seconds of a slot in which sums are remembered, so that their number is bounded."""
MOST_REQUESTERS = 1024
"""Requesters that are remembered; beyond, the one that asked least recently is forgotten as if REPORT_LIFE was over."""


class _Report(Struct):
    most: int
    """What it may hold at most: what it reported, and what it was granted since."""
    at: float


class Requesters:
    """What all requesters of one consumer hold at most."""

    def __init__(self) -> None:
        self._reports: dict[str, _Report] = {}
        """The one that asked least recently first."""
        self._sum = 0
        self._sums: deque[list[float]] = deque()
        """[time, highest sum] of the slots of the last OTHERS_FOR seconds."""
        self._others: deque[tuple[float, int]] = deque()
        """(time, excess) of the readings of the last OTHERS_FOR seconds."""
        self._seen = -math.inf
        """The time of the newest reading."""
        self._plain_until = -math.inf
        self._new = ""
        """The one that asks now, if it never asked before."""
        self._active, self._active_until = 1, -math.inf

    def ask(self, requester: str, held: int | None, reading: Reading, now: float) -> None:
        """A request comes: what was granted before to this requester is pulled or given back."""
        self._read(reading, now)
        if held is None:
            self._plain_until = now + PLAIN_FOR
            return
        self._replace(requester, held, now)
        self._forget(now)

    def grant(self, requester: str, n: int, now: float) -> None:
        """`n` messages are granted, after `ask`."""
        if (report := self._reports.get(requester)) is not None:
            report.most += n
            self._add(n, now)

    def held_by(self, requester: str) -> int:
        return report.most if (report := self._reports.get(requester)) else 0

    def inflight(self, read: int, now: float) -> int:
        """How many messages are in flight at most; `read`: by the newest reading and the grants since."""
        if now < self._plain_until or not self._reports:
            return read
        return min(read, self._sum + self._excess(now))

    def _excess(self, now: float) -> int:
        """Messages that others hold."""
        return max((n for at, n in self._others if now - at <= OTHERS_FOR), default=0)

    def part_of(self, target: int, requester: str, now: float) -> int:
        """How many messages of the target one requester may hold: as many as any other, so that none waits for what
        another works off slowly. The first time just one: who else asks is not known yet."""
        return 1 if requester == self._new else max(1, target // self._active_ones(now))

    def is_shared_out(self, target: int, requester: str, now: float) -> bool:
        """Whether nobody holds more than its part and the parts are no more than the target: then each may be granted
        its part by any replica at any moment, whatever another one grants."""
        if now < self._plain_until or requester == self._new or self._excess(now) > 0:
            return False
        active = self._active_ones(now)
        part = max(1, target // active)
        return active * part <= target and all(report.most <= part for report in self._reports.values())

    def _active_ones(self, now: float) -> int:
        """How many requesters hold something or asked lately, at least 1."""
        if now >= self._active_until:
            reports = self._reports.values()
            self._active = max(1, sum(report.most > 0 or now - report.at < ACTIVE_FOR for report in reports))
            self._active_until = now + SLOT
        return self._active

    def _read(self, reading: Reading, now: float) -> None:
        """A reading shows what others hold: what is more than the requesters held at most when it was made. That is
        known once what other replicas granted until then has come."""
        if (at := reading.at.mono) <= self._seen or now - at < KNOWN_AFTER or reading.inflight is None:
            return
        self._seen = at
        held = [most for since, most in self._sums if at - SLOT <= since + SLOT and since <= at + KNOWN_AFTER]
        if (excess := reading.inflight - int(max(held, default=self._sum))) > 0:
            self._others.append((now, excess))
        while self._others and now - self._others[0][0] > OTHERS_FOR:
            self._others.popleft()

    def _replace(self, requester: str, held: int, now: float) -> None:
        report = self._reports.pop(requester, None)
        self._new = requester if report is None else ""
        if report is None or now - report.at >= ACTIVE_FOR:
            self._active_until = -math.inf
        self._reports[requester] = _Report(held, now)
        self._add(held - (report.most if report else 0), now)

    def _add(self, n: int, now: float) -> None:
        """Change the sum; a slot has the highest one of its time, which begins with the one before."""
        if not self._sums or now - self._sums[-1][0] >= SLOT:
            self._sums.append([now, self._sum])
        self._sum += n
        self._sums[-1][1] = max(self._sums[-1][1], self._sum)
        while now - self._sums[0][0] > OTHERS_FOR:
            self._sums.popleft()

    def _forget(self, now: float) -> None:
        while self._reports:
            oldest = next(iter(self._reports))
            report = self._reports[oldest]
            if now - report.at < REPORT_LIFE and len(self._reports) <= MOST_REQUESTERS:
                return
            del self._reports[oldest]
            self._add(-report.most, now)
            if report.most:
                self._others.append((now, report.most))
