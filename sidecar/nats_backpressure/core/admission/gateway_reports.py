"""What the reports of the gateways add up to: how much was offered to them, and how much of it they let through."""

from __future__ import annotations

import math

from msgspec import Struct

SPAN = 2.0
"""Seconds after which a report weighs 1/e; a report that covers longer fades as slowly as it covers."""
EXPIRY = 10.0
"""Seconds after the newest report from which reports say nothing any more; longer for those that cover longer."""


class OfferedLoad(Struct, frozen=True):
    """Requests at the gateways of one subject, in sums that fade. A report names no gateway, so that one and twenty are
    the same sums; some are lost, so that the share is worth more than the rates."""

    at: float
    """Monotonic time of the newest report."""
    offered: float
    admitted: float
    span: float = SPAN
    """Seconds in which these sums fade, and by which they are divided to be rates."""

    def share(self, now: float) -> float | None:
        """The share let through; None where too long nothing was reported, or nothing was offered."""
        return self.admitted / self.offered if self.offered > 0 and self.is_current(now) else None

    def admitted_rate(self, now: float) -> float | None:
        """Requests let through each second."""
        return self.admitted * self._faded(now) / self.span if self.is_current(now) else None

    def offered_rate(self, now: float) -> float | None:
        """Requests offered each second."""
        return self.offered * self._faded(now) / self.span if self.is_current(now) else None

    def is_current(self, now: float) -> bool:
        return now - self.at <= max(EXPIRY, 2 * self.span)

    def _faded(self, now: float) -> float:
        return math.exp(-max(0.0, now - self.at) / self.span)


def with_report(was: OfferedLoad | None, offered: int, admitted: int, seconds: float, now: float) -> OfferedLoad:
    """The sums with one more report, which covered the last `seconds`."""
    if was is None or not was.is_current(now):
        # As if it had gone on like that before: a sum over too little time would be too small a rate.
        span = max(SPAN, seconds)
        return OfferedLoad(now, offered / seconds * span, admitted / seconds * span, span)
    fading = was._faded(now)
    return OfferedLoad(max(was.at, now), was.offered * fading + offered, was.admitted * fading + admitted, was.span)
