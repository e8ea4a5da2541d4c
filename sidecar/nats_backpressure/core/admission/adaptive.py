"""Adaptive admission: the share of requests that holds the backlog at its target.

The product page's formula, ratio = allowed / offered with allowed = drain rate x (1 + (target - backlog) / target) and
offered = arrivals / share in force, needs no model of who sends what: it comes to rest where what arrives is what is
allowed, also with producers that ask no gateway. How it was measured: tests/core/test_adaptive_world.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.admission import load_estimate
from nats_backpressure.core.admission import retry_after as patience
from nats_backpressure.core.admission.gateway_reports import OfferedLoad
from nats_backpressure.core.admission.load_estimate import LoadEstimate
from nats_backpressure.core.admission.retry_after import RetryAfter
from nats_backpressure.core.model import Reading
from nats_backpressure.policy.schema import Policy, in_force
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Priority

RISE = 0.25
"""Share per second by which the ratio rises at most: recovery must not invite the herd back."""
LONGEST_RISE = 1.0
"""Seconds one step may rise for, however long nothing was heard."""
STEP, SHARE_STEP = 0.01, 0.05
"""A change by less than STEP, or by less than this share of the ratio, is not worth a write, so it is not made."""
START = 0.5
"""The share of its target that the backlog must pass before anybody is refused."""
REGROWTH = 2.0
"""Factor per second by which the ratio grows at least while no backlog is past START, whatever else is measured."""
CALM = 10.0
"""Seconds for which `shedding` outlasts the last refusal, so that a load at the edge does not flap the status."""
LAG = 0.3
"""Seconds from a decision to its arrivals, beside half the interval for which answers are cached."""
TRUST = 2.0
"""Factor by which a reported share may differ from the one decided: what is forged does no more harm than that."""
MOST_GAIN = 3.0
"""How much harder at most gateways are steered where their reports show that others send most of what arrives."""
POWERS = {"low": 2.0, "normal": 1.0, "high": 0.5}


class Shedding(Struct, frozen=True):
    """What is in force for a subject. `Shedding(ratio, retry_after)` takes up what another replica stored."""

    ratio: float = 1.0
    """The share to admit, floor..1."""
    retry_after: int = 0
    """Seconds after which the refused may return; 0 while nobody is refused."""
    shedding: bool = False
    """Whether the status is a warning at least: while the ratio is below 1, and CALM longer."""
    at: float | None = None
    unstepped_ratio: float | None = None
    """The ratio before it moves in steps."""
    applied: float | None = None
    """The share that gateways are thought to apply by now."""
    refused_at: float | None = None
    estimates: tuple[LoadEstimate, ...] = ()
    retry: RetryAfter = RetryAfter()


OPEN = Shedding()
SHEDDING = "shedding"
"""The reason it is told by."""


def next_shedding(
    was: Shedding, policy: Policy, readings: Iterable[Reading], offered: OfferedLoad | None, now: Now
) -> Shedding:
    """What to admit after the readings of all consumers that count; one that is not newer keeps its word.

    The smallest ratio decides. Without anything new nothing moves: the unknown is frozen. In binary mode it is OPEN.
    """
    if policy.admission.mode == "binary":
        return OPEN
    if (override := in_force(policy, now)) is not None:
        # Nobody applies the ratio now. After a rejection it begins at the floor: that return is half-open too.
        return was if override.action == "open" else Shedding(policy.admission.floor)
    was = _resumed(was, policy)
    dt = 0.0 if was.at is None else max(0.0, now.mono - was.at)
    applied = _applied(was, policy, dt)
    known = {g.key: g for g in was.estimates}
    gauges = tuple(_asked(known.get(r.key), r, applied, policy, offered) for r in readings)
    if not gauges or gauges == was.estimates:
        return was
    wish = _wish(was, gauges, policy, dt)
    ratio = _stepped(was.ratio, wish, policy.admission.floor)
    refused_at = now.mono if ratio < 1 else was.refused_at
    learnt = patience.next_retry_after(was.retry, ratio < 1, gauges, policy.retry_after_seconds, now.mono)
    return Shedding(
        ratio=ratio,
        retry_after=learnt.seconds(policy.retry_after_seconds) if ratio < 1 else 0,
        shedding=refused_at is not None and now.mono - refused_at < CALM,
        at=now.mono,
        unstepped_ratio=wish,
        applied=applied,
        refused_at=refused_at,
        estimates=gauges,
        retry=learnt,
    )


def priority_share(ratio: float, priority: Priority, floor: float) -> float:
    """The share for one priority: `normal` is the ratio itself, since most callers name none; `low` less, `high` more.

    Smooth, and all meet at the floor and at 1, so that the loop finds its ratio whatever the mix is.
    """
    if ratio >= 1 or priority == "critical":
        return 1.0
    above = max(0.0, ratio - floor) / (1 - floor)
    return floor + (1 - floor) * math.pow(above, POWERS[priority])


def _resumed(was: Shedding, policy: Policy) -> Shedding:
    """Nothing is below the floor, which may be another now, and what was stored may be binary mode's 0."""
    ratio = max(was.ratio, policy.admission.floor)
    if was.at is None:
        return Shedding(ratio, 0, was.shedding, refused_at=was.refused_at, retry=RetryAfter(base=was.retry_after))
    return (
        was
        if ratio == was.ratio
        else replace(was, ratio=ratio, unstepped_ratio=max(was.unstepped_ratio or ratio, ratio))
    )


def _applied(was: Shedding, policy: Policy, dt: float) -> float:
    """What gateways apply follows what is decided after a while; where it is only observed, they admit all."""
    if policy.mode == "observe":
        return 1.0
    before = was.applied or was.ratio
    return was.ratio + (before - was.ratio) * math.exp(-dt / (LAG + dt / 2))


def _asked(
    was: LoadEstimate | None, reading: Reading, applied: float, policy: Policy, offered: OfferedLoad | None
) -> LoadEstimate:
    """The gauge of one consumer with the ratio it asks for; without evidence it keeps its word."""
    if was is not None and reading.at.mono <= was.at:
        return was
    found = load_estimate.next_estimate(was, reading, applied)
    if not found.lasted or found.drain is None or found.rate is None:
        return found
    backlog = found.drain / policy.admission.target_drain_seconds
    allowed = found.rate * max(0.0, 2 - backlog)
    share, gain = _measured(found, offered)
    demand = found.arrival_rate / share
    most = max(demand, found.sudden)
    goal = share + gain * (allowed / most - share) if most > 0 else 1.0
    return replace(found, demand=demand, goal=min(1.0, max(0.0, goal)), full=backlog > START)


def _measured(found: LoadEstimate, offered: OfferedLoad | None) -> tuple[float, float]:
    """The share that was in force while these messages came, and how hard to steer: 1 is the formula.

    Where gateways report, both are measured. Of what arrives beyond what they let through nothing can be steered, so
    the rest is steered harder; otherwise the same rest is reached more slowly.
    """
    thought = found.share
    if offered is None or (share := offered.share(found.at)) is None:
        return thought, 1.0
    admitted = offered.admitted_rate(found.at) or 0.0
    gain = found.arrival_rate / admitted if admitted > 0 else MOST_GAIN
    return min(max(share, thought / TRUST), thought * TRUST), min(max(gain, 1.0), MOST_GAIN)


def _wish(was: Shedding, gauges: tuple[LoadEstimate, ...], policy: Policy, dt: float) -> float:
    """The smallest goal, its rise bounded. Only once no backlog is past START all are admitted again, and from there
    it never falls but grows, whatever the goals are."""
    before = was.unstepped_ratio or was.ratio
    goal, dt = min(g.goal for g in gauges), min(dt, LONGEST_RISE)
    if not any(g.full for g in gauges):
        goal = max(goal, before * REGROWTH**dt)
    elif was.ratio < 1:
        goal = min(goal, 1 - STEP)
    return max(min(goal, before + RISE * dt, 1.0), policy.admission.floor)


def _stepped(ratio: float, wish: float, floor: float) -> float:
    """The ratio in force: moved by steps, and all the way at both ends."""
    at_an_end = wish in (1.0, floor) and wish != ratio
    return max(floor, round(wish, 4)) if at_an_end or abs(wish - ratio) >= max(STEP, SHARE_STEP * ratio) else ratio
