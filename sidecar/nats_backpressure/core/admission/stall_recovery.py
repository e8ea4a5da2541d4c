"""StallRecovery: what may be pulled without room once no ack comes."""

from __future__ import annotations

import math
from collections import deque

from nats_backpressure.core.admission.requesters import GRANT_LIFE
from nats_backpressure.core.model.reading import Reading

STILL = 5.0
"""Seconds without an ack after which one pull is granted, whatever is in flight: only a pull makes the server
redeliver."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds without such a pull after one that brought a new message, which nobody acknowledged; twice as long each
time."""


class StallRecovery:
    """What may be pulled without room: without any pull, messages of dead workers would stay in flight forever.

    Once there was no ack for long enough: one message per wait, and beyond that as many as certainly add nothing to
    what is in flight, since the server first redelivers what was not acknowledged in time. That number starts at one
    and is doubled, only while in flight does not grow, since a worker that asks for more time also looks like a dead
    one. A pull after which it does grow shows that nothing was due then: the next one waits longer, until one brings a
    message again that was in flight.
    """

    def __init__(self) -> None:
        self.on = False
        self._seen: Reading | None = None
        """The last reading."""
        self._history: deque[tuple[float, int]] = deque()
        """(time, number of deliveries), one ack wait back."""
        self._allowance = 1
        self._raised_at = 0
        """The deliveries counted when the allowance was last doubled."""
        self._ceiling = 0
        self._counted = -math.inf
        self._read = (0, 0)
        """In flight and deliveries at the last question."""
        self._try: tuple[float, int, int] | None = None
        """The last such pull, until a reading shows what it brought: when it was granted, and what was read then."""
        self.pause, self._paused_at = 0.0, -math.inf

    def end(self, reading: Reading) -> None:
        self._remember(reading)
        self.on = False

    def record_grant(self, now: float) -> None:
        self._counted = now
        if self.on:
            self._try = (now, *self._read)

    def n(self, reading: Reading, beside: int, wait: float, now: float) -> int:
        """`beside`: what was granted, and what comes back only later than after an ack wait."""
        self._remember(reading)
        self._learn(reading, now)
        inflight = reading.inflight or 0
        self._read = inflight, reading.delivered_consumer
        still = inflight > 0 and reading.stall / 1000 + (now - reading.at.mono) >= min(reading.ack_wait, STILL)
        if self.on and inflight > self._ceiling:
            self.on = False
        if not self.on and still:
            self.on, self._allowance = True, 1
            self._ceiling, self._raised_at = inflight, reading.delivered_consumer
        if not self.on:
            return 0
        self._ceiling = inflight
        if now < self._paused_at + self.pause:
            return 0
        if reading.delivered_consumer - self._raised_at >= self._allowance:
            self._allowance, self._raised_at = 2 * self._allowance, reading.delivered_consumer
        harmless = min(self._allowance, self._expired(reading, inflight)) - beside
        return max(harmless, 1 if still and now - self._counted >= wait else 0)

    def _learn(self, reading: Reading, now: float) -> None:
        """What the last such pull brought, if a reading shows it. With an ack since it cannot be told."""
        if now >= self._paused_at + 2 * LONGEST_PAUSE:
            self.pause = 0.0
        if self._try is None or reading.at.mono <= self._try[0]:
            return
        at, inflight, delivered = self._try
        if reading.delivered_consumer == delivered and reading.at.mono < at + GRANT_LIFE:
            return
        self._try = None
        acked = reading.at.mono - reading.stall / 1000 > at
        if reading.delivered_consumer <= delivered or acked:
            return
        grew = (reading.inflight or 0) > inflight
        self.pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * self.pause)) if grew else 0.0
        self._paused_at = at

    def _remember(self, reading: Reading) -> None:
        if reading is self._seen:
            return
        self._seen = reading
        at, delivered = reading.at.mono, reading.delivered_consumer
        if self._history and delivered < self._history[-1][1]:
            self._history.clear()  # another incarnation
        if not self._history or at - self._history[-1][0] >= reading.ack_wait / 32:
            self._history.append((at, delivered))
        while len(self._history) > 1 and (self._history[1][0] <= at - reading.ack_wait or len(self._history) > 64):
            self._history.popleft()

    def _expired(self, reading: Reading, inflight: int) -> int:
        """How many messages in flight were certainly delivered longer than an ack wait ago."""
        at, delivered = self._history[0]
        if reading.at.mono - at < reading.ack_wait:
            return 0
        return max(0, inflight - (reading.delivered_consumer - delivered))
