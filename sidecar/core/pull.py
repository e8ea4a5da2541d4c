"""How much a consumer may take: room under the in-flight mark, shared fairly, and never nothing for ever."""

from __future__ import annotations

import math
from collections import OrderedDict, deque

from msgspec import Struct

from sidecar.core.model import Reading
from sidecar.core.state import Member

GRANT_LIFE = 1.0
"""Seconds for which a grant counts although it was not seen as delivered."""
ASKER_LIFE = 1.0
"""Seconds for which an asker counts as another that wants its share."""
STILL = 5.0
"""Seconds without an ack after which somebody must pull: only a pull makes the server redeliver."""
SHORTEST_WAIT, LONGEST_WAIT = 0.05, 1.0
ASKERS = 256
"""Askers remembered; the one not heard from longest is forgotten first."""
GRANTS = 1024
"""Grants remembered per consumer; the oldest is forgotten first."""


class Grant(Struct, frozen=True):
    n: int
    wait: float
    """Seconds until it is worth asking again; 0 when n > 0."""


class Desk:
    """Grants of one consumer. They are this replica's own knowledge, forgotten within a second, and never stored."""

    def __init__(self) -> None:
        self._grants: deque[list[float]] = deque(maxlen=GRANTS)
        self._delivered: int | None = None
        self._askers: OrderedDict[str, float] = OrderedDict()
        self._probed = -math.inf

    def grant(self, member: Member, asked: int, asker: str, now: float, replicas: int, jitter: float) -> Grant:
        """What `asker` may take of `asked`; the member must be known. `jitter` in 0..1 spreads who comes back when."""
        reading = member.reading
        if reading is None or reading.inflight is None or member.marks is None or member.marks.inflight is None:
            return Grant(asked, 0.0)
        self._seen(reading)
        granted = self._outstanding(now)
        others = self._heard(asker, now)
        room = self._target(member) - reading.inflight - granted
        n = max(0, min(math.ceil(room / max(1, replicas)), asked))
        if others and n > (half := math.ceil(room / 2)):
            n = max(1, half)
        wait = self._wait(reading, room, jitter)
        if n == 0 and self._must_not_wait(reading, granted, wait, now):
            n = min(1, asked)
            self._probed = now
        if n > 0:
            self._grants.append([now, float(n)])
            return Grant(n, 0.0)
        return Grant(0, wait)

    def _target(self, member: Member) -> float:
        assert member.marks is not None and member.marks.inflight is not None
        mark = member.marks.inflight.overload
        latched = member.latches.inflight.on or member.latches.latency_p95.on
        return mark * member.policy.recovery_threshold if latched else mark

    def _must_not_wait(self, reading: Reading, granted: float, wait: float, now: float) -> bool:
        if not reading.inflight and not granted:
            return True
        still = reading.stall / 1000 + (now - reading.at.mono)
        return bool(reading.inflight) and still >= min(reading.ack_wait, STILL) and now - self._probed >= wait

    def _wait(self, reading: Reading, room: float, jitter: float) -> float:
        """About the time in which acks make room for one more."""
        needed = max(1.0, 1.0 - room)
        expected = needed / reading.ack_rate if reading.ack_rate else LONGEST_WAIT
        return min(LONGEST_WAIT, max(SHORTEST_WAIT, expected * (0.75 + 0.5 * jitter)))

    def _seen(self, reading: Reading) -> None:
        """Take what was delivered since off the grants, the oldest first."""
        before, self._delivered = self._delivered, reading.delivered_consumer
        left = 0 if before is None else max(0, reading.delivered_consumer - before)
        while left > 0 and self._grants:
            taken = min(left, self._grants[0][1])
            self._grants[0][1] -= taken
            left -= int(taken)
            if self._grants[0][1] <= 0:
                self._grants.popleft()

    def _outstanding(self, now: float) -> float:
        while self._grants and now - self._grants[0][0] >= GRANT_LIFE:
            self._grants.popleft()
        return sum(n for _, n in self._grants)

    def _heard(self, asker: str, now: float) -> bool:
        """Whether another than `asker` was heard lately."""
        self._askers[asker] = now
        self._askers.move_to_end(asker)
        while self._askers and (len(self._askers) > ASKERS or now - next(iter(self._askers.values())) >= ASKER_LIFE):
            self._askers.popitem(last=False)
        return len(self._askers) > 1
