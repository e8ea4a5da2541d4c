"""An override ends at the server's time, at all replicas at the same moment, whatever their machines' clocks show."""

from __future__ import annotations

import json

import pytest

from nats_backpressure.protocol.timestamps import format_rfc3339, parse_rfc3339
from tests.simulations.replicas import SUBJECT, Replicas

LASTS, STEP = 20.0, 0.25
"""Seconds of an override, and between two looks at it."""
WITHIN = 1.0
"""Seconds from `until` within which it ends in all answers and in what is stored."""
WRONG = {"r0": -600.0, "r1": 600.0}


def put(replicas: Replicas, action: str = "reject") -> float:
    """Until when it is in force."""
    now = replicas.clock.now().wall
    value = {"action": action, "until": format_rfc3339(now + LASTS)}
    replicas.policies.put(f"=override.{SUBJECT}", json.dumps(value).encode(), now)
    return now + LASTS


def overridden(replicas: Replicas) -> dict[str, bool]:
    """For each replica, and the stored state, whether the override is in force."""
    state = replicas.state()
    shown = {name: one.answer() for name, one in replicas.all.items()}
    reasons = {name: "override" in answer["reasons"] for name, answer in shown.items() if answer is not None}
    return {**reasons, "stored": state is not None and state["override"] is not None}


@pytest.mark.parametrize("jumps", [False, True], ids=["steady", "set all the time"])
@pytest.mark.parametrize("wrong", [WRONG, {"r0": 600.0, "r1": -600.0}], ids=["behind reads", "ahead reads"])
async def test_all_end_it_at_the_same_moment(wrong: dict[str, float], jumps: bool) -> None:
    async with Replicas(2, skew=wrong.__getitem__).running(2) as replicas:
        await replicas.clock.run(5)
        until, ended = put(replicas), dict[str, float]()
        await replicas.clock.run(1)
        assert overridden(replicas) == {"r0": True, "r1": True, "stored": True}
        while (now := replicas.clock.now().wall) < until + 5:
            for name in (name for name, there in overridden(replicas).items() if not there):
                ended.setdefault(name, now)
            if jumps and replicas.dice.random() < 0.1:
                replicas.all[replicas.dice.choice(("r0", "r1"))].clock.machine.wall = replicas.dice.uniform(-5e3, 5e3)
            await replicas.clock.run(STEP)
        assert ended.keys() == {"r0", "r1", "stored"}
        assert all(abs(at - until) <= WITHIN for at in ended.values()), ended


async def test_what_is_stored_has_the_servers_time() -> None:
    async with Replicas(3, skew=WRONG.__getitem__).running(2) as replicas:
        await replicas.overload()
        await replicas.calm()
        times = [parse_rfc3339(event["timestamp"]) or 0.0 for event in replicas.events()]
        assert len(times) == 2 and all(abs(replicas.clock.now().wall - at) < 5 for at in times)
