"""Sums over the last minute, hour and day of a subject: time in each status, and min, mean and max of its measures.

A status and a measure hold until the next one, so a mean is one over time: an unchanged reading need not be added. The
slots of a minute, an hour and a day are packed and compressed; equal ones in a row are one: an idle subject takes few.
The edge of a window falls inside a slot; of that slot the share within the window counts, and its min and max whole.
"""

from __future__ import annotations

import math
import zlib
from array import array
from collections.abc import Iterator
from struct import Struct as Format
from typing import Final

from msgspec import Struct

from nats_backpressure.core.model.reading import Reading
from nats_backpressure.protocol.values import Status

TIERS = ((5.0, 13), (60.0, 61), (1800.0, 49))
"""Seconds of a slot, and number of slots: for a minute, an hour and a day, and one slot more each."""
SLOTS = sum(slots for _, slots in TIERS)
"""At most per subject, 112 bytes each before they are compressed: 14 KB of one that always changes are 1.4 to 8."""
SHORTEST, LONGEST = 60, 86_400
"""Seconds of a window."""
MEASURES = ("pending", "inflight", "p95", "arrival_rate", "ack_rate")
"""Fields of a reading."""
STATUSES = tuple(Status)

Values = tuple[float | None, ...]
"""Of the measures, in their order; None where one is not known."""

NOTHING: Values = (None,) * len(MEASURES)
FIRST_MEASURE: Final = len(STATUSES)
PLACES: Final = tuple(range(FIRST_MEASURE, FIRST_MEASURE + 4 * len(MEASURES), 4))
"""Where the four numbers of each measure begin in a slot: seconds for which it was known, sum of value times seconds,
min and max. Before them lie the seconds in each status."""
EMPTY: Final = array("d", [0.0] * FIRST_MEASURE + [0.0, 0.0, math.inf, -math.inf] * len(MEASURES))
PACKED: Final = Format("<II4f" + "ffdd" + "ffff" * (len(MEASURES) - 1))
"""A closed slot. Only min and max of pending need doubles: a float is exact to 16 million."""
WORDS: Final = PACKED.size // 4
FASTEST: Final = 1
"""Level of compression: 10 to 50 us for each slot that closes. The next ones take three times as long for 5 % less."""
NONE_CLOSED: Final = zlib.compress(b"")
MOST_WAITING: Final = 4
"""Changes that are only remembered: an idle subject has two, and takes 0.4 KB instead of 1.2."""


class Measure(Struct, gc=False):
    """Min, max and mean of one measure over time; it was known for `n` seconds."""

    n: float = 0.0
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    @property
    def mean(self) -> float | None:
        """Where it was known for a moment only, its value at that moment."""
        return self.total / self.n if self.n else self.high if self.high >= self.low else None


class WindowSummary(Struct, frozen=True):
    """One window: `coverage` is the share of it for which the status was known here."""

    coverage: float
    seconds: dict[Status, float]
    measures: dict[str, Measure]


def measures_of(reading: Reading | None) -> Values:
    """The measures of a reading."""
    if reading is None:
        return NOTHING
    return (reading.pending, reading.inflight, reading.p95, reading.arrival_rate, reading.ack_rate)


class TimeWindows:
    """The windows of one subject. Add every change of its status or its measures, in the order of time."""

    __slots__ = ("_at", "_is_new", "_status", "_tiers", "_waiting", "values")

    def __init__(self) -> None:
        self._tiers: tuple[_Tier, ...] = ()
        """Empty until more changes wait than may, or a window is asked for."""
        self._waiting: tuple[tuple[float, int, Values], ...] = ()
        """The first changes, at most MOST_WAITING, until there are tiers to count them in."""
        self._at: float | None = None
        self._is_new = False
        """Whether the status and the measures that hold now are not in any slot yet."""
        self._status = 0
        self.values = NOTHING
        """The measures that hold now."""

    def add(self, now: float, status: Status, values: Values = NOTHING) -> None:
        """The status and the measures from now on. `now` is monotonic time."""
        if not self._tiers and len(self._waiting) < MOST_WAITING:
            self._waiting, self.values = (*self._waiting, (now, STATUSES.index(status), values)), values
            return
        self._begin()
        self._change(now, STATUSES.index(status), values)

    def window(self, now: float, seconds: float) -> WindowSummary:
        """The sums of the last `seconds` up to now."""
        self._begin()
        self._count_until(now)
        tier = next(tier for tier in self._tiers if seconds <= tier.width * (tier.limit - 1))
        total = array("d", EMPTY)
        for first, last, sums in tier.slots():
            begin, end = first * tier.width, (last + 1) * tier.width
            if end > now - seconds:
                length = min(end, now) - begin
                _fold(total, sums, min(1.0, (min(end, now) - (now - seconds)) / length) if length > 0 else 1.0)
        spent = dict(zip(STATUSES, total, strict=False))
        known = sum(spent.values()) - spent[Status.UNKNOWN]
        measures = {name: Measure(*total[place : place + 4]) for name, place in zip(MEASURES, PLACES, strict=True)}
        return WindowSummary(min(1.0, known / seconds), spent, measures)

    def _begin(self) -> None:
        """Count from now on, and what was only remembered."""
        if not self._tiers:
            self._tiers = tuple(_Tier(width, slots) for width, slots in TIERS)
            waiting, self._waiting = self._waiting, ()
            for change in waiting:
                self._change(*change)

    def _change(self, now: float, status: int, values: Values) -> None:
        self._count_until(now)
        self._at, self._is_new, self._status, self.values = now, True, status, values

    def _count_until(self, now: float) -> None:
        """Count what has held since the last change, if only for a moment."""
        if self._at is not None and (now > self._at or (self._is_new and now == self._at)):
            since, self._at, self._is_new = max(self._at, now - LONGEST), now, False
            for tier in self._tiers:
                tier.count(since, now, self._status, self.values)


class _Tier:
    """The slots of one width: those that are over, packed, and the open one."""

    __slots__ = ("_closed", "_first", "_open", "limit", "width")

    def __init__(self, width: float, limit: int) -> None:
        self.width, self.limit = width, limit
        self._closed = NONE_CLOSED
        self._first = -1
        """Number of the open slot; -1 while there is none."""
        self._open = EMPTY

    def slots(self) -> Iterator[tuple[int, int, array[float]]]:
        """First and last number of each slot (equal ones in a row are one), and its sums."""
        for first, last, *sums in PACKED.iter_unpack(_unpacked(self._closed)):
            yield first, last, array("d", sums)
        if self._first >= 0:
            yield self._first, self._first, self._open

    def count(self, since: float, until: float, status: int, values: Values) -> None:
        """Count a status and measures that held from `since` to `until`: whole slots at once."""
        number, last = int(since / self.width), int(until / self.width)
        if number < last:
            self._open_slot(number)
            _add(self._open, (number + 1) * self.width - since, status, values)
            if number + 1 < last:
                self._open_slot(number + 1)
                run = last - number - 1
                _add(self._open, run * self.width, status, values)
                self._close(last - 1)
            since = last * self.width
        self._open_slot(last)
        _add(self._open, until - since, status, values)

    def _open_slot(self, number: int) -> None:
        if number == self._first:
            return
        if self._first >= 0:
            self._close(self._first)
        self._first, self._open = number, array("d", EMPTY)

    def _close(self, last: int) -> None:
        """Pack the open slot; it stands for all slots up to `last`."""
        closed, packed, start = _unpacked(self._closed), PACKED.pack(self._first, last, *self._open), 0
        if closed:
            before, after = PACKED.unpack(closed[-PACKED.size :]), PACKED.unpack(packed)
            if _is_like(before, after):
                sums = array("d", before[2:])
                _fold(sums, array("d", after[2:]), 1.0)
                packed = PACKED.pack(before[0], last, *sums)
                closed = closed[: -PACKED.size]
        while start < len(closed) and PACKED.unpack_from(closed, start)[1] <= last - self.limit:
            start += PACKED.size
        self._closed = _packed(closed[start:] + packed)
        self._first = -1


def _packed(slots: bytes) -> bytes:
    """Slots, compressed: column by column, since the values of one measure are like each other (a sixth to two fifths
    less)."""
    words = array("I", slots)
    return zlib.compress(b"".join([words[place::WORDS] for place in range(WORDS)]), FASTEST)


def _unpacked(packed: bytes) -> bytes:
    columns = array("I", zlib.decompress(packed))
    words, slots = array("I", columns), len(columns) // WORDS
    for place in range(WORDS):
        words[place::WORDS] = columns[place * slots : (place + 1) * slots]
    return words.tobytes()


def _add(sums: array[float], seconds: float, status: int, values: Values) -> None:
    sums[status] += seconds
    for place, value in zip(PLACES, values, strict=True):
        if value is not None:
            sums[place] += seconds
            sums[place + 1] += seconds * value
            if value < sums[place + 2]:
                sums[place + 2] = value
            if value > sums[place + 3]:
                sums[place + 3] = value


def _fold(sums: array[float], other: array[float], share: float) -> None:
    """Add a share of another slot."""
    for place in range(FIRST_MEASURE):
        sums[place] += share * other[place]
    for place in PLACES:
        sums[place] += share * other[place]
        sums[place + 1] += share * other[place + 1]
        sums[place + 2] = min(sums[place + 2], other[place + 2])
        sums[place + 3] = max(sums[place + 3], other[place + 3])


def _is_like(before: tuple[float, ...], after: tuple[float, ...]) -> bool:
    """Whether one packed slot follows the other, no value changed within either, and both hold the same values."""
    if before[1] + 1 != after[0]:
        return False
    statuses = slice(2, 2 + FIRST_MEASURE)
    if any((a > 0) != (b > 0) for a, b in zip(before[statuses], after[statuses], strict=True)):
        return False
    lows = [2 + place + 2 for place in PLACES]
    return all(before[n : n + 2] == after[n : n + 2] and before[n] >= before[n + 1] for n in lows)
