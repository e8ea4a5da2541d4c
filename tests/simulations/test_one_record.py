"""Several replicas and one record: each takes over what others stored, and what was stored behind them is put right."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.simulations.replicas import KEY, SUBJECT, Replicas
from tests.simulations.store_faults import delete, foreign, garbage, muted, of_another_epoch, purge


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
        with ExitStack() as quiet:
            for replica in (r0, r1) if gone else (r0,):
                quiet.enter_context(muted(replica))
            r1.link.half_open = not gone
            if gone:
                replicas.js.delete_consumer(KEY)
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
        await replicas.clock.run(15.0)
        await replicas.agree()
        assert [event["type"] for event in replicas.events()] == ["monitoring_lost" if gone else "backpressure_warning"]
