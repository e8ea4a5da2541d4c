"""What a gateway is told: admit, shed, or neither; and when to come back."""

from __future__ import annotations

from typing import Literal

from sidecar.core.adaptive import OPEN, Shedding, priority_share
from sidecar.core.freshness import Limits
from sidecar.core.model import Action, Freshness, Override, Status
from sidecar.core.rules import Policy
from sidecar.core.state import Verdict

Priority = Literal["low", "normal", "high", "critical"]

OPENING = 0.25
"""Share per second by which an answer held too long opens: recovery must not invite the herd back."""
LONGEST_DELAY = 86_400_000
"""Milliseconds; no retry delay is longer."""


def verdict_at(policy: Policy, status: Status, shedding: Shedding = OPEN) -> Verdict:
    """Binary admission, the router's own design: an active subject rejects, any other continues. Adaptive: a share."""
    if policy.admission.mode == "adaptive":
        share = max(shedding.ratio, policy.admission.floor)
        found = Verdict(Action.THROTTLE, None, share, shedding.retry_after) if share < 1 else Verdict()
    else:
        found = _rejection(policy) if status is Status.ACTIVE else Verdict()
    return _in_mode(policy, found)


def for_priority(found: Verdict, policy: Policy, priority: Priority) -> Verdict:
    """Critical requests always continue. In adaptive mode the low ones are shed first; in binary mode all are alike."""
    if priority == "critical":
        return Verdict(would=None if found.would is None else Action.CONTINUE)
    if found.action is not Action.THROTTLE or policy.admission.mode == "binary":
        return found
    share = priority_share(found.admit_ratio, priority, policy.admission.floor)
    return Verdict(found.action, found.would, round(share, 4), found.retry_after)


def verdict(
    policy: Policy,
    status: Status,
    freshness: Freshness,
    last: Verdict,
    proof: float | None,
    now: float,
    limits: Limits,
    shedding: Shedding = OPEN,
) -> Verdict:
    """What to answer now. Stale: the last status acts. Unknown: the policy's `on_unknown`, where `hold` repeats the
    last answer for `hold_seconds` and then opens gradually. `proof` None holds: there is nothing to count from."""
    if freshness is not Freshness.UNKNOWN:
        return verdict_at(policy, status, shedding)
    match policy.on_unknown:
        case "continue":
            found = Verdict()
        case "reject":
            found = _rejection(policy)
        case "hold":
            held = 0.0 if proof is None else now - proof - limits.unknown_after - policy.hold_seconds
            found = _opening(_enforced(policy, last), OPENING * held)
    return _in_mode(policy, found)


def overridden(found: Verdict, override: Override | None, policy: Policy) -> Verdict:
    """An operator's word goes over the judgement, and over a dry run."""
    if override is None:
        return found
    return _rejection(policy) if override.action == "reject" else Verdict()


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
            factor = 2 ** min(attempt - 1, 40)  # far beyond LONGEST_DELAY, and still a small number
    return min(factor * retry_after * 1000, LONGEST_DELAY)


def _rejection(policy: Policy) -> Verdict:
    return Verdict(Action.REJECT, None, 0.0, policy.retry_after_seconds)


def _opening(last: Verdict, opened: float) -> Verdict:
    """The last answer, let go of by the share `opened`; it never closes again on the way."""
    if opened <= 0 or last.action is Action.CONTINUE:
        return last
    ratio = round(max(opened, last.admit_ratio), 3)
    return Verdict() if ratio >= 1 else Verdict(Action.THROTTLE, None, ratio, last.retry_after)


def _in_mode(policy: Policy, found: Verdict) -> Verdict:
    """Under `observe` the answer is continue, and `would` says what enforcement would have said."""
    return Verdict(would=found.action) if policy.mode == "observe" else found


def _enforced(policy: Policy, last: Verdict) -> Verdict:
    """What enforcement said last, also where it was only observed."""
    match last.would:
        case None:
            return last
        case Action.CONTINUE:
            return Verdict()
        case Action.THROTTLE:
            return Verdict(Action.THROTTLE, None, policy.admission.floor, policy.retry_after_seconds)
        case _:
            return _rejection(policy)
