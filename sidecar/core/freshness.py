"""How old the truth is: known, stale, unknown."""

from __future__ import annotations

from msgspec import Struct

from sidecar.core.model import Freshness


class Limits(Struct, frozen=True):
    """Seconds without proof after which a subject is stale, and after which it is unknown."""

    stale_after: float
    unknown_after: float


def limits(stale_after: float, unknown_after: float, interval: float) -> Limits:
    """The limits in force: never shorter than three readings for stale, and twice that for unknown."""
    stale = max(stale_after, 3 * interval)
    return Limits(stale, max(unknown_after, 2 * stale))


def freshness(proof: float | None, now: float, limits: Limits) -> Freshness:
    """Of something last proved at the monotonic time `proof`; None was never proved."""
    if proof is None or now - proof >= limits.unknown_after:
        return Freshness.UNKNOWN
    return Freshness.STALE if now - proof >= limits.stale_after else Freshness.KNOWN
