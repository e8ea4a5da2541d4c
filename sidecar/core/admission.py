"""What a gateway is told: admit, shed, or neither; and when to come back."""

from __future__ import annotations

from sidecar.core.freshness import Limits
from sidecar.core.model import Action, Freshness, Status
from sidecar.core.rules import Policy
from sidecar.core.state import Verdict

OPENING = 0.25
"""Share per second by which an answer held too long opens: recovery must not invite the herd back."""
LONGEST_DELAY = 86_400_000
"""Milliseconds; no retry delay is longer."""


def verdict_at(policy: Policy, status: Status) -> Verdict:
    """Binary admission, the router's own design: an active subject rejects, any other continues."""
    if status is not Status.ACTIVE:
        return Verdict(would=Action.CONTINUE if policy.mode == "observe" else None)
    if policy.mode == "observe":
        return Verdict(would=Action.REJECT)
    return Verdict(Action.REJECT, None, 0.0, policy.retry_after_seconds)


def verdict(
    policy: Policy,
    status: Status,
    freshness: Freshness,
    last: Verdict,
    proof: float | None,
    now: float,
    limits: Limits,
) -> Verdict:
    """What to answer now. Stale: the last status acts. Unknown: the policy's `on_unknown`, where `hold` repeats the
    last answer for `hold_seconds` and then opens gradually."""
    if freshness is not Freshness.UNKNOWN:
        return verdict_at(policy, status)
    if policy.mode == "observe":
        return Verdict(would=Action.REJECT if policy.on_unknown == "reject" else last.would or Action.CONTINUE)
    if policy.on_unknown == "continue":
        return Verdict()
    if policy.on_unknown == "reject":
        return Verdict(Action.REJECT, None, 0.0, policy.retry_after_seconds)
    if last.action is Action.CONTINUE or proof is None:
        return last
    opened = OPENING * (now - proof - limits.unknown_after - policy.hold_seconds)
    if opened <= 0:
        return last
    if opened >= 1:
        return Verdict()
    return Verdict(Action.THROTTLE, None, round(max(opened, last.admit_ratio), 3), last.retry_after)


def retry_delay(policy: Policy, attempt: int, retry_after: int) -> int | None:
    """Milliseconds before attempt number `attempt` + 1; None past the last one, and when nothing is to be retried."""
    if retry_after <= 0 or attempt > policy.max_retry_attempts:
        return None
    match policy.backoff_strategy:
        case "constant":
            factor = 1
        case "linear":
            factor = attempt
        case "exponential":
            factor = 2 ** min(attempt - 1, 40)
    return min(factor * retry_after * 1000, LONGEST_DELAY)
