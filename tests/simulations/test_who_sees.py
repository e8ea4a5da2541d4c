"""Replicas of which some have no readings of a subject: none of them stores as unknown what another one sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from nats_backpressure.config.settings import Observe, Settings, Sharing, WatchSetting
from nats_backpressure.core.model.samples import ConsumerConfig
from nats_backpressure.core.reading.sharing import SETTLED_AFTER
from nats_backpressure.core.reading.stream_plan import MISSED_READINGS
from nats_backpressure.core.subject.left_changes import KEPT_BACK_FOR
from nats_backpressure.core.subject.state import REMOVE_AFTER
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.ports import Unavailable
from tests.simulations import replicas as simulated
from tests.simulations.replicas import KEY, SUBJECT, Replica, Replicas
from tests.simulations.test_replicas import KINDS
from tests.support.background import meanwhile
from tests.support.policies import entry

AUDIT = ConsumerKey(KEY.stream, "audit")
UNKNOWN = 5.0
PROVED_BY_LOOKS = MISSED_READINGS * simulated.SETTINGS.observe.max_interval_ms / 1000
"""Seconds for which an idle consumer is proved while its stream is looked at and not read."""
SETTINGS = replace(
    simulated.SETTINGS, observe=Observe(min_interval_ms=100, stale_after_seconds=2, unknown_after_seconds=UNKNOWN)
)
REFUSING = replace(simulated.SETTINGS, policies=(entry(">", active_signals=1, **simulated.FAST),))
"""One signal refuses."""
ALONE = replace(SETTINGS, sharing=Sharing(enabled=False))
WATCHES = {
    "another stream": (WatchSetting("OTHER"),),
    "other consumers": (WatchSetting(KEY.stream, ("audit-*",)),),
    "one of two consumers": (WatchSetting(KEY.stream, ("router",)),),
}


def types(replicas: Replicas) -> list[str]:
    return [event["type"] for event in replicas.events()]


def deny_reading(replica: Replica) -> None:
    """It may look at streams, and not read their consumers, nor receive them."""
    observer = replica.service.poller.readings._observer

    async def denied(*args: Any) -> Any:
        raise Unavailable("no rights")

    observer.consumers = observer.consumer = denied  # type: ignore[method-assign]


async def started(replicas: Replicas, name: str, settings: Settings) -> Replica:
    replica = replicas.add(name, settings)
    replica.start()
    await replicas.clock.until(lambda: replica.answering, f"{name} to answer")
    return replica


def answers(replicas: Replicas) -> set[tuple[str, str, str]]:
    """Status, action and freshness, as each replica answers them."""
    decisions = [decision for replica in replicas.all.values() if (decision := replica.answer()) is not None]
    return {(decision["status"], decision["action"], decision["freshness"]) for decision in decisions}


@pytest.mark.parametrize("watch", WATCHES, ids=str)
@pytest.mark.parametrize("first", ["r0", "r1"])
async def test_one_that_watches_something_else_changes_nothing(watch: str, first: str) -> None:
    files = {"r0": SETTINGS, "r1": replace(SETTINGS, watch=WATCHES[watch])}
    replicas = Replicas(settings=SETTINGS)
    replicas.js.add_consumer(AUDIT, ConsumerConfig())
    async with replicas.running(0):
        for name in sorted(files, key=lambda name: name != first):
            await started(replicas, name, files[name])
        await replicas.clock.run(3 * UNKNOWN)
        assert types(replicas) == []
        assert answers(replicas) == {("inactive", "continue", "known")}
        await replicas.overload()
        await replicas.clock.run(3.0)
        assert {(status, freshness) for status, _, freshness in answers(replicas)} == {("warning", "known")}
        replicas.work()  # one of the two consumers is done, the other one is not
        await replicas.clock.run(8.0)
        assert types(replicas) == ["backpressure_warning"]


async def test_one_that_watches_all_writes_again_after_each_restart() -> None:
    narrow = replace(SETTINGS, watch=WATCHES["one of two consumers"])
    for seed in range(3):
        replicas = Replicas(seed, settings=SETTINGS)
        replicas.js.add_consumer(AUDIT, ConsumerConfig())
        async with replicas.running(1):
            await started(replicas, "r1", narrow)
            await replicas.clock.run(2.0)
            await replicas.all["r0"].kill()
            await replicas.overload()  # the other one judges now, and the record still names both consumers
            await started(replicas, "r2", SETTINGS)
            await replicas.clock.run(3.0)
            replicas.work()
            await replicas.clock.run(8.0)
            assert types(replicas) == ["backpressure_warning"], seed
            await replicas.agree()


async def test_of_two_that_watch_other_consumers_neither_takes_the_subject_from_the_other() -> None:
    narrow = {name: replace(SETTINGS, watch=(WatchSetting(KEY.stream, (name,)),)) for name in ("router", "audit")}
    replicas = Replicas(settings=SETTINGS)
    replicas.js.add_consumer(AUDIT, ConsumerConfig())
    async with replicas.running(0):
        for name in narrow:
            await started(replicas, name, narrow[name])
        for status in ("inactive", "warning"):
            if status == "warning":
                await replicas.overload()
            await replicas.clock.run(3.0)
            written = replicas.store.values[SUBJECT]
            await replicas.clock.run(10.0)
            assert replicas.store.values[SUBJECT] == written, status
        assert types(replicas) == ["backpressure_warning"]


@pytest.mark.parametrize("watch", ["another stream", "other consumers"])
async def test_what_only_others_watch_is_neither_read_nor_logged_with_each_change(watch: str) -> None:
    narrow = replace(SETTINGS, watch=WATCHES[watch])
    async with Replicas(settings=SETTINGS).running(1) as replicas:
        other = await started(replicas, "r1", narrow)
        with capture_logs() as logged:
            for _ in range(4):
                await replicas.overload()
                await replicas.clock.run(3.0)
                assert answers(replicas) == {("warning", "continue", "known")}
                assert other.service.registry.members.streams() == set()
                await replicas.calm()
                await replicas.clock.run(3.0)
        seen = {line["event"] for line in logged}
        assert not seen & {"consumer.out", "stream.gone", "policies.differ", "replicas.differ"}, seen


async def test_one_that_watches_something_else_beside_a_record_of_a_file_that_is_gone_changes_nothing() -> None:
    older = replace(SETTINGS, policies=(replace(SETTINGS.policies[0]), *SETTINGS.policies))
    for seed in range(3):
        async with Replicas(seed, settings=older).running(1) as replicas:
            await replicas.clock.run(2.0)
            await replicas.all["r0"].kill()
            await started(replicas, "r1", SETTINGS)
            await started(replicas, "r2", replace(SETTINGS, watch=WATCHES["another stream"]))
            await replicas.clock.run(3 * UNKNOWN)
            assert types(replicas) == []


@pytest.mark.parametrize("settings", [SETTINGS, ALONE], ids=["shared", "alone"])
@pytest.mark.parametrize("load", [False, True], ids=["at rest", "overload"])
async def test_one_that_may_not_read_the_stream_any_more_changes_nothing(settings: Settings, load: bool) -> None:
    for seed in range(2):
        async with Replicas(seed, settings=settings).running(2) as replicas:
            await replicas.clock.run(2.0)
            if load:
                await replicas.overload()
            deny_reading(replicas.all[f"r{seed}"])
            await replicas.clock.run(3 * UNKNOWN)
            assert types(replicas) == ["backpressure_warning"] * load
            if load:
                await replicas.calm()
                replicas.check()


@pytest.mark.parametrize("how", ["suspend", "hang", "cut"])
@pytest.mark.parametrize("settings", [SETTINGS, pytest.param(ALONE, marks=pytest.mark.slow)], ids=["shared", "alone"])
@pytest.mark.parametrize("load", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["at rest", "overload"])
async def test_one_that_was_away_for_longer_than_a_status_holds_changes_nothing(
    how: str, settings: Settings, load: bool
) -> None:
    async with Replicas(settings=settings).running(3) as replicas:
        await replicas.clock.run(SETTLED_AFTER + 1.0)
        if load:
            await replicas.overload()
        for replica in replicas.all.values():
            async with meanwhile(KINDS[how](replica, replicas.clock.sleep(3 * UNKNOWN))):
                await replicas.clock.run(3 * UNKNOWN)
            await replicas.clock.run(8.0)
            assert types(replicas) == ["backpressure_warning"] * load
            assert answers(replicas) == {("warning" if load else "inactive", "continue", "known")}


async def test_what_one_concluded_while_it_was_cut_off_is_not_stored_once_it_is_back() -> None:
    async with Replicas(settings=SETTINGS).running(2) as replicas:
        await replicas.clock.run(2.0)
        for replica in replicas.all.values():
            replica.link.cut = True
        await replicas.clock.run(400.0)
        for replica in replicas.all.values():
            replica.link.heal()
            await replicas.clock.run(8.0)
        assert types(replicas) == []
        assert answers(replicas) == {("inactive", "continue", "known")}


async def test_what_nobody_sees_becomes_unknown_though_no_clock_of_any_replica_can_be_relied_on() -> None:
    async with Replicas(settings=SETTINGS).running(2) as replicas:
        await replicas.clock.run(2.0)
        deny_all(replicas)
        for _ in range(round(UNKNOWN + PROVED_BY_LOOKS + KEPT_BACK_FOR + 5.0)):
            for replica in replicas.all.values():
                replica.clock.machine.wall += (
                    10.0  # as if each stood still all the time, and gave its signs all the same
                )
            await replicas.clock.run(1.0)
        assert types(replicas) == ["monitoring_lost"]


async def test_one_that_never_could_read_the_stream_changes_nothing() -> None:
    for seed in range(2):
        async with Replicas(seed, settings=ALONE).running(1) as replicas:
            await replicas.clock.run(2.0)
            blind = replicas.add("r1")
            blind.start()
            deny_reading(blind)
            await replicas.clock.run(3 * UNKNOWN)
            assert types(replicas) == []


def delete(replicas: Replicas) -> None:
    replicas.js.delete_consumer(KEY)


def deny_all(replicas: Replicas) -> None:
    for replica in replicas.all.values():
        deny_reading(replica)


@pytest.mark.parametrize("happens", [delete, deny_all])
@pytest.mark.parametrize("settings", [SETTINGS, ALONE], ids=["shared", "alone"])
async def test_what_nobody_sees_becomes_unknown_once(happens: Callable[[Replicas], None], settings: Settings) -> None:
    async with Replicas(settings=settings).running(3) as replicas:
        await replicas.clock.run(2.0)
        happens(replicas)
        await replicas.clock.run(3 * UNKNOWN + PROVED_BY_LOOKS)
        assert types(replicas) == ["monitoring_lost"]
        state = replicas.state()
        assert state is not None and state["status"] == "unknown"


async def test_what_nobody_sees_becomes_unknown_once_after_each_has_read_for_another() -> None:
    async with Replicas(settings=SETTINGS).running(2) as replicas:
        await replicas.clock.run(2.0)
        for name in ("r0", "r1"):
            await replicas.all[name].kill()
            await replicas.clock.run(2.0)
            await started(replicas, name, SETTINGS)
            await replicas.clock.run(2.0)
        await replicas.overload()
        readers = [one for one in replicas.all.values() if one.service.poller.shared.reads_all(KEY.stream)]
        for replica in (*readers, *replicas.all.values()):
            deny_reading(replica)
            await replicas.clock.run(3.0)
        await replicas.clock.run(3 * UNKNOWN)
        assert types(replicas) == ["backpressure_warning", "monitoring_lost"]


async def test_what_went_while_nobody_ran_becomes_unknown_once_and_is_removed_after_an_hour() -> None:
    async with Replicas(settings=SETTINGS).running(2) as replicas:
        await replicas.clock.run(2.0)
        for replica in replicas.all.values():
            await replica.kill()
        replicas.js.delete_consumer(KEY)
        for replica in replicas.all.values():
            replica.start()
        await replicas.clock.run(2 * UNKNOWN)
        assert types(replicas) == ["monitoring_lost"]
        for replica in replicas.all.values():
            state = replica.service.registry.subjects[SUBJECT]
            assert state.empty_since is not None
            past = state.empty_since - REMOVE_AFTER
            replica.service.registry.subjects[SUBJECT] = replace(state, empty_since=past)
        await replicas.clock.run(5.0)
        assert SUBJECT not in replicas.store.values
        assert all(not replica.service.registry.subjects for replica in replicas.all.values())


@pytest.mark.parametrize(
    "blind",
    [
        pytest.param({"sharing": Sharing(enabled=False)}, id="no right"),
        *(pytest.param({"watch": WATCHES[name]}, id=name) for name in ("another stream", "other consumers")),
    ],
)
async def test_one_that_reads_nothing_counts_the_age_of_a_refusal_from_the_last_report_of_the_reader(
    blind: dict[str, Any],
) -> None:
    async with Replicas(settings=replace(REFUSING, sharing=Sharing(enabled="watch" in blind))).running(1) as replicas:
        await replicas.clock.run(SETTLED_AFTER)
        other = replicas.add("r1", replace(REFUSING, **blind))
        other.start()
        if "watch" not in blind:
            deny_reading(other)
        replicas.js.publish(KEY.stream, SUBJECT, simulated.OVERLOAD)
        await replicas.published("active")
        await replicas.clock.run(35.0)
        began = types(replicas)
        await replicas.all["r0"].kill()
        seen = {}
        for tenth in range(310):
            decision = other.answer()
            assert decision is not None
            seen[tenth / 10] = decision["action"], decision["freshness"]
            if tenth < 290:
                assert types(replicas) == began
            await replicas.clock.run(0.1)
        # A report of presence comes once a second, so the last one may be a second old.
        assert {seen[at] for at in seen if at < 8.9} == {("reject", "known")}
        assert {seen[at] for at in seen if 10.2 <= at < 12.8} == {("throttle", "stale")}
        assert {seen[at] for at in seen if 14.2 <= at < 28.9} == {("continue", "stale")}
        assert types(replicas) == [*began, "monitoring_lost"]
