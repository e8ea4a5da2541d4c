"""Bounded windows over time: rates over the last 10 seconds, and the capacity learnt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from struct import Struct as Format
from typing import Final

from msgspec import Struct
from msgspec.structs import astuple

RATE_SPAN = 10.0
"""Seconds a rate looks back."""
RATE_SLOT = 0.5
SLOTS = int(RATE_SPAN / RATE_SLOT)
ENOUGH_TIME = 1.0
"""Seconds of evidence below which a rate is unknown."""
FEW_AGAIN = 0.25
"""Redeliveries per ack up to which an estimate is close: one NAK counts twice, as returned and as redelivered."""
CAPACITY_SPAN = 30.0
"""Seconds of work after which what was learnt of capacity weighs 1/e."""


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


SLOT: Final = Format(f"{1 + len(IntervalCounts.__struct_fields__)}d")
"""The number of a slot, and its counts."""
Slots = Sequence[tuple[float, ...]]


class RateWindow:
    """Counts of the last RATE_SPAN seconds, in slots of RATE_SLOT; none is kept while nothing is counted."""

    __slots__ = ("_slots",)

    def __init__(self) -> None:
        self._slots = b""
        """Packed: as objects they would take up to five times the 1.8 KB."""

    def add(self, now: float, counts: IntervalCounts) -> None:
        """Add an interval that ended `now`; one longer than the whole window is no evidence for the present."""
        if counts.time > RATE_SPAN:
            self.clear()
            return
        number, slots, added = int(now / RATE_SLOT), self._slots, astuple(counts)
        if slots and (newest := SLOT.unpack_from(slots, len(slots) - SLOT.size))[0] == number:
            slots, added = slots[: -SLOT.size], astuple(_sum((newest, (number, *added))))
        slots += SLOT.pack(number, *added)
        while SLOT.unpack_from(slots)[0] < number - SLOTS:
            slots = slots[SLOT.size :]
        self._slots = slots

    def total(self, now: float, since: float = -math.inf) -> IntervalCounts:
        """The sum of the whole window, or of the slots in it that began after `since`."""
        oldest = int(now / RATE_SLOT) - SLOTS
        if since > -math.inf:
            oldest = max(oldest, int(since / RATE_SLOT))
        slots = [slot for slot in SLOT.iter_unpack(self._slots) if slot[0] > oldest]
        total = _sum(slots)
        if total.lead_time and _comes_and_goes(slots):
            total.lead_time = total.lead_acks = 0.0
        return total

    def is_still(self, now: float) -> bool:
        """Whether there was enough time in the window, and nothing happened in it."""
        total = self.total(now)
        return total.time >= ENOUGH_TIME and total == IntervalCounts(time=total.time)

    def clear(self) -> None:
        """Forget everything."""
        self._slots = b""


def _sum(slots: Slots) -> IntervalCounts:
    """The sum of slots, in their order."""
    time = acks = arrivals = deliveries = redeliveries = held = waited = waited_acks = lead = lead_acks = 0.0
    # Written out: this runs for every slot of every consumer in every reading.
    for _, a, b, c, d, e, f, g, h, i, j in slots:
        time += a
        acks += b
        arrivals += c
        deliveries += d
        redeliveries += e
        held += f
        if not waited_acks:
            lead += i
            lead_acks += j
        waited += g
        waited_acks += h
    return IntervalCounts(time, acks, arrivals, deliveries, redeliveries, held, waited, waited_acks, lead, lead_acks)


def _comes_and_goes(slots: Slots) -> bool:
    """Whether the worker went away again after it worked: then time without it is part of how fast it works."""
    began, gone = False, 0.0
    for *_, waited, acks, lead, _ in slots:
        if acks or waited > lead:
            began, gone = began or acks > 0, 0.0
        elif began and (gone := gone + waited) >= ENOUGH_TIME:
            return True
    return False


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
