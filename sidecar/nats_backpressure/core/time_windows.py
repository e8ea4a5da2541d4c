"""Sums over the last minute, hour and day of a subject: time in each status, and min, mean and max of its measures.

Slots of a few seconds are added up to slots of a minute and those to slots of half an hour, so that a day takes no more
than SLOTS of them, and equal slots are merged: an idle subject takes two or three. The edge of a window falls inside a
slot; of that slot the share within the window counts, and its min and max count whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from msgspec import Struct

from nats_backpressure.core.model.reading import Reading
from nats_backpressure.protocol.values import Status

TIERS = ((5.0, 13), (60.0, 61), (1800.0, 49))
"""Seconds of a slot, and number of slots: for a minute, an hour and a day, and one slot more each."""
SLOTS = sum(slots for _, slots in TIERS)
"""At most per subject, at some 0.9 KB each: 110 KB for one that always changes, 3 KB for an idle one."""
SHORTEST, LONGEST = 60, 86_400
"""Seconds of a window."""
MEASURES = ("pending", "inflight", "p95", "arrival_rate", "ack_rate")
"""Fields of a reading."""
STATUSES = tuple(Status)


class Measure(Struct, gc=False):
    """Min, max and mean of one measure; each reading has the same weight."""

    n: float = 0.0
    total: float = 0.0
    low: float = 0.0
    high: float = 0.0

    def add(self, n: float, total: float, low: float, high: float) -> None:
        """Add `n` values with this sum, minimum and maximum; `n` may be a fraction."""
        self.low = min(self.low, low) if self.n else low
        self.high = max(self.high, high) if self.n else high
        self.n += n
        self.total += total

    @property
    def mean(self) -> float | None:
        return self.total / self.n if self.n else None


class Slot(Struct):
    """The sums of one slot, or of several equal slots in a row: those numbered `first` to `last`."""

    first: int
    last: int
    seconds: list[float]
    """In each status, in the order of STATUSES."""
    measures: list[Measure]

    def fold(self, other: Slot, share: float = 1.0) -> None:
        """Add a share of another slot."""
        for n, spent in enumerate(other.seconds):
            self.seconds[n] += share * spent
        for mine, theirs in zip(self.measures, other.measures, strict=True):
            if theirs.n:
                mine.add(share * theirs.n, share * theirs.total, theirs.low, theirs.high)

    def like(self, other: Slot) -> bool:
        """Whether no value changed within either slot, and both hold the same values."""
        return all((a > 0) == (b > 0) for a, b in zip(self.seconds, other.seconds, strict=True)) and all(
            (a.n > 0) == (b.n > 0) and a.low == a.high == b.low == b.high
            for a, b in zip(self.measures, other.measures, strict=True)
        )


class WindowSummary(Struct, frozen=True):
    """One window: `coverage` is the share of it for which the status was known here."""

    coverage: float
    seconds: dict[Status, float]
    measures: dict[str, Measure]


class TimeWindows:
    """The windows of one subject. Add every change of status and every reading, in the order of time."""

    __slots__ = ("_at", "_status", "_tiers")

    def __init__(self) -> None:
        self._tiers = [_Tier(width, slots) for width, slots in TIERS]
        self._at: float | None = None
        self._status = Status.UNKNOWN

    def add(self, now: float, status: Status, reading: Reading | None = None) -> None:
        """The status from now on, and the reading of now, if there is one. `now` is monotonic time."""
        if self._at is not None:
            self._spend(max(self._at, now - LONGEST), now)
        self._at, self._status = now, status
        if reading is not None:
            measures = self._current_slot(int(now / TIERS[0][0])).measures
            for measure, name in zip(measures, MEASURES, strict=True):
                if (value := getattr(reading, name)) is not None:
                    measure.add(1.0, value, value, value)

    def window(self, now: float, seconds: float) -> WindowSummary:
        """The sums of the last `seconds` up to now."""
        if self._at is not None:
            self.add(now, self._status)
        total = _empty(0)
        tier = next(n for n, (width, slots) in enumerate(TIERS) if seconds <= width * (slots - 1))
        for slot, width in self._slots_of(tier):
            begin, end = slot.first * width, (slot.last + 1) * width
            if end > now - seconds:
                length = min(end, now) - begin
                total.fold(slot, min(1.0, (min(end, now) - (now - seconds)) / length) if length > 0 else 1.0)
        spent = dict(zip(STATUSES, total.seconds, strict=True))
        known = sum(total.seconds) - spent[Status.UNKNOWN]
        return WindowSummary(min(1.0, known / seconds), spent, dict(zip(MEASURES, total.measures, strict=True)))

    def _slots_of(self, tier: int) -> Iterator[tuple[Slot, float]]:
        """The closed slots of a tier, and the open slots of it and of the finer tiers."""
        for slot in self._tiers[tier].closed:
            yield slot, self._tiers[tier].width
        for finer in self._tiers[: tier + 1]:
            if finer.open is not None:
                yield finer.open, finer.width

    def _spend(self, since: float, until: float) -> None:
        width, status = TIERS[0][0], STATUSES.index(self._status)
        while since < until:
            number = int(since / width)
            end = min(until, (number + 1) * width)
            self._current_slot(number).seconds[status] += end - since
            since = end

    def _current_slot(self, number: int) -> Slot:
        """The open slot of the finest tier."""
        if (slot := self._tiers[0].open) is not None and slot.last == number:
            return slot
        return self._open_slot(0, number)

    def _open_slot(self, n: int, number: int) -> Slot:
        """Open slot `number` of tier `n`; the one that was open is closed and added to the coarser tier."""
        tier = self._tiers[n]
        done = tier.open
        tier.open = _empty(number)
        if done is not None:
            tier.add_closed(done)
            if n + 1 < len(self._tiers):
                coarser = self._tiers[n + 1]
                into = int(done.first * tier.width / coarser.width)
                slot = coarser.open
                if slot is None or slot.last != into:
                    slot = self._open_slot(n + 1, into)
                slot.fold(done)
        return tier.open


class _Tier:
    __slots__ = ("_limit", "closed", "open", "width")

    def __init__(self, width: float, limit: int) -> None:
        self.width, self._limit = width, limit
        self.closed: deque[Slot] = deque()
        self.open: Slot | None = None

    def add_closed(self, slot: Slot) -> None:
        last = self.closed[-1] if self.closed else None
        if last is not None and last.last + 1 == slot.first and last.like(slot):
            last.last = slot.last
            last.fold(slot)
        else:
            self.closed.append(slot)
        while self.closed[0].last <= slot.last - self._limit:
            self.closed.popleft()


def _empty(number: int) -> Slot:
    return Slot(number, number, [0.0] * len(STATUSES), [Measure() for _ in MEASURES])
