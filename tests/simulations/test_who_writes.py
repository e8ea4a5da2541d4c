"""Several replicas that judge the same readings differently: the reader of the stream writes, the others follow it."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.config.settings import Sharing
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.model.samples import ConsumerConfig
from nats_backpressure.core.reading import sharing
from nats_backpressure.core.reading.sharing import share_of
from nats_backpressure.core.subject.left_changes import LEFT_FOR
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.effect_runner import ARRIVES_WITHIN
from nats_backpressure.runtime.ports import Conflict, Unavailable
from tests.simulations.replicas import KEY, MARK, OVERLOAD, SETTINGS, SUBJECT, Replica, Replicas
from tests.simulations.test_replicas import KINDS
from tests.support.background import meanwhile
from tests.support.exploring import examples
from tests.support.policies import entry

WARNS = replace(
    SETTINGS,
    policies=(
        entry(
            ">",
            pending={"warn": 5, "critical": 10, "overload": MARK},
            drain_seconds={"overload": 1_000_000},
            recovery_hold_seconds=0.2,
            stall_seconds=3600,
            alone_factor=1000,
        ),
    ),
)
"""However large the backlog is, it is a warning."""
PUBLISHED_WITHIN = LEFT_FOR + 1.5
"""Seconds after the death of the writer within which a change is published: the silence, LEFT_FOR, a tick, the hold."""


def judges_by(replica: Replica, factor: float) -> None:
    """From now on it takes each backlog for so many times as large: as if it had other ack metrics, or other rules."""
    registry = replica.service.registry
    feed = registry.feed_readings

    def feed_other(subject: str, readings: Sequence[tuple[Reading | None, Reading]]) -> None:
        feed(subject, [(None, replace(one, pending=round(one.pending * factor))) for _, one in readings])

    registry.feed_readings = feed_other  # type: ignore[method-assign]


def deny_writes(replica: Replica, after: float = 0.0) -> None:
    """It may not write any more: an error comes after so many seconds."""
    store = replica.service._effects._attempt._store

    async def denied(*args: Any) -> int:
        await replica.clock.sleep(after)
        raise Unavailable("no rights")

    store.write = denied  # type: ignore[method-assign]


def deny_loads(replica: Replica) -> None:
    """Its next write is in conflict with another one, and it may not load that any more."""
    store = replica.service._effects._attempt._store
    write = store.write

    async def conflicts(*args: Any) -> int:
        store.write = write  # type: ignore[method-assign]
        raise Conflict

    async def denied(*args: Any) -> Any:
        raise Unavailable("no rights")

    store.write, store.load = conflicts, denied  # type: ignore[method-assign]


CANNOT = {"cannot write": deny_writes, "writes hang": partial(deny_writes, after=5.0), "cannot load": deny_loads}
UNABLE_WITHIN = ARRIVES_WITHIN + 2.0
"""Seconds until the others know that: a tick, a report, and who reads may change meanwhile."""


def reader(replicas: Replicas) -> Replica:
    """The one that reads the stream."""
    return next(one for one in replicas.all.values() if one.alive and one.service.poller.shared.reads_all(KEY.stream))


def count_conflicts(replicas: Replicas) -> Counter[str]:
    """Counts the writes that are lost from now on."""
    counts: Counter[str] = Counter()
    write = replicas.store.write

    async def counted(*args: Any) -> int:
        counts["writes"] += 1
        try:
            return await write(*args)
        except Conflict:
            counts["conflicts"] += 1
            raise

    replicas.store.write = counted  # type: ignore[method-assign]
    return counts


def types(replicas: Replicas) -> list[str]:
    return [event["type"] for event in replicas.events()]


@pytest.mark.parametrize("n", [2, 5])
async def test_a_change_is_written_once_whatever_the_number_of_replicas(n: int) -> None:
    async with Replicas().running(n) as replicas:
        await replicas.clock.run(3.0)
        counts = count_conflicts(replicas)
        for _ in range(5):
            await replicas.overload()
            await replicas.clock.run(1.0)
            await replicas.calm()
            await replicas.clock.run(1.0)
        await replicas.agree()
        replicas.check()
        assert counts["conflicts"] <= 2 and counts["writes"] <= 5 * 2 * 3


@pytest.mark.parametrize("pending", [MARK - 5, MARK * 2])
@pytest.mark.parametrize("factors", [(1.0, 0.1, 3.0), (3.0, 1.0, 0.1), (0.1, 3.0, 1.0)])
async def test_what_the_others_judge_otherwise_publishes_nothing(pending: int, factors: tuple[float, ...]) -> None:
    async with Replicas().running(3) as replicas:
        await replicas.clock.run(3.0)
        for replica, factor in zip(replicas.all.values(), factors, strict=True):
            judges_by(replica, factor)
        replicas.js.publish(KEY.stream, SUBJECT, pending)
        first = reader(replicas)
        factor = factors[list(replicas.all.values()).index(first)]
        await replicas.clock.run(8.0)
        expected = ["backpressure_warning"] if pending * factor > MARK else []
        assert reader(replicas) is first and types(replicas) == expected
        assert not replicas.problems() and all(replica.answer() for replica in replicas.all.values())
        replicas.work()
        await replicas.clock.run(3.0)
        assert types(replicas) == [*expected, *("recovery" for _ in expected)]


async def test_one_that_has_just_started_takes_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "SETTLED_AFTER", 4.0)
    for seed in range(6):
        async with Replicas(seed).running(2) as replicas:
            await replicas.clock.run(5.0)
            await replicas.overload()
            for name in ("r0", "r1"):
                if replicas.all[name] is reader(replicas):
                    continue
                await replicas.all[name].kill()
                replicas.all[name].start()
                judges_by(replicas.all[name], 0.1)
                await replicas.clock.run(3.0)
                assert types(replicas) == ["backpressure_warning"]


@pytest.mark.parametrize("how", ["suspend", "cut"])
async def test_one_that_was_away_itself_takes_nothing_back(how: str) -> None:
    for seed in range(2):
        async with Replicas(seed).running(2) as replicas:
            await replicas.clock.run(10.0)
            await replicas.overload()
            await replicas.clock.run(1.0)
            other = next(one for one in replicas.all.values() if one is not reader(replicas))
            judges_by(other, 0.1)
            for _ in range(3):
                async with meanwhile(KINDS[how](other, replicas.clock.sleep(2.0))):
                    await replicas.clock.run(2.0)
                await replicas.clock.run(3.0)
                assert types(replicas) == ["backpressure_warning"]


def writers(replicas: Replicas) -> list[str]:
    """The names of those that write the subject, as each of them knows it."""
    registries = {name: one.service.registry for name, one in replicas.all.items() if one.alive}
    return [
        name
        for name, registry in registries.items()
        if (state := registry.subjects.get(SUBJECT))
        and registry._context(state, replicas.clock.now()).writer_seen_at is None
    ]


@pytest.mark.parametrize("alone", ["r0", "r1", "r2"])
async def test_where_only_some_share_what_they_read_one_writes(alone: str) -> None:
    for seed in range(2):
        async with Replicas(seed).running(0) as replicas:
            for name in ("r0", "r1", "r2"):
                file = replace(SETTINGS, sharing=Sharing(enabled=name != alone))
                replicas.add(name, file).start()
            await replicas.clock.run(5.0)
            await replicas.overload()
            for _ in range(50):
                await replicas.clock.run(0.1)
                assert len(writers(replicas)) == 1
            for replica in replicas.all.values():
                if replica.name not in writers(replicas):
                    judges_by(replica, 0.1)
            await replicas.clock.run(5.0)
            assert types(replicas) == ["backpressure_warning"]


HIDDEN = ConsumerKey("FIRST", "hidden")
"""In a stream that comes before the other one by name."""


async def test_those_that_know_different_consumers_of_a_subject_do_not_leave_it_to_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A node is down, and with it a consumer; a replica that started since does not know it. It reads the stream of
    that consumer, and the other one reads the other stream."""
    monkeypatch.setattr(sharing, "SETTLED_AFTER", 4.0)
    replicas = Replicas()
    replicas.js.add_stream(HIDDEN.stream, (SUBJECT, "another"))
    replicas.js.add_consumer(HIDDEN, ConsumerConfig(filters=(SUBJECT,)))
    replicas.js.add_consumer(ConsumerKey(HIDDEN.stream, "seen"), ConsumerConfig(filters=("another",)))
    async with replicas.running(2):
        new, old = replicas.all.values()
        await replicas.clock.run(35.0)  # by then the record names the consumers
        replicas.js.hidden.add(HIDDEN)
        replicas.js.silent.add(HIDDEN)
        await new.kill()
        replicas._lives = next(
            life - 1
            for life in itertools.count(3)
            if [share_of(stream, f"r0.{life}") < share_of(stream, "r1.2") for stream in (HIDDEN.stream, KEY.stream)]
            == [True, False]
        )
        await replicas.clock.run(4.0)
        new.start()
        await replicas.clock.run(6.0)
        async with meanwhile(KINDS["cut"](old, replicas.clock.sleep(8.0))):
            await replicas.clock.run(25.0)
        assert new.service.poller.shared.reads_all(HIDDEN.stream) and old.service.poller.shared.reads_all(KEY.stream)
        assert len(writers(replicas)) == 1
        replicas.js.publish(KEY.stream, SUBJECT, OVERLOAD)
        await replicas.published("warning", LEFT_FOR + 1.0)


@pytest.mark.parametrize("how", CANNOT)
async def test_where_the_writer_cannot_another_one_writes_within_seconds(how: str) -> None:
    async with Replicas(settings=WARNS).running(3) as replicas:
        await replicas.clock.run(3.0)
        CANNOT[how](reader(replicas))
        replicas.js.publish(KEY.stream, SUBJECT, MARK * 11)
        await replicas.published("warning", ARRIVES_WITHIN + 1.5)  # a tick until it is reported, and one there
        await replicas.clock.run(6.0)
        assert types(replicas) == ["backpressure_warning"]


@given(
    seed=st.integers(0, 2**16),
    factors=st.lists(st.sampled_from([0.1, 1.0, 1.0, 3.0]), min_size=3, max_size=3),
    after=st.floats(0.0, 1.0),
    how=st.sampled_from(["kill", "suspend", "cut", "half_open", *CANNOT]),
)
@settings(max_examples=examples(3))
def test_whatever_becomes_of_the_writer_at_any_moment_the_change_is_published(
    seed: int, factors: list[float], after: float, how: str
) -> None:
    async def strike(replicas: Replicas, replica: Replica) -> None:
        await replicas.clock.sleep(after)
        if how == "kill":
            await replica.kill()
        elif how == "suspend":
            replica.clock.suspend()
        elif how in CANNOT:
            CANNOT[how](replica)
        else:
            setattr(replica.link, how, True)

    async def run() -> None:
        async with Replicas(seed, settings=WARNS).running(3) as replicas:
            await replicas.clock.run(3.0)
            for replica, factor in zip(replicas.all.values(), factors, strict=True):
                judges_by(replica, factor)
            async with meanwhile(strike(replicas, reader(replicas))):
                replicas.js.publish(KEY.stream, SUBJECT, MARK * 11)  # an overload to all of them
                replicas.overloads += 1
                bound = PUBLISHED_WITHIN + after + (UNABLE_WITHIN if how in CANNOT else 0.0)
                await replicas.published("warning", bound)
            await replicas.clock.run(10.0)
            assert types(replicas) == ["backpressure_warning"]

    asyncio.run(run())
