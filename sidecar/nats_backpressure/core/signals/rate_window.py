"""Bounded windows over time: rates over the last 10 seconds, latency quantiles over the last minute, capacity."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from itertools import accumulate

from msgspec import Struct

RATE_SPAN = 10.0
"""Seconds a rate looks back."""
RATE_SLOT = 0.5
SLOTS = int(RATE_SPAN / RATE_SLOT)
ENOUGH_TIME = 1.0
"""Seconds of evidence below which a rate is unknown."""
FEW_AGAIN = 0.25
"""Redeliveries per ack up to which an estimate is close: one NAK counts twice, as returned and as redelivered."""
LATENCY_SPAN = 60.0
"""Seconds latency quantiles look back."""
LATENCY_SLOT = 10.0
ENOUGH_SAMPLES = 20
"""Fewer ack samples give no quantile."""
CAPACITY_SPAN = 30.0
"""Seconds of work after which what was learnt of capacity weighs 1/e."""

_ERROR = 0.01
_GAMMA = (1 + _ERROR) / (1 - _ERROR)
_LOG_GAMMA = math.log(_GAMMA)
_SHORTEST, _LONGEST = 1e-6, 604_800.0
"""Seconds; values are clamped to this range, which bounds a slot to some 1,360 buckets."""


class IntervalCounts(Struct, gc=False):
    """Sums over an interval; `time` is in seconds, the others in messages unless stated."""

    time: float = 0.0
    acks: float = 0.0
    arrivals: float = 0.0
    deliveries: float = 0.0
    redeliveries: float = 0.0
    held: float = 0.0
    """Message-seconds in flight, without what was returned with a delayed NAK."""
    waited_time: float = 0.0
    """Seconds in which messages waited at both ends of an interval."""
    waited_acks: float = 0.0
    lead_time: float = 0.0
    """What of `waited_time` came before anything was worked on: it began with nothing in flight and no pull that waits,
    and no ack of these sums is older. The interval of the first ack is part of it."""
    lead_acks: float = 0.0

    def add(self, other: IntervalCounts) -> None:
        """Add the sums of a later interval."""
        # Written out: this runs for every slot of every consumer in every reading.
        self.time += other.time
        self.acks += other.acks
        self.arrivals += other.arrivals
        self.deliveries += other.deliveries
        self.redeliveries += other.redeliveries
        self.held += other.held
        if not self.waited_acks:
            self.lead_time += other.lead_time
            self.lead_acks += other.lead_acks
        self.waited_time += other.waited_time
        self.waited_acks += other.waited_acks

    def estimate(self) -> float | None:
        """Mean seconds in flight (Little's law, L = lambda W); None with too little evidence or any redelivery."""
        return None if self.redeliveries > 0 else self.rough_estimate()

    def rough_estimate(self) -> float | None:
        """The same where few messages were redelivered, so that they do not count as acks."""
        if self.time < ENOUGH_TIME or self.acks <= 0 or self.redeliveries > FEW_AGAIN * self.acks:
            return None
        return self.held / self.acks

    def drain(self, pending: int) -> float | None:
        """Seconds to process `pending` messages, at the ack rate while messages waited; None without evidence."""
        time, acks = self.waited_time - self.lead_time, self.waited_acks - self.lead_acks
        return None if time < ENOUGH_TIME or acks <= 0 else pending * time / acks


class RateWindow:
    """Counts of the last RATE_SPAN seconds, in slots of RATE_SLOT; none is kept while nothing is counted."""

    __slots__ = ("_slots",)

    def __init__(self) -> None:
        self._slots: list[tuple[int, IntervalCounts]] = []

    def add(self, now: float, counts: IntervalCounts) -> None:
        """Add an interval that ended `now`; one longer than the whole window is no evidence for the present."""
        if counts.time > RATE_SPAN:
            self._slots.clear()
            return
        slot, slots = int(now / RATE_SLOT), self._slots
        if slots and slots[-1][0] == slot:
            slots[-1][1].add(counts)
        else:
            slots.append((slot, counts))
            while slots[0][0] < slot - SLOTS:
                del slots[0]

    def total(self, now: float, since: float = -math.inf) -> IntervalCounts:
        """The sum of the whole window, or of the slots in it that began after `since`."""
        oldest = int(now / RATE_SLOT) - SLOTS
        if since > -math.inf:
            oldest = max(oldest, int(since / RATE_SLOT))
        total = IntervalCounts()
        for slot, counts in self._slots:
            if slot > oldest:
                total.add(counts)
        if total.lead_time and self._comes_and_goes(oldest):
            total.lead_time = total.lead_acks = 0.0
        return total

    def _comes_and_goes(self, oldest: int) -> bool:
        """Whether the worker went away again after it worked: then time without it is part of how fast it works."""
        began, gone = False, 0.0
        for slot, counts in self._slots:
            if slot <= oldest:
                continue
            if counts.waited_acks or counts.waited_time > counts.lead_time:
                began, gone = began or counts.waited_acks > 0, 0.0
            elif began and (gone := gone + counts.waited_time) >= ENOUGH_TIME:
                return True
        return False

    def is_still(self, now: float) -> bool:
        """Whether there was enough time in the window, and nothing happened in it."""
        total = self.total(now)
        return total.time >= ENOUGH_TIME and total == IntervalCounts(time=total.time)

    def clear(self) -> None:
        """Forget everything."""
        self._slots.clear()


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
        self.counts = array("H")
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
        except OverflowError:  # rare: 65,535 values within one percent of each other in one slot
            self.counts = array("I", counts)
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


class Capacity:
    """Messages per second that a consumer can process, learnt while it was busy.

    An exponentially weighted mean by time (one sum of messages, one of seconds, both fading with CAPACITY_SPAN), so
    that it holds for intervals of any length. While nothing is learnt nothing fades.
    """

    __slots__ = ("_acks", "_time")

    def __init__(self, rate: float | None = None) -> None:
        """`rate`: what was learnt before a restart; it has the weight of something just learnt."""
        self._time = 0.0 if rate is None else CAPACITY_SPAN
        self._acks = 0.0 if rate is None else rate * CAPACITY_SPAN

    def learn(self, seconds: float, acks: float) -> None:
        """Add a busy interval."""
        fading = math.exp(-seconds / CAPACITY_SPAN)
        self._acks = self._acks * fading + acks
        self._time = self._time * fading + seconds

    @property
    def rate(self) -> float | None:
        """None until there was ENOUGH_TIME, and while there was no ack: that is no rate, see `drain`."""
        return self._acks / self._time if self._time >= ENOUGH_TIME and self._acks > 0 else None
