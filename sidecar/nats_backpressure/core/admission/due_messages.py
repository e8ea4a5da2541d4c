"""DueMessages: messages in flight that nobody holds and the server delivers again, before any new one.

A pull of these adds nothing to what is in flight, and only a pull ends that they fill the mark.
"""

from __future__ import annotations

import math
from bisect import insort

from nats_backpressure.core.model.reading import Reading

LATE = 0.1
"""Seconds by which the server may be late with a message that is due; also of a slot in which they are summed up."""
ROUNDED = 3
"""Slots by which a message may be delivered earlier than its own says: who tells it rounds up, too."""
SOON = 4
"""Slots before it counts as due in which a message may be delivered already."""
SOON_BACK = 30.0
"""Seconds for which nobody pulls beyond the mark while all that is in flight comes back later."""
MOST_SLOTS = 256
"""Slots that are remembered; then the messages of the last one count no more."""


class DueMessages:
    def __init__(self) -> None:
        self._coming: list[tuple[int, int]] = []
        """(slot in which they are due, number), in order."""
        self._due = 0
        """Those that were due at the last reading, and that no delivery until then can have been."""
        self._early = 0
        """Deliveries that may have been of those that come soon."""
        self._seen: Reading | None = None
        """The last reading."""
        self._unread, self._added_at = 0, -math.inf
        """How many a reading may not show yet, and when the last of them were added."""

    def add(self, n: int, after: float, now: float) -> None:
        """`n` messages are due after so many seconds, if nobody acknowledges them; after `read`."""
        if n <= 0:
            return
        self._unread, self._added_at = self._unread + n, now
        slot = math.ceil((now + after + LATE) / LATE)
        for place, (there, more) in enumerate(self._coming):
            if there == slot:
                self._coming[place] = (slot, more + n)
                return
        insort(self._coming, (slot, n))
        del self._coming[MOST_SLOTS:]

    def count(self, reading: Reading, held: int, mark: float, now: float) -> int:
        """How many are due now, less those delivered by the reading: each delivery may have been one of them.

        One may be delivered before we take it for due, and be held or returned again: what is in flight beside those
        that are `held` and those that come limits it. Where more is in flight than the mark allows, one that we took
        for due was not (it reached max_deliver, or somebody asks for more time): then none is.
        """
        self.read(reading)
        if not self._coming and not self._due:  # by far the most frequent case
            return 0
        inflight = reading.inflight or 0
        if inflight > mark:
            self._due = 0
            self._take_coming(now)
        self._due = min(self._due, inflight)
        due = self._due - self._early + sum(n for slot, n in self._coming if slot * LATE <= now)
        return max(0, min(due, inflight - held - self.coming(now)))

    def coming(self, now: float) -> int:
        """How many are not due yet, at most."""
        if not self._coming:
            return 0
        return sum(n for slot, n in self._coming if slot * LATE > now)

    def surely_coming(self, now: float) -> int:
        """How many are not due yet, at least: those of whole slots."""
        return sum(n for slot, n in self._coming if (slot - ROUNDED) * LATE > now)

    def are_all(self, inflight: int, now: float) -> bool:
        """Whether all that is in flight comes back later, and the first of it soon."""
        return 0 < inflight <= self.coming(now) and self.next_in(now) <= SOON_BACK

    def next_in(self, now: float) -> float:
        """Seconds until the next ones are due."""
        if not self._coming:
            return math.inf
        return next((slot * LATE - now for slot, _ in self._coming if slot * LATE > now), math.inf)

    def read(self, reading: Reading) -> None:
        if reading is self._seen:
            return
        before, self._seen = self._seen or reading, reading
        at, delivered = reading.at.mono, reading.delivered_consumer - before.delivered_consumer
        if delivered < 0 or reading.made != before.made:  # a consumer that was created again
            self._coming, self._due, self._early, self._unread = [], 0, 0, 0
        elif at > before.at.mono:
            due, spent = self._due + self._take_coming(at), self._early + delivered
            soon = sum(n for slot, n in self._coming if slot <= at / LATE + SOON)
            self._due, self._early = max(0, due - spent), min(soon, max(0, spent - due))
            self._limit(at, reading.inflight or 0)

    def _limit(self, at: float, inflight: int) -> None:
        """No more come than are in flight: others were removed, or told twice. Those that come last are forgotten."""
        if self._added_at < at:
            self._unread = 0
        over = sum(n for _, n in self._coming) - inflight - self._unread
        while over > 0 and self._coming:
            slot, n = self._coming.pop()
            if n > over:
                self._coming.append((slot, n - over))
            over -= n

    def _take_coming(self, until: float) -> int:
        due = [n for slot, n in self._coming if slot * LATE <= until]
        del self._coming[: len(due)]
        return sum(due)
