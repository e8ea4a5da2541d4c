"""What a gateway is told: admit, shed, or neither; and when to come back."""

from __future__ import annotations

from nats_backpressure.core.admission.adaptive import OPEN, Shedding, priority_share
from nats_backpressure.core.model import Admission
from nats_backpressure.policy.schema import Override, Policy
from nats_backpressure.protocol.opening import aged
from nats_backpressure.protocol.values import Action, Freshness, Priority, Status

LONGEST_DELAY = 86_400_000
"""Milliseconds; no retry delay is longer."""


def admission_at_status(policy: Policy, status: Status, shedding: Shedding = OPEN) -> Admission:
    """Binary admission, the router's own design: an active subject rejects, any other continues. Adaptive: a share."""
    return _in_mode(policy, _judged(policy, status, shedding))


def for_priority(found: Admission, policy: Policy, priority: Priority) -> Admission:
    """Critical requests always continue. In adaptive mode the low ones are shed first; in binary mode all are alike."""
    if priority == "critical":
        return Admission(would=None if found.would is None else Action.CONTINUE)
    if found.action is not Action.THROTTLE or policy.admission.mode == "binary":
        return found
    share = priority_share(found.admit_ratio, priority, policy.admission.floor)
    return Admission(found.action, found.would, round(share, 4), found.retry_after)


def current_admission(
    policy: Policy,
    status: Status,
    freshness: Freshness,
    last: Admission,
    opening: float,
    shedding: Shedding = OPEN,
) -> Admission:
    """What to answer now. Known and stale: the last status acts; unknown: the last answer. Either has been opening for
    so many seconds, negative where it does not yet (`protocol.opening`); `on_unknown: reject` rejects what is
    unknown."""
    unknown = freshness is Freshness.UNKNOWN
    found = _enforced(policy, last) if unknown else _judged(policy, status, shedding)
    if freshness is not Freshness.KNOWN or opening > 0:
        # Under `observe` nobody knows the share that would apply: as for who watches, it opens from nothing.
        ratio = 0.0 if policy.mode == "observe" and found.action is not Action.CONTINUE else found.admit_ratio
        action, ratio = aged(found.action.value, ratio, policy.on_unknown, opening, unknown)
        if action == "reject":
            found = _rejection(policy)
        elif action == "continue":
            found = Admission()
        else:
            found = Admission(Action.THROTTLE, None, round(ratio, 4), found.retry_after)
    return _in_mode(policy, found)


def with_override(found: Admission, override: Override | None, policy: Policy) -> Admission:
    """An operator's word goes over the judgement, and over a dry run."""
    if override is None:
        return found
    return _rejection(policy) if override.action == "reject" else Admission()


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


def _rejection(policy: Policy) -> Admission:
    return Admission(Action.REJECT, None, 0.0, policy.retry_after_seconds)


def _judged(policy: Policy, status: Status, shedding: Shedding) -> Admission:
    """As enforcement would answer."""
    if policy.admission.mode == "adaptive":
        share = max(shedding.ratio, policy.admission.floor)
        return Admission(Action.THROTTLE, None, share, shedding.retry_after) if share < 1 else Admission()
    return _rejection(policy) if status is Status.ACTIVE else Admission()


def _in_mode(policy: Policy, found: Admission) -> Admission:
    """Under `observe` the answer is continue, and `would` says what enforcement would have said."""
    return Admission(would=found.action) if policy.mode == "observe" else found


def _enforced(policy: Policy, last: Admission) -> Admission:
    """What enforcement said last, also where it was only observed."""
    match last.would:
        case None:
            return last
        case Action.CONTINUE:
            return Admission()
        case Action.THROTTLE:
            return Admission(Action.THROTTLE, None, policy.admission.floor, policy.retry_after_seconds)
        case _:
            return _rejection(policy)
