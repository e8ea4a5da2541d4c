"""HeldRate: the requests per second that a share came to, so that an old share does not shed a load that fell. Pure.

The sidecar chooses a share for the load that it knows, and needs seconds to see that the load fell: a tenth of ten
times the capacity is right, and a tenth of half the capacity refuses requests that could be served. The gateway sees
the fall at once: until the sidecar has chosen a larger share, it admits the requests per second that the share came to.
"""

from __future__ import annotations

import math

from nats_backpressure.client.shedder import NORMAL, RANKS
from nats_backpressure.protocol.values import Priority

SPAN = 2.0
"""Seconds after which a request weighs 1/e in the offered rate."""
ENOUGH = 0.5
"""Seconds of requests before their rate is used."""
FADING = 10.0
"""Seconds after which the rate that was held has lost all but 1/e of what it is above the share."""
GAP = 5.0
"""Seconds without a request after which nothing is known any more."""
MARGIN_SECONDS, LEAST_MARGIN = 0.1, 1.0
"""How far the admitted may fall behind the held rate by chance: seconds of it, and requests at least."""
BURST = 3.0
"""Margins that may be made up for at once, so that requests which come together are not shed."""
RECENT = 1.0
"""Seconds since its last request for which a priority counts as one that comes."""


class HeldRate:
    """Called for each request while a share is admitted. Times are monotonic seconds.

    Where the admitted are behind the rate by a margin, requests of the highest priority that comes are admitted beyond
    the share; those of the next one where they are behind by two margins, and so on. So the low ones get only what the
    high ones leave.
    """

    __slots__ = ("_at", "_behind", "_came", "_held", "_offered", "_ratio", "_time")

    def __init__(self) -> None:
        self._at, self._ratio = -math.inf, 1.0
        self._offered = self._time = 0.0
        """Requests, and the seconds in which they came, fading."""
        self._held = 0.0
        """Requests per second."""
        self._behind = 0.0
        """Admissions that are missing to the held rate."""
        self._came = [-math.inf] * len(RANKS)
        """When the last request of each priority came, the highest first."""

    def admit(self, ratio: float, admitted: bool, now: float, priority: Priority = NORMAL) -> bool:
        """Whether this request goes through, where the share alone says `admitted`. An unknown priority counts as
        normal."""
        lasted = now - self._at
        if lasted > GAP:
            lasted = self._offered = self._time = self._held = self._behind = 0.0
        self._at = now
        self._hold(ratio, lasted)
        rank = RANKS.get(priority, RANKS[NORMAL])
        self._came[rank] = now
        coming = [now - at <= RECENT for at in self._came]
        margin = max(LEAST_MARGIN, self._held * MARGIN_SECONDS)
        behind = self._behind + self._held * lasted
        admitted = admitted or behind >= margin * sum(coming[: rank + 1])
        self._behind = min(max(behind - admitted, -margin), margin * (BURST + sum(coming) - 1))
        return admitted

    def _hold(self, ratio: float, lasted: float) -> None:
        """A smaller share lowers the rate that is held; a larger one, or a load that fell, does not."""
        fading = math.exp(-lasted / SPAN)
        self._offered = self._offered * fading + 1
        self._time = self._time * fading + lasted
        if ratio < self._ratio:
            self._held *= ratio / self._ratio
        self._ratio = ratio
        if self._time >= ENOUGH:
            shared = ratio * self._offered / self._time
            self._held = max(shared, shared + (self._held - shared) * math.exp(-lasted / FADING))
