"""Adaptive admission: computes the share of requests to admit so that the backlog stays at its target.

The product page's formula, ratio = allowed / offered with allowed = drain rate x (1 + (target - backlog) / target) and
offered = arrivals / share in force, needs no model of the senders: it settles where arrivals equal what is allowed,
also with producers that use no gateway. How it was measured: benchmarks/adaptive_simulation.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.admission import load_estimate
from nats_backpressure.core.admission.load_estimate import LoadEstimate
from nats_backpressure.core.admission.offered_load import OfferedLoad
from nats_backpressure.core.admission.retry_after import RetryAfter, next_retry_after
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.policy.schema import Policy, in_force
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Priority

RISE = 0.25
"""Share per second by which the ratio rises at most: recovery must not bring back all callers at once."""
LONGEST_RISE = 1.0
"""Seconds of rise in one step at most, however long there was no reading."""
STEP, SHARE_STEP = 0.01, 0.05
"""A change by less than STEP, or by less than this share of the ratio, is not worth a write and not made."""
START = 0.5
"""The share of its target that the backlog must exceed before any request is refused."""
REGROWTH = 2.0
"""Factor per second by which the ratio grows at least while no backlog is above START, whatever else is measured."""
SHEDDING_HOLD = 10.0
"""Seconds for which `shedding` outlasts the last refusal, so that a load at the limit does not flap the status."""
GATEWAY_DELAY = 0.3
"""Seconds from a decision to its arrivals, beside half the interval for which answers are cached."""
MAX_REPORT_FACTOR = 2.0
"""Factor by which a reported share may differ from the decided one: it bounds the effect of forged reports."""
MAX_GAIN = 3.0
"""Largest gain of the loop where reports show that most arrivals do not come through gateways."""
POWERS = {"low": 2.0, "normal": 1.0, "high": 0.5}


class Shedding(Struct, frozen=True, gc=False):
    """The state of adaptive admission of a subject. `Shedding(ratio, retry_after)` continues what another replica
    stored."""

    ratio: float = 1.0
    """The share to admit, floor..1."""
    retry_after: int = 0
    """Seconds after which the refused may return; 0 while nobody is refused."""
    shedding: bool = False
    """Whether the status is at least a warning: while the ratio is below 1, and SHEDDING_HOLD seconds longer."""
    at: float | None = None
    unstepped_ratio: float | None = None
    """The ratio before it is rounded to steps."""
    applied: float | None = None
    """The share that gateways are decided to apply by now."""
    refused_at: float | None = None
    estimates: tuple[LoadEstimate, ...] = ()
    retry: RetryAfter = RetryAfter()


OPEN = Shedding()
SHEDDING = "shedding"
"""Its name among the reasons."""


def next_shedding(
    was: Shedding,
    policy: Policy,
    readings: Iterable[Reading],
    offered: OfferedLoad | None,
    now: Now,
    own: Mapping[ConsumerKey, Policy] | None = None,
) -> Shedding:
    """What to admit after the readings of all consumers that count; a reading that is not newer changes nothing.

    The smallest ratio decides. Without a new reading nothing changes. In binary mode the result is OPEN. `own` has the
    policy of each consumer for its target and its floor; `policy` is the one with the lowest floor.
    """
    if policy.admission.mode == "binary":
        return OPEN
    if (override := in_force(policy, now)) is not None:
        # No gateway applies the ratio now. After a rejection it starts at the floor: that return is half-open too.
        return was if override.action == "open" else Shedding(policy.admission.floor)
    was = _resumed(was, policy)
    dt = 0.0 if was.at is None else max(0.0, now.mono - was.at)
    applied = _applied(was, policy, dt)
    known = {g.key: g for g in was.estimates}
    estimates = tuple(
        _next_goal(known.get(r.key), r, applied, (own or {}).get(r.key, policy), offered) for r in readings
    )
    if not estimates or estimates == was.estimates:
        return was
    unstepped = _unstepped(was, estimates, policy, dt)
    ratio = _stepped(was.ratio, unstepped, policy.admission.floor)
    refused_at = now.mono if ratio < 1 else was.refused_at
    learnt = next_retry_after(was.retry, ratio < 1, estimates, policy.retry_after_seconds, now.mono)
    return Shedding(
        ratio=ratio,
        retry_after=learnt.seconds(policy.retry_after_seconds) if ratio < 1 else 0,
        shedding=refused_at is not None and now.mono - refused_at < SHEDDING_HOLD,
        at=now.mono,
        unstepped_ratio=unstepped,
        applied=applied,
        refused_at=refused_at,
        estimates=estimates,
        retry=learnt,
    )


def priority_share(ratio: float, priority: Priority, floor: float) -> float:
    """The share for one priority: `normal` is the ratio itself, since most callers give none; `low` less, `high` more.

    Smooth, and equal at the floor and at 1, so that the loop finds its ratio for any mix of priorities.
    """
    if ratio >= 1 or priority == "critical":
        return 1.0
    floor = min(floor, ratio)  # a ratio below it is one that a replica with another floor decided
    above = (ratio - floor) / (1 - floor)
    return floor + (1 - floor) * math.pow(above, POWERS[priority])


def _resumed(was: Shedding, policy: Policy) -> Shedding:
    """Raised to the floor, which may have changed; what was stored may be the 0 of binary mode."""
    ratio = max(was.ratio, policy.admission.floor)
    if was.at is None:
        return Shedding(ratio, 0, was.shedding, refused_at=was.refused_at, retry=RetryAfter(base=was.retry_after))
    return (
        was
        if ratio == was.ratio
        else replace(was, ratio=ratio, unstepped_ratio=max(was.unstepped_ratio or ratio, ratio))
    )


def _applied(was: Shedding, policy: Policy, dt: float) -> float:
    """The share that gateways apply: it follows the decided one with a delay; under `observe` they admit all."""
    if policy.mode == "observe":
        return 1.0
    before = was.applied or was.ratio
    return was.ratio + (before - was.ratio) * math.exp(-dt / (GATEWAY_DELAY + dt / 2))


def _next_goal(
    was: LoadEstimate | None, reading: Reading, applied: float, policy: Policy, offered: OfferedLoad | None
) -> LoadEstimate:
    """The estimate of one consumer with its goal ratio; without evidence the goal stays."""
    if was is not None and reading.at.mono <= was.at:
        return was
    new = load_estimate.next_estimate(was, reading, applied)
    if not new.lasted or new.drain is None or new.rate is None:
        return new
    backlog = new.drain / policy.admission.target_drain_seconds
    allowed = new.rate * max(0.0, 2 - backlog)
    share, gain = _measured(new, offered)
    demand = new.arrival_rate / share
    most = max(demand, new.sudden)
    goal = share + gain * (allowed / most - share) if most > 0 else 1.0
    return replace(new, demand=demand, goal=min(1.0, max(policy.admission.floor, goal)), full=backlog > START)


def _measured(estimate: LoadEstimate, offered: OfferedLoad | None) -> tuple[float, float]:
    """The share that was in force while these messages came, and how hard to steer: 1 is the formula.

    Where gateways report, both are measured. Arrivals that no gateway admits cannot be steered, so the rest is steered
    harder; otherwise the same balance is reached more slowly.
    """
    decided = estimate.share
    if offered is None or (share := offered.share(estimate.at)) is None:
        return decided, 1.0
    admitted = offered.admitted_rate(estimate.at) or 0.0
    gain = estimate.arrival_rate / admitted if admitted > 0 else MAX_GAIN
    return min(max(share, decided / MAX_REPORT_FACTOR), decided * MAX_REPORT_FACTOR), min(max(gain, 1.0), MAX_GAIN)


def _unstepped(was: Shedding, estimates: tuple[LoadEstimate, ...], policy: Policy, dt: float) -> float:
    """The smallest goal, its rise bounded. Only once no backlog is above START all are admitted again; until then the
    ratio grows, whatever the goals are."""
    before = was.unstepped_ratio or was.ratio
    goal, dt = min(g.goal for g in estimates), min(dt, LONGEST_RISE)
    if not any(g.full for g in estimates):
        goal = max(goal, before * REGROWTH**dt)
    elif was.ratio < 1:
        goal = min(goal, 1 - STEP)
    return max(min(goal, before + RISE * dt, 1.0), policy.admission.floor)


def _stepped(ratio: float, unstepped: float, floor: float) -> float:
    """The ratio in force: it moves in steps, and exactly to both ends."""
    at_an_end = unstepped in (1.0, floor) and unstepped != ratio
    return (
        max(floor, round(unstepped, 4))
        if at_an_end or abs(unstepped - ratio) >= max(STEP, SHARE_STEP * ratio)
        else ratio
    )
