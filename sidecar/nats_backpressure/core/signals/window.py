"""Bounded windows over what was seen: rates over the last seconds, quantiles over the last minute."""

from __future__ import annotations

import math
from collections import Counter, deque

from msgspec import Struct

RATE_SPAN = 10.0
"""Seconds a rate looks back."""
RATE_SLOT = 0.5
ENOUGH_TIME = 1.0
"""Seconds of evidence below which a rate is not known."""
FEW_AGAIN = 0.25
"""Redeliveries for each ack up to which an estimate is not far off: one NAK shows twice, handed back and come again."""
LATENCY_SPAN = 60.0
"""Seconds latency quantiles look back."""
LATENCY_SLOT = 10.0
ENOUGH_SAMPLES = 20
"""Fewer ack samples than this give no quantile."""
CAPACITY_SPAN = 30.0
"""Seconds of work after which what was learnt of capacity weighs 1/e of what is learnt now."""

_ERROR = 0.01
_GAMMA = (1 + _ERROR) / (1 - _ERROR)
_LOG_GAMMA = math.log(_GAMMA)
_SHORTEST, _LONGEST = 1e-6, 604_800.0
"""Seconds; values are clamped to this range, which bounds a slot to some 1,360 buckets."""


class IntervalCounts(Struct, gc=False):
    """What happened in some stretch of time; `time` is seconds, the others messages."""

    time: float = 0.0
    acks: float = 0.0
    arrivals: float = 0.0
    deliveries: float = 0.0
    redeliveries: float = 0.0
    held: float = 0.0
    """Message-seconds in flight, without what was handed back."""
    waited_time: float = 0.0
    """Seconds in which messages waited at both ends of an interval."""
    waited_acks: float = 0.0

    def add(self, other: IntervalCounts) -> None:
        # Spelt out: this runs for every slot of every consumer in every reading.
        self.time += other.time
        self.acks += other.acks
        self.arrivals += other.arrivals
        self.deliveries += other.deliveries
        self.redeliveries += other.redeliveries
        self.held += other.held
        self.waited_time += other.waited_time
        self.waited_acks += other.waited_acks

    def estimate(self) -> float | None:
        """Mean seconds in flight (Little, L = lambda W); None on thin evidence or while redeliveries look like acks."""
        return None if self.redeliveries > 0 else self.rough_estimate()

    def rough_estimate(self) -> float | None:
        """The same where few messages came again, so that they do not pass for acks."""
        if self.time < ENOUGH_TIME or self.acks <= 0 or self.redeliveries > FEW_AGAIN * self.acks:
            return None
        return self.held / self.acks

    def drain(self, pending: int) -> float | None:
        """Seconds until `pending` is through at the ack rate of the time in which messages waited."""
        if self.waited_time < ENOUGH_TIME or self.waited_acks <= 0:
            return None
        return pending * self.waited_time / self.waited_acks


class RateWindow:
    """Tallies of the last RATE_SPAN seconds, in slots of RATE_SLOT."""

    __slots__ = ("_slots",)

    def __init__(self) -> None:
        self._slots: deque[tuple[int, IntervalCounts]] = deque(maxlen=int(RATE_SPAN / RATE_SLOT) + 1)

    def add(self, now: float, tally: IntervalCounts) -> None:
        """Count an interval that ended `now`; one longer than the whole window says nothing about the present."""
        if tally.time > RATE_SPAN:
            self._slots.clear()
            return
        slot = int(now / RATE_SLOT)
        if self._slots and self._slots[-1][0] == slot:
            self._slots[-1][1].add(tally)
        else:
            self._slots.append((slot, tally))

    def total(self, now: float, since: float = -math.inf) -> IntervalCounts:
        """The sum of the whole window, or of the slots in it that began after `since`."""
        oldest = int(now / RATE_SLOT) - int(RATE_SPAN / RATE_SLOT)
        if since > -math.inf:
            oldest = max(oldest, int(since / RATE_SLOT))
        total = IntervalCounts()
        for slot, tally in self._slots:
            if slot > oldest:
                total.add(tally)
        return total


class Quantiles:
    """Latency quantiles of the last LATENCY_SPAN seconds with at most 1 % relative error.

    Buckets grow geometrically, as in DDSketch (Masson, Rim, Lee: VLDB 2019), so that any rate takes the same memory.
    """

    __slots__ = ("_merged", "_slots", "newest")

    def __init__(self) -> None:
        self._slots: deque[tuple[int, Counter[int]]] = deque()
        self._merged: Counter[int] = Counter()
        """The sum of all slots, kept as they come and go: to sum them for every reading would be most of its cost."""
        self.newest: float | None = None
        """Monotonic time of the newest sample."""

    def add(self, now: float, seconds: float) -> None:
        slot = int(now / LATENCY_SLOT)
        if not self._slots or self._slots[-1][0] != slot:
            self._forget(slot)
            self._slots.append((slot, Counter()))
        bucket = math.ceil(math.log(min(max(seconds, _SHORTEST), _LONGEST)) / _LOG_GAMMA)
        self._slots[-1][1][bucket] += 1
        self._merged[bucket] += 1
        self.newest = now

    def at(self, now: float, *shares: float) -> tuple[float, ...] | None:
        """The quantiles asked for, in seconds; None under ENOUGH_SAMPLES."""
        self._forget(int(now / LATENCY_SLOT))
        if (total := self._merged.total()) < ENOUGH_SAMPLES:
            return None
        buckets = sorted(self._merged.items())
        return tuple(_rank(buckets, share * (total - 1)) for share in shares)

    def _forget(self, slot: int) -> None:
        """Let go of the slots that are too old for the window that ends in `slot`."""
        while self._slots and self._slots[0][0] <= slot - int(LATENCY_SPAN / LATENCY_SLOT):
            # Subtracted in place, which leaves no bucket at 0 behind.
            self._merged -= self._slots.popleft()[1]


def _rank(buckets: list[tuple[int, int]], rank: float) -> float:
    seen = 0
    index = 0
    for index, count in buckets:  # noqa: B007  # the last one is the answer where rounding goes past it
        seen += count
        if seen > rank:
            break
    return 2 * math.exp(index * _LOG_GAMMA) / (_GAMMA + 1)


class Capacity:
    """Messages a second over the time in which it was to be learnt, the recent weighing more.

    An exponentially weighted mean by time (one sum of messages, one of seconds, both fading with CAPACITY_SPAN), so
    that it holds for intervals of any length. While nothing is learnt nothing fades.
    """

    __slots__ = ("_acks", "_time")

    def __init__(self, rate: float | None = None) -> None:
        """`rate`: what was learnt before a restart; it weighs as much as if it had just been learnt."""
        self._time = 0.0 if rate is None else CAPACITY_SPAN
        self._acks = 0.0 if rate is None else rate * CAPACITY_SPAN

    def learn(self, seconds: float, acks: float) -> None:
        fading = math.exp(-seconds / CAPACITY_SPAN)
        self._acks = self._acks * fading + acks
        self._time = self._time * fading + seconds

    @property
    def rate(self) -> float | None:
        """None until ENOUGH_TIME was seen, and while no ack was: that is no rate, see `drain`."""
        return self._acks / self._time if self._time >= ENOUGH_TIME and self._acks > 0 else None
