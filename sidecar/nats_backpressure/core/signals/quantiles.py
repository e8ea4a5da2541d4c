"""Bounded windows of latencies: their quantiles over the last minute."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from itertools import accumulate

LATENCY_SPAN = 60.0
"""Seconds latency quantiles look back."""
LATENCY_SLOT = 10.0
ENOUGH_SAMPLES = 20
"""Fewer ack samples give no quantile."""

_ERROR = 0.01
_GAMMA = (1 + _ERROR) / (1 - _ERROR)
_LOG_GAMMA = math.log(_GAMMA)
_SHORTEST, _LONGEST = 1e-6, 604_800.0
"""Seconds; values are clamped to this range, which bounds a slot to some 1,360 buckets."""


class Quantiles:
    """Latency quantiles of the last LATENCY_SPAN seconds with at most 1 % relative error.

    Buckets grow geometrically, as in DDSketch (Masson, Rim, Lee: VLDB 2019), so that any rate takes the same memory: an
    array of counts for each slot, from its lowest to its highest bucket.
    """

    __slots__ = ("_merged", "_slots", "newest")

    def __init__(self) -> None:
        self._slots: list[tuple[int, Buckets]] = []
        self._merged = NO_BUCKETS
        """The sum of all slots, updated with them: adding them up for every reading would be most of its cost."""
        self.newest: float | None = None
        """Monotonic time of the newest sample."""

    def add(self, now: float, seconds: float, times: int = 1) -> None:
        """Add a latency in seconds that was measured so many times; `now` is monotonic time."""
        slot = int(now / LATENCY_SLOT)
        if not self._slots or self._slots[-1][0] != slot:
            self._drop_old(slot)
            self._slots.append((slot, Buckets()))
        if self._merged is NO_BUCKETS:
            self._merged = Buckets()
        bucket = math.ceil(math.log(min(max(seconds, _SHORTEST), _LONGEST)) / _LOG_GAMMA)
        self._slots[-1][1].add(bucket, times)
        self._merged.add(bucket, times)
        self.newest = now

    def at(self, now: float, *shares: float) -> tuple[float, ...] | None:
        """The quantiles for these shares (0..1), in seconds; None with fewer than ENOUGH_SAMPLES."""
        if not self._slots:
            return None
        self._drop_old(int(now / LATENCY_SLOT))
        if (total := self._merged.total) < ENOUGH_SAMPLES:
            return None
        sums = list(accumulate(self._merged.counts))
        ranks = (bisect_right(sums, share * (total - 1)) for share in shares)
        return tuple(2 * math.exp((self._merged.lowest + rank) * _LOG_GAMMA) / (_GAMMA + 1) for rank in ranks)

    @property
    def is_empty(self) -> bool:
        """Whether it holds no sample."""
        return not self._slots

    def is_newer(self, than: float) -> bool:
        """Whether it holds nothing that was added up to this time."""
        return all(slot > int(than / LATENCY_SLOT) for slot, _ in self._slots)

    def _drop_old(self, slot: int) -> None:
        """Drop the slots that are too old for the window that ends in `slot`."""
        while self._slots and self._slots[0][0] <= slot - int(LATENCY_SPAN / LATENCY_SLOT):
            self._merged.subtract(self._slots.pop(0)[1])
        if not self._slots:
            self._merged = NO_BUCKETS


class Buckets:
    """How many values fell into each bucket, from the lowest to the highest one that had any."""

    __slots__ = ("counts", "lowest", "total")

    def __init__(self) -> None:
        self.counts = array("B")
        self.lowest = 0
        self.total = 0

    def add(self, bucket: int, times: int = 1) -> None:
        """Count a value that came so many times."""
        counts = self.counts
        if not counts:
            self.lowest = bucket
        place = bucket - self.lowest
        if place < 0:
            counts[:0] = array(counts.typecode, bytes(-place * counts.itemsize))
            self.lowest, place = bucket, 0
        elif place >= len(counts):
            counts.frombytes(bytes((place + 1 - len(counts)) * counts.itemsize))
        try:
            counts[place] += times
        except OverflowError:  # more than 255 values, or rarely 65,535, within one percent of each other in one slot
            self.counts = array("H" if counts[place] + times < 2**16 else "I", counts)
            self.counts[place] += times
        self.total += times

    def subtract(self, other: Buckets) -> None:
        """Take out the values of `other`, which were all added here before."""
        counts, offset = self.counts, other.lowest - self.lowest
        for place, count in enumerate(other.counts, offset):
            if count:
                counts[place] -= count
        self.total -= other.total
        self._trim()

    def _trim(self) -> None:
        """Drop the empty buckets at both ends."""
        counts = self.counts
        first = next((place for place, count in enumerate(counts) if count), len(counts))
        last = next((place for place in range(len(counts), first, -1) if counts[place - 1]), first)
        self.counts, self.lowest = counts[first:last], self.lowest + first


NO_BUCKETS = Buckets()
"""Shared by all windows that hold nothing; never added to."""
NO_QUANTILES = Quantiles()
"""Shared by all consumers without ack metrics; never added to."""
