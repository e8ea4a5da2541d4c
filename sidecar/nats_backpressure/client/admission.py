"""What a known state means for a request now: the action that holds, until when, and whose turn it is to be shed.

Pure: the time is an argument, in monotonic seconds.
"""

from __future__ import annotations

import math
from typing import Final

from msgspec import Struct

from nats_backpressure.client.values import StateValue
from nats_backpressure.protocol.opening import aged, holds_for

OPENING_STEP = 0.1
"""Seconds after which an opening ratio is worked out anew."""
FALLBACK_RETRY_AFTER = 30.0
"""Seconds told on `on_unknown: reject` where the last answer named none: the default policy's."""
LONGEST_RETRY_AFTER = 86_400.0
STRICTNESS: Final = {"continue": 0, "throttle": 1, "reject": 2}
STATUS: Final = {"unknown": -1, "inactive": 0, "warning": 1, "active": 2}
CRITICAL = "critical"
NORMAL = "normal"
RANKS: Final = {"high": 0, "normal": 1, "low": 2}
LATELY = 256
"""Requests after which what each priority offered is halved: how long a mix is remembered."""
BAND = 4.0
"""Requests by which the whole may be off while a mix of priorities is shed. Not 1: a burst of high ones could then
not be let in ahead of its share, nor low ones before it be held back, and the order would hang on who comes when."""
WEIGHED_EVERY = 16
"""Requests between looks at the mix, at most."""
TINY = 1e-9
"""For sums of floats that should be whole."""


class Limits(Struct, frozen=True):
    """Seconds without proof after which a state is stale, and after which it is unknown (product: 10 and 30)."""

    stale_after: float = 10.0
    unknown_after: float = 30.0
    interval: float = 2.0
    """Seconds between two proofs: two heartbeats, or two readings where those are rarer."""


class LocalDecision(Struct, frozen=True):
    """What one state, or the worst of several, says now."""

    action: str
    ratio: float
    """Share of the requests to admit: 1 for `continue`, 0 for `reject`."""
    retry_after: float
    status: str
    freshness: str
    would: str | None
    pressure: float
    enforced: bool
    until: float
    """When it has to be worked out anew although nothing was heard."""

    @property
    def rank(self) -> tuple[int, float, int, float, bool]:
        """The strictest action decides, then status, then pressure; enforcing before observing."""
        return STRICTNESS[self.action], -self.ratio, STATUS[self.status], self.pressure, self.enforced


OPEN = LocalDecision("continue", 1.0, 0.0, "unknown", "unknown", None, 0.0, False, math.inf)
"""Where nobody watches, or nothing is known yet: backpressure that fails closed is an outage."""


def local_decision(known: StateValue, proof: float, limits: Limits, left: float | None, now: float) -> LocalDecision:
    """A state's word now. `proof` is when it was last known to hold; `left` is when the last replica said that it
    stops, so that nobody looks for the end of a refusal any more."""
    stale_at, unknown_at = proof + limits.stale_after, proof + limits.unknown_after
    opens_at = proof + holds_for(known.on_unknown, known.hold_seconds, limits.stale_after, limits.interval)
    if left is not None:
        stale_at, opens_at = min(stale_at, left), min(opens_at, left)
    lost = known.freshness == "unknown" or known.status == "unknown"
    unknown = now >= unknown_at or (lost and known.override is None)
    observed = known.mode == "observe" and known.action == "continue"
    said = (known.would or "continue") if observed else known.action
    action, ratio = aged(said, _share(said, known, observed), known.on_unknown, now - opens_at, unknown)
    opening = action == "throttle" and now >= opens_at
    turns = [now + OPENING_STEP] if opening else [at for at in (stale_at, unknown_at, opens_at) if at > now]
    blind = unknown or lost
    return LocalDecision(
        action="continue" if observed else action,
        ratio=1.0 if observed else ratio,
        retry_after=0.0 if observed or action == "continue" else _retry_after(known, said),
        status="unknown" if blind else known.status,
        freshness="unknown" if blind else "stale" if now >= stale_at or known.freshness != "known" else "known",
        would=action if observed and (known.would or action != "continue") else known.would,
        pressure=0.0 if blind else known.pressure or 0.0,
        enforced=known.mode == "enforce",
        until=min(turns, default=math.inf),
    )


def _share(said: str, known: StateValue, observed: bool) -> float:
    """Of the requests, before it ages; what a dry run would admit is not told."""
    return {"continue": 1.0, "throttle": 0.0 if observed else known.admit_ratio, "reject": 0.0}[said]


def _retry_after(known: StateValue, said: str) -> float:
    named = known.retry_after_seconds or (FALLBACK_RETRY_AFTER if said == "continue" else 0.0)
    return min(named, LONGEST_RETRY_AFTER)


def worst(found: list[LocalDecision]) -> LocalDecision:
    """The strictest; of equals the first, which is the subject's own where it is watched itself."""
    return max(found, key=lambda one: one.rank) if found else OPEN


class Shedder:
    """Spreads a ratio evenly over requests by error diffusion, not by dice, and sheds the low priorities first.

    Every request earns `ratio` of credit and an admitted one pays 1, so that credit is exactly what the admitted are
    behind ratio x offered: never more than 1 where all are of one priority, never more than BAND in any mix. Within
    that each priority has a share, and an accumulator of its own: of what was offered lately the ratio is given to the
    high ones first, then to the normal, and to the low what is left.
    """

    __slots__ = ("_due", "_offered", "_ratio", "_shares", "_until_weighed", "credit")

    def __init__(self) -> None:
        self.credit = 0.0
        self._ratio, self._until_weighed = 0.0, 0
        self._offered = [0.0, 0.0, 0.0]
        """Requests lately, by rank."""
        self._shares = [0.0, 0.0, 0.0]
        """Of the requests of a rank, the share to admit."""
        self._due = [0.5, 0.5, 0.5]  # rounded, not cut off
        """Admissions a rank has a right to, within -BAND and BAND."""

    def admit(self, ratio: float, priority: str = NORMAL) -> bool:
        """Whether this request goes through; an unknown priority counts as normal, `critical` is not asked here."""
        if ratio <= 0:
            return False
        rank = RANKS.get(priority, 1)
        self._offered[rank] += 1
        self._until_weighed -= 1
        if self._until_weighed < 0 or ratio != self._ratio:
            self._weigh(ratio)
        self.credit = credit = self.credit + ratio
        due = self._due[rank] + self._shares[rank]
        if credit < 1 - BAND or (credit <= BAND and due < 1 - TINY):
            self._due[rank] = min(BAND, due)
            return False
        self.credit = credit - 1
        self._due[rank] = due - 1 if due > 1 - BAND else -BAND
        return True

    def _weigh(self, ratio: float) -> None:
        """Give what the ratio leaves of the requests lately to each rank in turn."""
        total = sum(self._offered)
        self._ratio, self._until_weighed = ratio, min(WEIGHED_EVERY, int(total / 4))
        left = ratio * total
        for rank, offered in enumerate(self._offered):
            self._shares[rank] = min(1.0, max(0.0, left) / max(1, offered))
            left -= offered
        if total >= LATELY:  # halved exactly: what is rounded off is missed by a rare priority
            self._offered = [offered / 2 for offered in self._offered]
