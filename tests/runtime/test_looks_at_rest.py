"""What a look at a stream at rest may cost: nothing is planned again, and no outage is looked for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nats_backpressure.core.reading.budget import LOOKS_PER_READING, Budget
from nats_backpressure.core.reading.look_plan import SECOND_LOOK, SECOND_LOOKS_EVERY
from nats_backpressure.runtime.tasks import cancel_and_wait
from tests.runtime.test_poller import LEAST, MOST, World


async def test_a_look_that_shows_nothing_new_plans_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world, planned = World(), list[str]()
    world.stream("S", "c")
    plan = world.poller.schedule.plan

    def counting(poll: Any) -> None:
        planned.append(poll.name)
        plan(poll)

    async with world.running():
        await world.clock.run(30)
        monkeypatch.setattr(world.poller.schedule, "plan", counting)
        monkeypatch.setattr(world.poller.rounds, "_outage", lambda: pytest.fail("it is read all the time"))
        world.reads("streams"), world.reads("stream S"), world.reads("consumers S")  # counted from here on
        await world.clock.run(20)
        looks, readings = world.reads("streams") + world.reads("stream S"), world.reads("consumers S")
        assert looks >= LOOKS_PER_READING * 20 / LEAST - 1 and readings >= 3
        assert len(planned) <= 3 * readings + 1, "only with each reading"


@pytest.mark.parametrize("by_list", [True, False])
async def test_what_long_sleeps_end_in_goes_with_the_request_of_the_look(
    monkeypatch: pytest.MonkeyPatch, by_list: bool
) -> None:
    world, over, sent = World(), asyncio.Event(), list[tuple[str, float]]()
    world.stream("S", "c")
    ask = world.js._ask
    monkeypatch.setattr(world.poller.looks.plan, "_is_list_cheaper", lambda watched, list_hangs: by_list)
    monkeypatch.setattr(world.clock, "end_sleeps", over.set)
    monkeypatch.setattr(world.js, "_ask", lambda what: (sent.append((what, world.clock.mono())), ask(what)))

    async def beat() -> None:
        while True:
            await over.wait()
            over.clear()
            sent.append(("heartbeat", world.clock.mono()))

    async with world.running():
        await world.clock.run(30)
        world.poller.looks.plan.receive_looks(world.clock.mono())  # from now on lists and looks take turns
        sent.clear()
        beating = asyncio.create_task(beat())
        await world.clock.run(20)
        await cancel_and_wait([beating])
    looks = [n for n, (what, _) in enumerate(sent) if what == ("streams" if by_list else "stream S")]
    assert len(looks) > 10
    assert all(sent[n - 1] == ("heartbeat", sent[n][1]) for n in looks)


async def test_once_looks_prove_nothing_more_the_stream_is_planned_again() -> None:
    world = World()
    world.stream("S", "c")
    async with world.running():
        await world.clock.run(30)
        poll = world.poller.polls["S"]
        assert poll.plan.crossings.idle
        poll.plan.read_at[2] = world.clock.now().mono - 1000  # nothing came of what was planned
        poll.due = before = poll.plan.due(world.poller.schedule.load)
        poll.plan.retry = 3600.0
        await world.clock.run(2)
        assert not poll.plan.crossings.idle and poll.due is not before


FAST = Budget(LEAST / 10, MOST, 1000, 1)


async def test_the_first_messages_after_a_rest_bring_a_second_look_at_once() -> None:
    world = World(budget=FAST)
    world.stream("S", "c")
    async with world.running():
        await world.clock.run(30)
        world.js.publish("S", "s", 5)
        while not world.poller.polls["S"].plan.crossings.began:
            await world.clock.run(0.01)
        world.js.publish("S", "s", 5000)  # the other half of the burst
        await world.clock.run(SECOND_LOOK + 0.02)
        (member,) = world.registry.subjects["s"].members.values()
        assert member.reading is not None and member.reading.pending == 5005


async def test_second_looks_are_bounded_however_many_streams_begin_to_move() -> None:
    world = World(budget=FAST)
    for n in range(40):
        world.stream(f"S{n}", "c")
    async with world.running():
        await world.clock.run(30)
        world.js.asked.clear()
        for n in range(400):
            world.js.publish(f"S{n % 40}", f"s{n % 40}", 1)
            await world.clock.run(0.05)
        assert world.reads("streams") <= 20 * (10 + 1 / SECOND_LOOKS_EVERY) + 1
