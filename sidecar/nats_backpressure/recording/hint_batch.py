"""Advisories and ack metrics of one consumer, summed: 10,000 a second come to a line of some 11 kB a second."""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.recording.format import Hinted
from nats_backpressure.runtime.observations import AckSeen, MaxDeliveries, Nak, Terminated

HINTS_EVERY: Final = 1.0
"""Seconds of hints in one line, at most: ack metrics move the latency window of a replay by no more."""
HINTS_LIMIT: Final = 4096
"""Different ack times in one line; at the limit the line is full."""
ACK_STEP: Final = 1.01
"""Ack times are written as the nearest power of this: within 0.5 %, besides the 1 % of the quantiles."""
_SHORTEST, _LONGEST = 1e-6, 604_800.0


class HintBatch:
    def __init__(self, now: Now) -> None:
        self._began = now.mono
        self._newest = now
        self._acks: Counter[tuple[int, int]] = Counter()
        """By power of ACK_STEP, and deliveries."""
        self._naks = self._max_deliveries = self._terminated = 0

    def full(self, now: Now) -> bool:
        return now.mono - self._began >= HINTS_EVERY or len(self._acks) >= HINTS_LIMIT

    def add(self, hint: AckSeen | Nak | MaxDeliveries | Terminated, now: Now) -> None:
        self._newest = now
        match hint:
            case AckSeen():
                power = round(math.log(min(max(hint.seconds, _SHORTEST), _LONGEST)) / math.log(ACK_STEP))
                self._acks[power, hint.deliveries] += 1
            case Nak():
                self._naks += 1
            case MaxDeliveries():
                self._max_deliveries += 1
            case Terminated():
                self._terminated += 1

    def line(self, number: int) -> Hinted:
        """All of it, of the consumer that goes by this number."""
        acks = tuple((float(f"{ACK_STEP**power:.4g}"), times, n) for (power, times), n in sorted(self._acks.items()))
        at = round(self._newest.mono, 3), round(self._newest.wall, 3)
        return Hinted(number, at, acks, self._naks, self._max_deliveries, self._terminated)
