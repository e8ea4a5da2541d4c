"""Sums the requests that gateways were offered and admitted, from their reports; old reports count less and less."""

from __future__ import annotations

import math

from msgspec import Struct

SPAN = 2.0
"""Seconds after which a report weighs 1/e; a report over a longer time fades over that time."""
EXPIRY = 10.0
"""Seconds after the newest report until reports count as outdated; longer for reports over a longer time."""


class OfferedLoad(Struct, frozen=True):
    """Requests at the gateways of one subject, in sums that fade. A report names no gateway: one gateway and twenty
    give the same sums. Some reports are lost, so the share is more accurate than the rates."""

    at: float
    """Monotonic time of the newest report."""
    offered: float
    admitted: float
    span: float = SPAN
    """Seconds over which these sums fade; divided by it they are rates. It fades itself to that of the reports."""

    def share(self, now: float) -> float | None:
        """The admitted share; None if the reports are outdated or nothing was offered."""
        return self.admitted / self.offered if self.offered > 0 and self.is_current(now) else None

    def admitted_rate(self, now: float) -> float | None:
        """Requests admitted per second; None if the reports are outdated."""
        return self.admitted * self._faded(now) / self.span if self.is_current(now) else None

    def is_current(self, now: float) -> bool:
        """Whether the newest report is recent enough."""
        return now - self.at <= max(EXPIRY, 2 * self.span)

    def _faded(self, now: float) -> float:
        return math.exp(-max(0.0, now - self.at) / self.span)


def with_report(was: OfferedLoad | None, offered: int, admitted: int, seconds: float, now: float) -> OfferedLoad:
    """The sums with one more report, which covered the last `seconds`."""
    if was is None or not was.is_current(now):
        # As if the rates had been the same before: a sum over too little time would give too small a rate.
        span = max(SPAN, seconds)
        return OfferedLoad(now, offered / seconds * span, admitted / seconds * span, span)
    fading = was._faded(now)
    span = max(SPAN, seconds, was.span * fading)
    # The sums before are over the old span: over the new one they would be other rates.
    kept = fading * min(1.0, span / was.span)
    return OfferedLoad(max(was.at, now), was.offered * kept + offered, was.admitted * kept + admitted, span)
