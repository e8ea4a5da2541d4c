"""Retry-After in adaptive mode: the time until what waits is through, times what was learnt from who came back."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.admission.load_estimate import LoadEstimate

TOO_MANY, FEWER = 0.9, 0.5
"""Of the demand one Retry-After ago: at or above the first the refused came back too early, at or below the second it
is quieter."""
DRAIN_STEP = 0.75
"""Seconds by which the drain time must move before Retry-After follows it."""
LARGEST_FACTOR = 2**17
"""Past any Retry-After, which is a day at most."""


class RetryAfter(Struct, frozen=True):
    """What the refused are told to wait, and what it is learnt from."""

    base: int = 0
    """Seconds of work that waited when it last moved; 0 if never."""
    factor: int = 1
    since: float | None = None
    """When the Retry-After that is watched was first told, or the quiet began."""
    demand: float = 0.0
    """Messages a second that would have come then if nobody had been refused."""
    refusing: bool = False

    def seconds(self, most: int) -> int:
        """Seconds, 1..most."""
        return min(max(1, self.base) * self.factor, most)


def next_retry_after(
    was: RetryAfter, refusing: bool, gauges: Iterable[LoadEstimate], most: int, now: float
) -> RetryAfter:
    """Looks back once each Retry-After. If then somebody is still refused, and demand is no smaller than it was, those
    who were told to come back now are too early: twice as long from here on. Half as long each time demand has halved,
    or nobody had to be refused in all that time.
    """
    gauges = tuple(gauges)
    demand = max((g.demand for g in gauges), default=0.0)
    found = replace(was, base=_base(was.base, gauges, most), refusing=refusing)
    if was.since is None or refusing is not was.refusing:
        return replace(found, since=now, demand=demand)
    told = found.seconds(most)
    if now - was.since < told:
        return found
    factor = was.factor
    if not refusing or demand <= FEWER * was.demand:
        factor = max(1, factor // 2)
    elif demand >= TOO_MANY * was.demand and told < most:
        factor = min(2 * factor, LARGEST_FACTOR)
    return replace(found, factor=factor, since=now, demand=demand)


def _base(base: int, gauges: Iterable[LoadEstimate], most: int) -> int:
    """Seconds until what waits is through at the slowest consumer, moved by whole steps only."""
    drain = min(max((g.drain for g in gauges if g.drain is not None), default=base), most)
    return base if base and abs(drain - base) < DRAIN_STEP else max(1, round(drain))
