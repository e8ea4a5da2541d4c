"""What a watched state means for a request at a given time: action, share, Retry-After, and until when. Pure.

Times are arguments, in monotonic seconds.
"""

from __future__ import annotations

import math

from msgspec import Struct

from nats_backpressure.protocol.messages import State
from nats_backpressure.protocol.refusal_expiry import OPENING_STEP, aged, holds_for
from nats_backpressure.protocol.strictness import Rank, rank
from nats_backpressure.protocol.values import SEVERITY, ActionName, FreshnessName, StatusName

DEFAULT_RETRY_AFTER = 30.0
"""Seconds for a refusal of `on_unknown: reject` whose state has no `retry_after_seconds`: the default policy's."""
MAX_RETRY_AFTER = 86_400.0


class Admission(Struct, frozen=True):
    """What to do with one request; true if it is admitted."""

    admitted: bool
    status: StatusName
    """`inactive`, `warning`, `active` or `unknown`."""
    action: ActionName
    """`continue`, `throttle` or `reject`."""
    retry_after_seconds: float
    """For a refused one, without jitter; else 0."""
    admit_ratio: float
    freshness: FreshnessName
    """`known`, `stale` or `unknown`."""
    would: ActionName | None
    """Under `mode: observe`, the action that enforcement would take."""
    override: bool = False
    """Whether an operator's override decides, whatever the status is."""

    def __bool__(self) -> bool:
        return self.admitted


class FreshnessLimits(Struct, frozen=True):
    """Seconds without proof after which a state is stale, and after which it is unknown (defaults: 10 and 30)."""

    stale_after: float = 10.0
    unknown_after: float = 30.0
    interval: float = 2.0
    """Seconds between two proofs: two heartbeats, or two readings where those are rarer."""


class LocalDecision(Struct, frozen=True):
    """What one state, or the strictest of several, means now."""

    action: ActionName
    ratio: float
    """Share of the requests to admit: 1 for `continue`, 0 for `reject`."""
    retry_after: float
    status: StatusName
    freshness: FreshnessName
    would: ActionName | None
    pressure: float
    enforced: bool
    until: float
    """When it must be computed again although nothing was received."""
    override: bool = False

    @property
    def rank(self) -> Rank:
        return rank(self.action, self.ratio, SEVERITY[self.status], self.pressure, self.enforced)


OPEN = LocalDecision("continue", 1.0, 0.0, "unknown", "unknown", None, 0.0, False, math.inf)
"""For a subject that nobody watches or nothing is known of: backpressure that fails closed is an outage."""


def local_decision(
    state: State, proof: float, limits: FreshnessLimits, left: float | None, now: float
) -> LocalDecision:
    """What a state means now. `proof` is when it was last proved to hold; `left` is when the last replica reported that
    it stops, so that nobody looks for the end of a refusal any more."""
    stale_at, unknown_at = proof + limits.stale_after, proof + limits.unknown_after
    opens_at = proof + holds_for(state.on_unknown, state.hold_seconds, limits.stale_after, limits.interval)
    if left is not None:
        stale_at, opens_at = min(stale_at, left), min(opens_at, left)
    lost = state.freshness == "unknown" or state.status == "unknown"
    expired = now >= unknown_at or (lost and state.override is None)
    observed = state.mode == "observe" and state.action == "continue"
    stored = (state.would or "continue") if observed else state.action
    action, ratio = aged(stored, _share(stored, state, observed), state.on_unknown, now - opens_at, expired)
    opening = action == "throttle" and now >= opens_at
    changes = [now + OPENING_STEP] if opening else [at for at in (stale_at, unknown_at, opens_at) if at > now]
    unknown = expired or lost
    return LocalDecision(
        action="continue" if observed else action,
        ratio=1.0 if observed else ratio,
        retry_after=0.0 if observed or action == "continue" else _retry_after(state, stored),
        status="unknown" if unknown else state.status,
        freshness="unknown" if unknown else "stale" if now >= stale_at or state.freshness != "known" else "known",
        would=action if observed and (state.would or action != "continue") else state.would,
        pressure=0.0 if unknown else state.pressure or 0.0,
        enforced=state.mode == "enforce",
        until=min(changes, default=math.inf),
        override=state.override is not None and not expired,
    )


def _share(action: ActionName, state: State, observed: bool) -> float:
    """Share of the requests before it ages. A state under `mode: observe` has no ratio of what it would admit: 0."""
    return {"continue": 1.0, "throttle": 0.0 if observed else state.admit_ratio, "reject": 0.0}[action]


def _retry_after(state: State, action: ActionName) -> float:
    seconds = state.retry_after_seconds or (DEFAULT_RETRY_AFTER if action == "continue" else 0.0)
    return min(seconds, MAX_RETRY_AFTER)


def strictest(decisions: list[LocalDecision]) -> LocalDecision:
    """The strictest; of equals the first, which is the subject's own where it is watched itself."""
    return max(decisions, key=lambda decision: decision.rank) if decisions else OPEN
