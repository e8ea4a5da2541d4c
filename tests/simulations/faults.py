"""What may strike several replicas of a simulation, and the stores that they share: drawn at random by properties."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.config.settings import Settings
from tests.simulations import store_faults as store
from tests.simulations.replicas import FAST, SETTINGS, Replica, Replicas
from tests.support.event_checks import state_problems
from tests.support.policies import entry

LATER = {"pending": {"warn": 5, "critical": 10, "overload": 40}}
OTHER_FILE = replace(SETTINGS, policies=(entry(">", **FAST | LATER),))
"""Other marks, by which an overload is one as well."""


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
    try:
        await replicas.clock.sleep(fault.lasts)
    finally:
        for replica in replicas.all.values():
            replica.link.heal()


Files = tuple[Settings, Settings]


def take_other_file(replica: Replica, files: Files) -> None:
    """From its next start on."""
    first, second = (replace(file, instance=replica.name) for file in files)
    replica.settings = second if replica.settings == first else first


REPLICA_FAULTS: dict[str, Callable[[Replica], Awaitable[Any] | None]] = {
    "kill": lambda replica: replica.kill(),
    "other_file": lambda replica: replica.kill(),
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


async def strike(replicas: Replicas, backups: Backups, fault: Fault, files: Files = (SETTINGS, OTHER_FILE)) -> None:
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
        if fault.what == "other_file":
            take_other_file(replica, files)
        await strike_replica(replicas, replica, fault)


async def strike_replica(replicas: Replicas, replica: Replica, fault: Fault) -> None:
    if (done := REPLICA_FAULTS[fault.what](replica)) is not None:
        await done
    await replicas.clock.sleep(fault.lasts)
    if not replica.alive:
        replica.start()
    replica.clock.resume()
    replica.link.heal()
