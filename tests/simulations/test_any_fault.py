"""Several replicas, and the stores that they share: whatever strikes any of these, each overload is one incident, and
bucket, events, answers and counts agree afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from tests.simulations import store_faults as store
from tests.simulations.remote_events import counted
from tests.simulations.replicas import Replica, Replicas
from tests.support.background import meanwhile
from tests.support.event_checks import shown, state_problems
from tests.support.exploring import examples


class Fault(Struct, frozen=True):
    """What happens to a replica, or to the store, so many seconds after an overload begins or ends."""

    what: str
    replica: int
    after: float
    lasts: float


class Backups:
    """Copies of both stores, one from before each change of the load."""

    def __init__(self, replicas: Replicas) -> None:
        self.replicas, self.all = replicas, [replicas.backup()]

    def of(self, fault: Fault) -> dict[str, Any]:
        """The last one, or an earlier one."""
        return self.all[-1 - min(fault.replica, len(self.all) - 1)]

    def go_back(self, fault: Fault) -> None:
        """What came after this one never was."""
        del self.all[len(self.all) - min(fault.replica, len(self.all) - 1) :]

    def keep(self) -> None:
        self.all.append(self.replicas.backup())


async def mute(replicas: Replicas, replica: Replica, seconds: float) -> None:
    with store.muted(replica):
        await replicas.clock.sleep(seconds)


async def go_back(replicas: Replicas, backups: Backups, fault: Fault) -> None:
    """The server is away, and comes back with older stores. Nothing is under way then: such an event may be published
    after those of the older stream, without the ones between."""
    while (state := replicas.state()) is None or state_problems(replicas.events(), state):
        await replicas.clock.sleep(0.01)
    for replica in replicas.all.values():
        replica.link.cut = True
    store.older_stores(replicas, backups.of(fault))
    backups.go_back(fault)
    await replicas.clock.sleep(fault.lasts)
    for replica in replicas.all.values():
        replica.link.heal()


REPLICA_FAULTS: dict[str, Callable[[Replica], Awaitable[Any] | None]] = {
    "kill": lambda replica: replica.kill(),
    "suspend": lambda replica: replica.clock.suspend(),
    "cut": lambda replica: setattr(replica.link, "cut", True),
    "half_open": lambda replica: setattr(replica.link, "half_open", True),
}
KEY_FAULTS: dict[str, Callable[[Replicas], None]] = {
    "delete": store.delete,
    "garbage": store.garbage,
    "purge": store.purge,
    "foreign": store.foreign,
    "of_another_epoch": store.of_another_epoch,
}
OLDER = {
    "older_value": store.older_value,
    "older_bucket": store.older_bucket,
}
FAULTS = st.lists(
    st.builds(
        Fault,
        st.sampled_from([*REPLICA_FAULTS, "mute", *KEY_FAULTS, *OLDER, "older_stores"]),
        st.integers(0, 2),
        st.floats(0.0, 0.5),
        st.floats(0.05, 3.0),
    ),
    max_size=3,
)
CRASHES = [Fault("kill", 0, after, lasts) for after, lasts in ((0.0, 1.505), (0.2, 0.99), (0.0, 2.906))]


async def strike(replicas: Replicas, backups: Backups, fault: Fault) -> None:
    replica = replicas.all[f"r{fault.replica}"]
    await replicas.clock.sleep(fault.after)
    if fault.what in KEY_FAULTS:
        # A record of another epoch, and no event: then nothing shows that the stream has not lost its events.
        if replicas.state() is not None and (replicas.events() or fault.what != "of_another_epoch"):
            KEY_FAULTS[fault.what](replicas)
    elif fault.what == "older_stores":
        await go_back(replicas, backups, fault)
    elif fault.what in OLDER:
        OLDER[fault.what](replicas, backups.of(fault))
    elif fault.what == "mute":
        await mute(replicas, replica, fault.lasts)
    else:
        if (done := REPLICA_FAULTS[fault.what](replica)) is not None:
            await done
        await replicas.clock.sleep(fault.lasts)
        if not replica.alive:
            replica.start()
        replica.clock.resume()
        replica.link.heal()


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
