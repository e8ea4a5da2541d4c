"""What a look at a stream at rest may cost: nothing is planned again, and no outage is looked for."""

from __future__ import annotations

from typing import Any

import pytest

from tests.runtime.test_poller import LEAST, World


async def test_a_look_that_shows_nothing_new_plans_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world, planned = World(), list[str]()
    world.stream("S", "c")
    plan = world.poller._plan

    def counting(poll: Any) -> None:
        planned.append(poll.name)
        plan(poll)

    async with world.running():
        await world.clock.run(30)
        monkeypatch.setattr(world.poller, "_plan", counting)
        monkeypatch.setattr(world.poller.rounds, "_outage", lambda: pytest.fail("it is read all the time"))
        looks, readings = world.reads("streams") + world.reads("stream S"), world.reads("consumers S")
        await world.clock.run(20)
        looks, readings = world.reads("streams") + world.reads("stream S"), world.reads("consumers S")
        assert looks >= 0.8 * 20 / LEAST and readings >= 3
        assert len(planned) <= 3 * readings + 1, "only with each reading"


async def test_once_looks_prove_nothing_more_the_stream_is_planned_again() -> None:
    world = World()
    world.stream("S", "c")
    async with world.running():
        await world.clock.run(30)
        poll = world.poller.polls["S"]
        assert poll.plan.crossings.idle
        poll.plan.read_at[2] = world.clock.now().mono - 1000  # nothing came of what was planned
        poll.due = before = poll.plan.due(world.poller.load)
        poll.plan.retry = 3600.0
        await world.clock.run(2)
        assert not poll.plan.crossings.idle and poll.due is not before


@pytest.mark.parametrize(
    ("watched", "streams", "list_seconds", "by_list"),
    [
        pytest.param(1, 4, 3e-4, True, id="one in a small account, where a list answers all other questions too"),
        pytest.param(1, 1000, 4e-3, False, id="one in a large account"),
        pytest.param(20, 23, 1e-3, True, id="many, in one page"),
        pytest.param(2, 2000, 1e-2, False, id="few among very many"),
    ],
)
def test_looks_are_taken_the_way_that_costs_the_server_less(
    watched: int, streams: int, list_seconds: float, by_list: bool
) -> None:
    looks = World().poller.looks
    looks._streams, looks._list_seconds, looks._info_seconds = streams, list_seconds, 1.5e-4
    assert looks._by_list(watched, now=1000.0) is by_list
