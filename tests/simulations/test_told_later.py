"""Replicas of before and after the first restart of a server before 2.12, which then tells another creation time of the
same consumer: they agree on what is stored of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from nats_backpressure.core.model.samples import Retention
from nats_backpressure.core.subject.restart_facts import CARRY_EVERY, carried_write_due
from nats_backpressure.runtime.observations import Nak
from tests.simulations.replicas import KEY, SUBJECT, Replica, Replicas
from tests.simulations.test_shared_hints import reader_and_others, reading

BORN = "2026-11-27T20:26:13.999964145Z"
TOLD_LATER = ["2026-11-27T20:26:14.000073047Z", "2026-11-27T20:26:13.999999Z"]


def run_with_one_started_later(told: str, scenario: Callable[[Replicas, Replica, Replica], Awaitable[None]]) -> None:
    """`scenario` gets a replica that lived through the restart, and the one that starts when it says so."""

    async def run() -> None:
        replicas = Replicas()
        replicas.js.of(KEY).created = BORN
        replicas.js.all[KEY.stream].retention = Retention(max_age=3600.0)
        async with replicas.running(1):
            await replicas.clock.run(5.0)
            replicas.js.of(KEY).created = told
            await replicas.clock.run(5.0)
            await scenario(replicas, replicas.all["r0"], replicas.add("r1"))

    asyncio.run(run())


async def start(replicas: Replicas, later: Replica) -> None:
    later.start()
    await replicas.clock.until(lambda: later.answering, "the later one to answer")
    await replicas.clock.run(2.0)


def is_write_due(replica: Replica) -> bool:
    return carried_write_due(replica.service.registry.subjects[SUBJECT], replica.clock.now())


@pytest.mark.parametrize("told", TOLD_LATER)
def test_a_backlog_is_worth_no_write_once_one_of_them_stored_it(told: str) -> None:
    async def scenario(replicas: Replicas, through: Replica, later: Replica) -> None:
        await start(replicas, later)
        await replicas.overload()
        await replicas.clock.run(5.0)
        due = []
        for _ in range(round(2 * CARRY_EVERY)):
            await replicas.clock.run(1.0)
            due += [replica.name for replica in (through, later) if is_write_due(replica)]
        # What changes with time (a diagnosis) is stored every half minute at most; a tick late here and there.
        assert len(due) <= 4, due

    run_with_one_started_later(told, scenario)


@pytest.mark.parametrize("told", TOLD_LATER)
def test_messages_handed_back_are_known_to_one_that_starts_later_and_to_one_that_missed_them(told: str) -> None:
    async def scenario(replicas: Replicas, through: Replica, later: Replica) -> None:
        async def hand_back(n: int) -> None:
            reader, missed = reader_and_others(replicas)
            for replica in missed:
                if replica.alive:
                    replica.service.poller._intake.hint = lambda hint, now: None  # type: ignore[method-assign]
            replicas.js.publish(KEY.stream, SUBJECT, n)
            given = replicas.js.pull(KEY, 100)
            await replicas.clock.run(1.0)
            replicas.js.nak(KEY, *given)
            reader.hints.take(Nak(KEY, len(given)))
            await replicas.clock.run(5.0)

        await hand_back(4)
        await start(replicas, later)
        assert reading(later).handed_back == reading(through).handed_back == 4
        await hand_back(5)
        assert reading(later).handed_back == reading(through).handed_back == 9
        await replicas.clock.run(3.0)
        assert not is_write_due(through) and not is_write_due(later)

    run_with_one_started_later(told, scenario)
