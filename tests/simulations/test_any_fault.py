"""Several replicas, and the stores that they share: whatever strikes any of these, each overload is one incident, and
bucket, events, answers and counts agree afterwards."""

from __future__ import annotations

import asyncio

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.simulations.faults import FAULTS, Backups, Fault, strike
from tests.simulations.replicas import Replicas
from tests.support.background import meanwhile
from tests.support.event_checks import counted, shown
from tests.support.exploring import examples

CRASHES = [Fault("kill", 0, after, lasts) for after, lasts in ((0.0, 1.505), (0.2, 0.99), (0.0, 2.906))]


def counts_differ(replicas: Replicas) -> list[str]:
    """Where a replica counts others events than the stream has; those that an older stream lacks may count."""
    expected = counted(replicas.events())
    counts = {name: one.event_counts() for name, one in replicas.all.items() if one.answering}
    return [] if replicas.forgotten else [f"{name} counts {n}" for name, n in counts.items() if n != expected]


@given(seed=st.integers(0, 2**16), rounds=st.lists(st.tuples(FAULTS, FAULTS), min_size=1, max_size=2))
# An event is published, and removed from the record, between two readings of a replica that lost the bucket.
@example(seed=374, rounds=[([Fault("kill", 0, 0.0, 0.375)], []), ([Fault("purge", 0, 0.0, 1.0)], [])])
# A replica that was cut off over the rise begins the record again from the events, with readings from before the rise.
@example(
    seed=0,
    rounds=[
        ([Fault("cut", 0, 0.0, 0.3), Fault("kill", 2, 0.2, 0.99), Fault("delete", 0, 0.0, 2.9)], CRASHES),
        ([Fault("cut", 0, 0.0, 0.3), Fault("kill", 2, 0.0, 0.99), Fault("delete", 0, 0.341, 2.9)], []),
    ],
)
# Both stores go back twice to the same moment before the first event; a replica started between.
@example(
    seed=14,
    rounds=[
        ([], [Fault("kill", 0, 0.0, 0.28), Fault("kill", 0, 0.0, 1.22), Fault("older_stores", 2, 0.42, 0.41)]),
        ([Fault("older_stores", 2, 0.0, 0.41)], []),
    ],
)
@settings(max_examples=examples(8))
def test_whatever_strikes_each_overload_is_one_incident_and_all_agree(
    seed: int, rounds: list[tuple[list[Fault], list[Fault]]]
) -> None:
    async def run() -> None:
        async with Replicas(seed).running(3) as replicas:
            backups = Backups(replicas)
            for pair in rounds:
                for faults, change in zip(pair, (replicas.overload, replicas.calm), strict=True):
                    async with meanwhile(*(strike(replicas, backups, fault) for fault in faults)):
                        await change()
                        await replicas.clock.run(4.0)
                    backups.keep()
                await replicas.clock.run(8.0)  # half open links
            await replicas.agree()
            replicas.check()
            assert not (wrong := counts_differ(replicas)), "\n".join([*wrong, shown(replicas.events())])

    asyncio.run(run())
