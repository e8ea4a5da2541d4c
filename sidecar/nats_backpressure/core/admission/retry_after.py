"""Computes Retry-After in adaptive mode: the drain time, times a factor learnt from whether demand stays as high."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.admission.load_estimate import LoadEstimate

TOO_MANY, FEWER = 0.9, 0.5
"""Shares of the demand one Retry-After ago: at or above the first the refused callers returned too early, at or below
the second the load went down."""
DRAIN_STEP = 0.75
"""Seconds by which the drain time must move before Retry-After follows it."""
LARGEST_FACTOR = 2**17
"""Above any Retry-After, which is a day at most."""


class RetryAfter(Struct, frozen=True):
    """The Retry-After of a subject, and what it is learnt from."""

    base: int = 0
    """Seconds of waiting work when it last changed; 0 if never."""
    factor: int = 1
    since: float | None = None
    """Monotonic time at which the present Retry-After was first returned, or at which refusals ended."""
    demand: float = 0.0
    """Messages per second at that time, if no request had been refused."""
    refusing: bool = False

    def seconds(self, most: int) -> int:
        """Seconds, 1..most."""
        return min(max(1, self.base) * self.factor, most)


def next_retry_after(
    was: RetryAfter, refusing: bool, estimates: Iterable[LoadEstimate], most: int, now: float
) -> RetryAfter:
    """Evaluated once per Retry-After. If requests are still refused then, and demand is no smaller than before, callers
    returned too early: the factor doubles. It halves each time demand halved, or no request was refused in that time.
    """
    estimates = tuple(estimates)
    demand = max((e.demand for e in estimates), default=0.0)
    new = replace(was, base=_base(was.base, estimates, most), refusing=refusing)
    if was.since is None or refusing is not was.refusing:
        return replace(new, since=now, demand=demand)
    wait = new.seconds(most)
    if now - was.since < wait:
        return new
    factor = was.factor
    if not refusing or demand <= FEWER * was.demand:
        factor = max(1, factor // 2)
    elif demand >= TOO_MANY * was.demand and wait < most:
        factor = min(2 * factor, LARGEST_FACTOR)
    return replace(new, factor=factor, since=now, demand=demand)


def _base(base: int, estimates: Iterable[LoadEstimate], most: int) -> int:
    """Seconds until the waiting messages of the slowest consumer are processed, changed only in whole steps."""
    drain = min(max((e.drain for e in estimates if e.drain is not None), default=base), most)
    return base if base and abs(drain - base) < DRAIN_STEP else max(1, round(drain))
