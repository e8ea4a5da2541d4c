"""Computes what gateways may admit, from status, freshness, priority, policy and override; and the retry delays."""

from __future__ import annotations

from msgspec.structs import replace

from nats_backpressure.core.admission.adaptive import OPEN, Shedding, priority_share
from nats_backpressure.core.model.admission import GatewayAdmission
from nats_backpressure.policy.schema import Override, Policy
from nats_backpressure.protocol.refusal_expiry import aged
from nats_backpressure.protocol.values import Action, Freshness, Priority, Status

NEAR = 0.01
"""A change of the share that is smaller than this is not worth a write."""
LONGEST_DELAY = 86_400_000
"""Milliseconds; no retry delay is longer."""


def admission_at_status(policy: Policy, status: Status, shedding: Shedding = OPEN) -> GatewayAdmission:
    """Binary admission, as in the router: an active subject rejects, any other continues. Adaptive admission: a
    share."""
    return _in_mode(policy, enforced_admission(policy, status, shedding))


def for_priority(admission: GatewayAdmission, policy: Policy, priority: Priority) -> GatewayAdmission:
    """Critical requests always continue. In adaptive mode the low ones are shed first; in binary mode all are alike."""
    if priority == "critical":
        return GatewayAdmission(would=None if admission.would is None else Action.CONTINUE)
    if admission.action is not Action.THROTTLE or policy.admission.mode == "binary":
        return admission
    share = priority_share(admission.admit_ratio, priority, policy.admission.floor)
    return GatewayAdmission(admission.action, admission.would, round(share, 4), admission.retry_after)


def current_admission(
    policy: Policy,
    status: Status,
    freshness: Freshness,
    last: GatewayAdmission,
    opening: float,
    shedding: Shedding = OPEN,
    as_stored: bool = False,
) -> GatewayAdmission:
    """What gateways may admit now: by the last status while it is known or stale, else by the last answer; with
    `as_stored` always by that.

    `opening`: seconds for which it has been opening, negative while it does not yet (`protocol.refusal_expiry`). With
    `on_unknown: reject` an unknown subject rejects.
    """
    unknown = freshness is Freshness.UNKNOWN
    admission = _enforced(policy, last) if unknown or as_stored else enforced_admission(policy, status, shedding)
    if freshness is not Freshness.KNOWN or opening > 0:
        # Under `observe` the share that would apply is not known: as for watching clients, it opens from 0.
        ratio = 0.0 if policy.mode == "observe" and admission.action is not Action.CONTINUE else admission.admit_ratio
        action, ratio = aged(admission.action.value, ratio, policy.on_unknown, opening, unknown)
        if action == "reject":
            admission = _rejection(policy)
        elif action == "continue":
            admission = GatewayAdmission()
        else:
            admission = GatewayAdmission(Action.THROTTLE, None, round(ratio, 4), admission.retry_after)
    return _in_mode(policy, admission)


def nearly_stored(admission: GatewayAdmission, stored: GatewayAdmission) -> GatewayAdmission:
    """What is stored, where that differs by a share of less than NEAR only: all replicas answer it."""
    near = abs(admission.admit_ratio - stored.admit_ratio) < NEAR
    return stored if near and replace(admission, admit_ratio=stored.admit_ratio) == stored else admission


def with_override(admission: GatewayAdmission, override: Override | None, policy: Policy) -> GatewayAdmission:
    """The override replaces the admission, also in a dry run."""
    if override is None:
        return admission
    return _rejection(policy) if override.action == "reject" else GatewayAdmission()


def retry_delay(policy: Policy, attempt: int, retry_after: int) -> int | None:
    """Milliseconds before attempt number `attempt` + 1; None past the last one, and while nothing is refused."""
    if retry_after <= 0 or attempt > policy.max_retry_attempts:
        return None
    match policy.backoff_strategy:
        case "constant":
            factor = 1
        case "linear":
            factor = attempt
        case _:  # exponential
            factor = 2 ** min(attempt - 1, 40)  # far beyond LONGEST_DELAY, and still a small number
    return min(factor * retry_after * 1000, LONGEST_DELAY)


def _rejection(policy: Policy) -> GatewayAdmission:
    return GatewayAdmission(Action.REJECT, None, 0.0, policy.retry_after_seconds)


def enforced_admission(policy: Policy, status: Status, shedding: Shedding) -> GatewayAdmission:
    """The answer as if the mode were `enforce`."""
    if policy.admission.mode == "adaptive":
        share = max(shedding.ratio, policy.admission.floor)
        return GatewayAdmission(Action.THROTTLE, None, share, shedding.retry_after) if share < 1 else GatewayAdmission()
    return _rejection(policy) if status is Status.ACTIVE else GatewayAdmission()


def _in_mode(policy: Policy, admission: GatewayAdmission) -> GatewayAdmission:
    """Under `observe` the action is continue, and `would` is the action as if the mode were `enforce`."""
    return GatewayAdmission(would=admission.action) if policy.mode == "observe" else admission


def _enforced(policy: Policy, last: GatewayAdmission) -> GatewayAdmission:
    """The last answer as if the mode were `enforce`."""
    match last.would:
        case None:
            return last
        case Action.CONTINUE:
            return GatewayAdmission()
        case Action.THROTTLE:
            return GatewayAdmission(Action.THROTTLE, None, policy.admission.floor, policy.retry_after_seconds)
        case _:
            return _rejection(policy)
