"""Replicas with two settings files that judge the same load differently: whatever strikes them, they do not take back
what the others write."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.config.settings import Settings
from tests.simulations.faults import FAULTS, Backups, Fault, strike
from tests.simulations.replicas import FAST, KEY, SETTINGS, SUBJECT, Replicas
from tests.support.background import meanwhile
from tests.support.event_checks import STATUS_EVENTS, shown
from tests.support.exploring import examples
from tests.support.policies import entry

BETWEEN, WAVE = 90, 10
"""Messages that wait: above the mark of the one file, and below that of the other."""
HALF_OPEN = 8.0
"""Seconds after which a link that was half open is used again, and who is gone is known."""
QUIET = 20.0
"""Seconds without a fault."""


def file(overload: int) -> Settings:
    marks = {"warn": 5, "critical": 10, "overload": overload}
    return replace(SETTINGS, policies=(entry(">", **FAST | {"pending": marks}),))


FILES = file(20), file(200)


async def wave(replicas: Replicas) -> None:
    """The backlog moves, and stays between the marks."""
    while True:
        replicas.js.publish(KEY.stream, SUBJECT, WAVE)
        await replicas.clock.sleep(0.3)
        replicas.js.ack(KEY, *replicas.js.pull(KEY, WAVE))
        await replicas.clock.sleep(0.3)


def changes(replicas: Replicas) -> int:
    return sum(event["type"] in STATUS_EVENTS for event in replicas.events())


@given(
    seed=st.integers(0, 2**16),
    marks=st.tuples(*3 * [st.sampled_from((20, 200))]),
    faults=st.lists(FAULTS, max_size=3),
)
@settings(max_examples=examples(8))
def test_whatever_strikes_replicas_of_two_files_each_fault_is_two_changes_at_most_and_none_comes_after(
    seed: int, marks: tuple[int, ...], faults: list[list[Fault]]
) -> None:
    """The judgement may go over to those with the other file, and back."""

    async def run() -> None:
        async with Replicas(seed).running(3, *map(file, marks)) as replicas:
            replicas.js.publish(KEY.stream, SUBJECT, BETWEEN)
            backups = Backups(replicas)
            async with meanwhile(wave(replicas)):
                for some in faults:
                    async with meanwhile(*(strike(replicas, backups, fault, FILES) for fault in some)):
                        await replicas.clock.run(4.0)
                    backups.keep()
                await replicas.clock.run(HALF_OPEN)
                before = changes(replicas)
                assert before <= 1 + 2 * sum(map(len, faults)), shown(replicas.events())
                await replicas.clock.run(QUIET)
                assert changes(replicas) == before, shown(replicas.events())
            await replicas.agree()

    asyncio.run(run())
