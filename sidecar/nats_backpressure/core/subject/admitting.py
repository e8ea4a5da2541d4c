"""Chooses, where the consumers of a subject have different policies, which of these answers gateways.

Each consumer is answered for by its own policy at its own status, and the strictest answer counts. Which consumer is
the worst decides nothing: it changes with each reading, and would switch between policies.
"""

from __future__ import annotations

from collections.abc import Collection

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.admission.adaptive import Shedding
from nats_backpressure.core.admission.gateway_admission import enforced_admission
from nats_backpressure.core.model.member import Member
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.strictness import STRICTNESS
from nats_backpressure.protocol.values import Status

ON_UNKNOWN = {"continue": 0, "hold": 1, "reject": 2}


class Admitting(Struct, frozen=True, gc=False):
    """The policy that answers gateways, and the status of its own consumer."""

    policy: Policy
    status: Status


def counted(members: Collection[Member]) -> list[Member]:
    """The members that count for gateways: beside an enforced policy a dry run neither opens nor closes anything."""
    return [member for member in members if member.policy.mode == "enforce"] or list(members)


def steering(members: Collection[Member]) -> list[Member]:
    """Those of them that adaptive admission is computed for."""
    return [member for member in counted(members) if member.policy.admission.mode == "adaptive"]


def admitting(members: Collection[Member], shedding: Shedding) -> Admitting | None:
    """None where all members have one policy: then the status of the subject is answered with it."""
    if not _differ(members):
        return None
    counting = counted(members)
    known = [m for m in counting if m.status is not Status.UNKNOWN]
    known = known or [m for m in members if m.status is not Status.UNKNOWN]
    if not known:
        return None
    strictest = min(known, key=lambda m: (*_leniency(m, shedding), m.key))
    policy = strictest.policy
    if any(m.policy.on_unknown == "reject" for m in known) and policy.on_unknown != "reject":
        policy = replace(policy, on_unknown="reject")  # one with another policy refuses once nothing is known
    return Admitting(policy, strictest.status)


def _differ(members: Collection[Member]) -> bool:
    policies = {id(member.policy): member.policy for member in members}
    first = next(iter(policies.values()), None)
    return any(policy != first for policy in policies.values())


def _leniency(member: Member, shedding: Shedding) -> tuple[float, ...]:
    """By what is answered now, then by how long that holds; status and pressure last, so that equal answers do not
    change with each reading."""
    policy = member.policy
    admission = enforced_admission(policy, member.status, shedding)
    strictness = (STRICTNESS[admission.action.value], -admission.admit_ratio)
    holds = (ON_UNKNOWN[policy.on_unknown], policy.hold_seconds, policy.retry_after_seconds)
    return tuple(-value for value in (*strictness, *holds, member.status, member.pressure))
