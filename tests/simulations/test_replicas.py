"""Several replicas on one simulated server: whatever fails, each overload is one incident, and all answers agree."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from tests.simulations.replicas import Replicas
from tests.support.background import meanwhile
from tests.support.exploring import examples

REPLICAS = 3


class Fault(Struct, frozen=True):
    """One replica is struck so many seconds after an overload begins or ends, and is well again after `lasts`."""

    replica: int
    after: float
    lasts: float


FAULTS = st.lists(st.builds(Fault, st.integers(0, REPLICAS - 1), st.floats(0.0, 0.5), st.floats(0.05, 3.0)), max_size=3)
ROUNDS = st.lists(st.tuples(FAULTS, FAULTS), min_size=1, max_size=3)
SEEDS = st.integers(0, 2**16)


async def kill(replicas: Replicas, fault: Fault) -> None:
    replica = replicas.all[f"r{fault.replica}"]
    await replicas.clock.sleep(fault.after)
    if replica.alive:
        await replica.kill()
        await replicas.clock.sleep(fault.lasts)
        if not replica.alive:  # of two that overlap, the first one that ends
            replica.start()


@given(seed=SEEDS, rounds=ROUNDS)
@settings(max_examples=examples(20))
def test_kills_at_any_moment_add_and_lose_no_event(seed: int, rounds: list[tuple[list[Fault], list[Fault]]]) -> None:
    async def run() -> None:
        async with Replicas(seed).running(REPLICAS) as replicas:
            for rising, falling in rounds:
                async with meanwhile(*(kill(replicas, fault) for fault in rising)):
                    await replicas.overload()
                    await replicas.clock.run(4.0)
                async with meanwhile(*(kill(replicas, fault) for fault in falling)):
                    await replicas.calm()
                    await replicas.clock.run(4.0)
            await replicas.agree()
            replicas.check()

    asyncio.run(run())
