"""Several replicas and one record: each takes over what others stored, and what was stored behind them is put right."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from nats_backpressure.runtime.ports import Unavailable
from tests.simulations.replicas import KEY, SUBJECT, Replicas
from tests.support.background import meanwhile
from tests.support.exploring import examples

SEEDS = st.integers(0, 2**16)


async def test_an_incident_that_nobody_else_saw_begin_is_ended_by_another_replica() -> None:
    async with Replicas().running(2) as replicas:
        r0, r1 = replicas.all.values()
        r1.clock.suspend()
        await replicas.overload()
        replicas.work()
        await r0.kill()
        await replicas.clock.run(3.0)
        r1.clock.resume()
        await replicas.published("inactive", 5.0)
        await replicas.agree()
        replicas.check()


@pytest.mark.parametrize("seconds", [0.25, 1.0, 3.0, 20.0])
async def test_a_replica_that_was_suspended_over_the_end_begins_no_second_incident(seconds: float) -> None:
    for seed in range(5):
        async with Replicas(seed).running(2) as replicas:
            for _ in range(3):
                await replicas.overload()
                await replicas.clock.run(1.0)
                replicas.all["r1"].clock.suspend()
                await replicas.calm()
                await replicas.clock.run(seconds)
                replicas.all["r1"].clock.resume()
                await replicas.agree(2.0)
            replicas.check()


def delete(replicas: Replicas) -> None:
    replicas.store.put(SUBJECT, b"")


def garbage(replicas: Replicas) -> None:
    replicas.store.put(SUBJECT, b"garbage")


def purge(replicas: Replicas) -> None:
    replicas.store.remove_unseen(SUBJECT)


def foreign(replicas: Replicas) -> None:
    """A record that could be ours says that all is well."""
    state = replicas.state()
    assert state is not None
    calm: dict[str, Any] = {"status": "inactive", "action": "continue", "incident": None, "reasons": []}
    record = {"status": 0, "announced": 0, "incident": None, "reasons": [], "latched": []}
    replicas.store.put(SUBJECT, json.dumps(state | calm | {"record": state["record"] | record}).encode())


def of_another_epoch(replicas: Replicas) -> None:
    state = replicas.state()
    assert state is not None
    other = {"epoch": "other", "seq": 40}
    record = state["record"] | other | {"unsent": []}
    replicas.store.put(SUBJECT, json.dumps(state | other | {"record": record | {"announced": 0}}).encode())


BEHIND_US = [delete, garbage, purge, foreign, of_another_epoch]


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("change", BEHIND_US, ids=lambda change: change.__name__)
async def test_what_is_stored_behind_us_is_put_right_within_a_second_and_without_an_event(
    n: int, change: Callable[[Replicas], None]
) -> None:
    async with Replicas().running(n) as replicas:
        for _ in range(2):
            await replicas.overload()
            await replicas.clock.run(2.0)
            before = replicas.events()
            change(replicas)
            await replicas.agree(2.0 if change is purge else 1.0)  # only the next list of streams shows a purge
            assert replicas.events() == before
            await replicas.calm()
        await replicas.agree()
        replicas.check()


@pytest.mark.parametrize("n", [1, 3])
async def test_an_older_bucket_is_put_right_in_a_new_epoch(n: int) -> None:
    async with Replicas().running(n) as replicas:
        await replicas.overload()
        await replicas.calm()
        await replicas.clock.run(1.0)
        older = dict(replicas.store.values), replicas.store._revision
        await replicas.overload()
        await replicas.clock.run(1.0)
        epoch, before = replicas.events()[-1]["epoch"], replicas.events()
        replicas.store.values, replicas.store._revision = older
        await replicas.agree(2.0)
        assert replicas.events() == before
        await replicas.calm()
        await replicas.agree()
        replicas.check()
        assert replicas.events()[-1]["epoch"] != epoch


@pytest.mark.parametrize("n", [1, 3])
async def test_where_all_stores_went_back_the_present_is_published_under_ids_that_nobody_has_seen(n: int) -> None:
    async with Replicas().running(n) as replicas:
        await replicas.clock.run(1.0)
        older = replicas.backup()
        await replicas.overload()
        await replicas.clock.run(1.0)
        seen = {event["id"] for event in replicas.events()}
        replicas.restore(older)
        await replicas.clock.run(3.0)
        await replicas.agree()
        assert [event["type"] for event in replicas.events()] == ["backpressure_warning"]
        await replicas.calm()
        await replicas.agree()
        replicas.check()
        assert not seen & {event["id"] for event in replicas.events()}


@pytest.mark.parametrize("gone", [False, True], ids=["with members", "without members"])
async def test_what_a_dead_replica_left_unpublished_is_published_by_another(gone: bool) -> None:
    async with Replicas().running(2) as replicas:
        r0, r1 = replicas.all.values()
        publish = replicas.publisher.publish

        async def refuse(event: Any) -> bytes:
            raise Unavailable("it may not publish")

        r0.service._effects._publisher.publish = refuse  # type: ignore[attr-defined]
        r1.link.half_open = not gone
        if gone:
            replicas.js.delete_consumer(KEY)
            r1.service._effects._publisher.publish = refuse  # type: ignore[attr-defined]
        else:
            replicas.js.publish(KEY.stream, SUBJECT, 60)
            replicas.overloads += 1

        def unsent() -> bool:
            state = replicas.state()
            return bool(state and state["record"].get("unsent"))

        await replicas.clock.until(unsent, "an event that is stored")
        await r0.kill()
        assert replicas.events() == []
        r1.link.heal()
        r1.service._effects._publisher.publish = publish  # type: ignore[attr-defined]
        await replicas.clock.run(15.0)
        await replicas.agree()
        assert [event["type"] for event in replicas.events()] == ["monitoring_lost" if gone else "backpressure_warning"]


class Fault(Struct, frozen=True):
    """What happens to a replica, or to the store, so many seconds after an overload begins or ends."""

    what: str
    replica: int
    after: float
    lasts: float


FAULTS = st.lists(
    st.builds(
        Fault,
        st.sampled_from(["kill", "suspend", "cut", "half_open", "delete", "garbage", "purge"]),
        st.integers(0, 2),
        st.floats(0.0, 0.5),
        st.floats(0.05, 3.0),
    ),
    max_size=3,
)


CRASHES = [Fault("kill", 0, after, lasts) for after, lasts in ((0.0, 1.505), (0.2, 0.99), (0.0, 2.906))]


async def strike(replicas: Replicas, fault: Fault) -> None:
    replica = replicas.all[f"r{fault.replica}"]
    await replicas.clock.sleep(fault.after)
    begin: dict[str, Callable[[], Awaitable[Any] | None]] = {
        "kill": replica.kill,
        "suspend": replica.clock.suspend,
        "cut": lambda: setattr(replica.link, "cut", True),
        "half_open": lambda: setattr(replica.link, "half_open", True),
        "delete": lambda: delete(replicas),
        "garbage": lambda: garbage(replicas),
        "purge": lambda: purge(replicas) if SUBJECT in replicas.store.values else None,
    }
    if (done := begin[fault.what]()) is not None:
        await done
    await replicas.clock.sleep(fault.lasts)
    if not replica.alive:
        replica.start()
    replica.clock.resume()
    replica.link.heal()


@given(seed=SEEDS, rounds=st.lists(st.tuples(FAULTS, FAULTS), min_size=1, max_size=2))
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
@settings(max_examples=examples(6))
def test_whatever_strikes_each_overload_is_one_incident_and_all_agree(
    seed: int, rounds: list[tuple[list[Fault], list[Fault]]]
) -> None:
    async def run() -> None:
        async with Replicas(seed).running(3) as replicas:
            for rising, falling in rounds:
                async with meanwhile(*(strike(replicas, fault) for fault in rising)):
                    await replicas.overload()
                    await replicas.clock.run(4.0)
                async with meanwhile(*(strike(replicas, fault) for fault in falling)):
                    await replicas.calm()
                    await replicas.clock.run(4.0)
                await replicas.clock.run(8.0)  # half open links
            await replicas.agree()
            replicas.check()

    asyncio.run(run())
