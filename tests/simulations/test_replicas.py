"""Several replicas on one simulated server: whatever fails, each overload is one incident, and all answers agree."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from tests.simulations.replicas import AGREE_WITHIN, NO_ANSWER, Replica, Replicas
from tests.support.background import meanwhile
from tests.support.exploring import examples

REPLICAS = 3
LONGEST = 8.0
"""Seconds that a fault lasts at most."""


class Fault(Struct, frozen=True):
    """One replica is struck so many seconds after an overload begins or ends, and is well again after `lasts`."""

    kind: str
    replica: int
    after: float
    lasts: float


async def kill(replica: Replica, down: Awaitable[None]) -> None:
    await replica.kill()
    await down
    if not replica.alive:  # of two that overlap, the first one that ends
        replica.start()


async def stop(replica: Replica, down: Awaitable[None]) -> None:
    await replica.stop()
    await down
    if not replica.alive:
        replica.start()


async def suspend(replica: Replica, down: Awaitable[None]) -> None:
    replica.clock.suspend()
    await down
    replica.clock.resume()


async def cut(replica: Replica, down: Awaitable[None]) -> None:
    replica.link.cut = True
    await down
    replica.link.heal()


async def hang(replica: Replica, down: Awaitable[None]) -> None:
    replica.link.half_open = True
    await down
    replica.link.heal()


async def lose_replies(replica: Replica, down: Awaitable[None]) -> None:
    replica.link.lost = 0.3
    await down
    replica.link.lost = 0.0


KINDS: dict[str, Callable[[Replica, Awaitable[None]], Awaitable[None]]] = {
    "kill": kill,
    "stop": stop,
    "suspend": suspend,
    "cut": cut,
    "hang": hang,
    "lose_replies": lose_replies,
}
SEEDS = st.integers(0, 2**16)
Rounds = Sequence[tuple[list[Fault], list[Fault]]]


def rounds(*kinds: str) -> st.SearchStrategy[Rounds]:
    """Faults while an overload begins, and while it ends, for some overloads."""
    fault = st.builds(
        Fault,
        st.sampled_from(kinds),
        st.integers(0, REPLICAS - 1),
        st.floats(0.0, 0.5),
        st.floats(0.05, 3.0) | st.floats(3.0, LONGEST),
    )
    faults = st.lists(fault, max_size=3, unique_by=lambda fault: fault.replica)
    return st.lists(st.tuples(faults, faults), min_size=1, max_size=3)


async def strike(replicas: Replicas, fault: Fault) -> None:
    await replicas.clock.sleep(fault.after)
    await KINDS[fault.kind](replicas.all[f"r{fault.replica}"], replicas.clock.sleep(fault.lasts))


def overloads_are_incidents(seed: int, overloads: Rounds) -> None:
    async def run() -> None:
        async with Replicas(seed).running(REPLICAS) as replicas:
            for rising, falling in overloads:
                for change, faults in ((replicas.overload, rising), (replicas.calm, falling)):
                    async with meanwhile(*(strike(replicas, fault) for fault in faults)):
                        await change()
                        await replicas.clock.run(LONGEST + 1.0)
            await replicas.agree(NO_ANSWER + AGREE_WITHIN)  # what was lost last is asked for again
            replicas.check()

    asyncio.run(run())


@given(seed=SEEDS, overloads=rounds("kill"))
@settings(max_examples=examples(6))
def test_kills_at_any_moment_add_and_lose_no_event(seed: int, overloads: Rounds) -> None:
    overloads_are_incidents(seed, overloads)


@given(seed=SEEDS, overloads=rounds(*KINDS))
@settings(max_examples=examples(6))
def test_no_fault_at_any_moment_adds_or_loses_an_event(seed: int, overloads: Rounds) -> None:
    overloads_are_incidents(seed, overloads)
