"""Sums one consumer's advisories and ack metrics of up to one second into one line of the recording.

10,000 per second make about 11 kB per second.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Final

from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.recording.format import HintsLine
from nats_backpressure.runtime.observations import AckSeen, ConsumerHint, MaxDeliveries, Nak, Terminated

BATCH_SECONDS: Final = 1.0
"""Most seconds of hints in one line: the latency window of a replay is off by no more."""
ACK_TIMES_LIMIT: Final = 4096
"""Most different ack times in one line."""
ACK_STEP: Final = 1.01
"""Ack times are rounded to a power of this: within 0.5 %, in addition to the 1 % of the quantiles."""
_SHORTEST, _LONGEST = 1e-6, 604_800.0


class HintBatch:
    def __init__(self, now: Now) -> None:
        self.started_at = now.mono
        self._newest = now
        self._acks: Counter[tuple[int, int]] = Counter()
        """Number of acks by power of ACK_STEP and deliveries."""
        self._naks = self._max_deliveries = self._terminated = 0

    def is_full(self, now: Now) -> bool:
        return now.mono - self.started_at >= BATCH_SECONDS or len(self._acks) >= ACK_TIMES_LIMIT

    def add(self, hint: ConsumerHint, now: Now) -> None:
        self._newest = now
        match hint:
            case AckSeen():
                power = round(math.log(min(max(hint.seconds, _SHORTEST), _LONGEST)) / math.log(ACK_STEP))
                self._acks[power, hint.deliveries] += hint.times
            case Nak():
                self._naks += hint.times
            case MaxDeliveries():
                self._max_deliveries += hint.times
            case Terminated():
                self._terminated += hint.times

    def to_line(self, number: int) -> HintsLine:
        """The line for the consumer with this number."""
        acks = tuple((float(f"{ACK_STEP**power:.4g}"), times, n) for (power, times), n in sorted(self._acks.items()))
        at = round(self._newest.mono, 3), round(self._newest.wall, 3)
        return HintsLine(number, at, acks, self._naks, self._max_deliveries, self._terminated)


def hints_of(key: ConsumerKey, line: HintsLine, at: Now) -> Iterator[ConsumerHint]:
    """The hints in the line of a consumer, as if they had come at this moment."""
    for seconds, deliveries, times in line.acks:
        if times:
            yield AckSeen(key, seconds, deliveries, at, times)
    if line.naks:
        yield Nak(key, line.naks)
    if line.max_deliveries:
        yield MaxDeliveries(key, line.max_deliveries)
    if line.terminated:
        yield Terminated(key, line.terminated)
