"""Shedder: lets a given share of the requests through, evenly, and sheds the low priorities first. Pure."""

from __future__ import annotations

from typing import Final

from nats_backpressure.protocol.values import Priority

CRITICAL: Final = "critical"
NORMAL: Final = "normal"
RANKS: Final = {"high": 0, "normal": 1, "low": 2}
MIX_REQUESTS = 256
"""Requests after which the counts per priority are halved: how long a mix is remembered."""
BAND = 4.0
"""Requests by which the total may be off while a mix of priorities is shed. Not 1: a burst of high ones could then
not be admitted ahead of its share, nor low ones before it be held back, and the order of arrival would decide."""
REQUESTS_PER_UPDATE = 16
"""Requests between two updates of the shares, at most."""
EPSILON = 1e-9
"""For sums of floats that should be whole."""


class Shedder:
    """Spreads a ratio evenly over requests by error diffusion, not at random, and sheds the low priorities first.

    Each request adds `ratio` to the credit and an admitted one subtracts 1, so the credit is exactly what the admitted
    are behind ratio x offered: never more than 1 where all are of one priority, never more than BAND in any mix. Within
    that each priority has a share, and an accumulator of its own: the ratio of the recent requests goes to the high
    ones first, then to the normal ones, and the low ones get what is left.
    """

    __slots__ = ("_due", "_offered", "_ratio", "_requests_to_update", "_shares", "credit")

    def __init__(self) -> None:
        self.credit = 0.0
        self._ratio, self._requests_to_update = 0.0, 0
        self._offered = [0.0, 0.0, 0.0]
        """Recent requests, by rank."""
        self._shares = [0.0, 0.0, 0.0]
        """Share of the requests to admit, by rank."""
        self._due = [0.5, 0.5, 0.5]  # rounded, not cut off
        """Admissions that a rank has a right to, within -BAND and BAND."""

    def admit(self, ratio: float, priority: Priority = NORMAL) -> bool:
        """Whether this request goes through. An unknown priority counts as normal; do not call it for `critical`."""
        if ratio <= 0:
            return False
        rank = RANKS.get(priority, 1)
        self._offered[rank] += 1
        self._requests_to_update -= 1
        if self._requests_to_update < 0 or ratio != self._ratio:
            self._update_shares(ratio)
        self.credit = credit = self.credit + ratio
        due = self._due[rank] + self._shares[rank]
        if credit < 1 - BAND or (credit <= BAND and due < 1 - EPSILON):
            self._due[rank] = min(BAND, due)
            return False
        self.credit = credit - 1
        self._due[rank] = due - 1 if due > 1 - BAND else -BAND
        return True

    def _update_shares(self, ratio: float) -> None:
        """Give ratio x recent requests to the ranks in turn, each no more than it offered."""
        total = sum(self._offered)
        self._ratio, self._requests_to_update = ratio, min(REQUESTS_PER_UPDATE, int(total / 4))
        left = ratio * total
        for rank, offered in enumerate(self._offered):
            self._shares[rank] = min(1.0, max(0.0, left) / max(1, offered))
            left -= offered
        if total >= MIX_REQUESTS:  # halved exactly: a rare priority would miss what is rounded off
            self._offered = [offered / 2 for offered in self._offered]
