"""Replicas that share a stream of which several kinds of readings are due, and that do not all watch the same."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.config.settings import Settings
from nats_backpressure.core.model.proofs import newest_proof
from nats_backpressure.core.model.samples import ConsumerConfig
from nats_backpressure.core.watch_filter import WatchEntry
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.observations import ConsumersReading, Unavailable
from tests.simulations.replicas import KEY, SETTINGS, SUBJECT, Replica, Replicas
from tests.simulations.test_replicas import LONGEST, Fault, strike
from tests.simulations.test_shared_reading import INTERVAL, LAST, SLACK, Server, faults, reads, run_with
from tests.support.background import meanwhile
from tests.support.exploring import examples


def add_consumers(replicas: Replicas, hot: Sequence[str], quiet: int) -> None:
    """Some far above their mark, and so many below it."""
    replicas.js.all[KEY.stream].subjects = (SUBJECT, f"{SUBJECT}.>")
    for name in (*hot, *(f"quiet-{n}" for n in range(quiet))):
        replicas.js.add_consumer(ConsumerKey(KEY.stream, name), ConsumerConfig(filters=(f"{SUBJECT}.{name}",)))
        replicas.js.publish(KEY.stream, f"{SUBJECT}.{name}", 60 if name in hot else 2)


def watching(*consumers: str) -> Settings:
    return replace(SETTINGS, watch=(WatchEntry(KEY.stream, consumers),))


class ConsumersRead:
    """When each consumer was read, by name; "" for all of them."""

    def __init__(self, replicas: Replicas) -> None:
        self._clock, self._js, self._read = replicas.clock, replicas.js, replicas.js.consumers
        self.times: dict[str, list[float]] = {}
        self._js.consumers = self._note  # type: ignore[method-assign]

    async def _note(self, stream: str, names: Any = ()) -> ConsumersReading:
        for name in names or ("", *self._js.all[stream].consumers):
            self.times.setdefault(name, []).append(self._clock.now().mono)
        return await self._read(stream, names)

    def longest_gap(self, name: str, since: float) -> float:
        times = [since, *(at for at in self.times.get(name, ()) if at >= since), self._clock.now().mono]
        return max(b - a for a, b in itertools.pairwise(times))


@pytest.mark.parametrize("n", [2, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "hot", [("hot",), pytest.param(("hot-1", "hot-2"), marks=pytest.mark.slow)], ids=["one by one", "by list"]
)
def test_together_they_request_what_one_does(n: int, hot: Sequence[str]) -> None:
    counted: dict[int, int] = {}

    async def scenario(replicas: Replicas, server: Server) -> None:
        add_consumers(replicas, hot, 8 if len(hot) == 1 else 2)
        await replicas.clock.run(6.0)
        since = replicas.clock.now().mono
        await replicas.clock.run(10.0)
        counted[len(replicas.all)] = server.count(since)
        assert sum(map(reads, replicas.all.values())) == 1

    for replicas in (1, n):
        asyncio.run(run_with(replicas, scenario, settings=watching("hot*", "quiet-*")))
    assert counted[n] <= 1.2 * counted[1]


async def test_each_reads_often_what_only_it_watches_and_seldom_what_another_one_reads() -> None:
    async with Replicas(2, settings=watching("a", "quiet-*")).running(1) as replicas:
        server, read = Server(replicas), ConsumersRead(replicas)
        add_consumers(replicas, ["a", "b"], 8)
        for name in ("r1", "r2"):
            replicas.add(name, watching("b", "quiet-*")).start()
        await replicas.clock.run(10.0)
        since = replicas.clock.now().mono
        await replicas.clock.run(10.0)
        assert max(read.longest_gap(name, since) for name in "ab") <= 3 * INTERVAL
        assert len([at for at in read.times[""] if at >= since]) <= 12, "a list each second by one of them"
        assert server.count(since, "consumers") <= 1.2 * (2 * 10.0 / INTERVAL + 10)


async def test_lists_that_fail_at_the_reader_are_read_by_another_one() -> None:
    async with Replicas(1, settings=watching("hot", "quiet-*")).running(3) as replicas:
        read = ConsumersRead(replicas)
        add_consumers(replicas, ["hot"], 8)
        await replicas.clock.run(6.0)
        (reader,) = (each for each in replicas.all.values() if reads(each))
        observer = reader.service.poller.readings._observer
        consumers = observer.consumers

        async def fails(stream: str, names: Any = ()) -> ConsumersReading:
            if not names:
                await replicas.clock.sleep(5.0)
                raise Unavailable("no answer")
            return await consumers(stream, names)

        observer.consumers = fails  # type: ignore[method-assign]
        since = replicas.clock.now().mono
        await replicas.clock.run(30.0)
        quiet = 1.0
        assert read.longest_gap("hot", since) <= LAST + INTERVAL + SLACK
        assert read.longest_gap("quiet-1", since) <= 3 * quiet + quiet + LAST + SLACK


class Truth:
    """What each consumer held when, and which replicas show something else."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas, self._js = replicas, replicas.js
        self._held: dict[str, list[tuple[float, tuple[int, int]]]] = {}

    def note(self) -> None:
        stream, now = self._js.all[KEY.stream], self._replicas.clock.now().mono
        for name, consumer in stream.consumers.items():
            shown = len(self._js._pending(stream, consumer)), len(consumer.inflight)
            self._held.setdefault(name, []).append((now, shown))

    def wrong(self) -> list[str]:
        return [
            problem for replica in self._replicas.all.values() if replica.answering for problem in self._of(replica)
        ]

    def _of(self, replica: Replica) -> list[str]:
        problems, registry = [], replica.service.registry
        for subject, state in registry.subjects.items():
            for key, member in state.members.items():
                proof = newest_proof(member, registry.proofs(subject))
                if member.reading is None or proof is None:
                    continue
                at = proof - replica.clock.now().mono + self._replicas.clock.now().mono
                shown = member.reading.pending, member.reading.inflight or 0
                if shown not in self._held_at(key.consumer, at):
                    problems.append(f"{replica.name} shows {key.consumer} {shown} at {at:.3f}")
        return problems

    def _held_at(self, name: str, at: float) -> set[tuple[int, int]]:
        held = self._held[name]
        ends = [*(moment for moment, _ in held[1:]), math.inf]
        between = zip(held, ends, strict=True)
        return {shown for (moment, shown), end in between if moment <= at + SLACK and end >= at - SLACK}


WATCHED = [("*",), ("a", "quiet-*"), ("b", "quiet-*")]
script = st.lists(
    st.tuples(
        st.sampled_from([0.05, 0.3, 1.0, 3.0, 12.0]),
        st.sampled_from(["publish", "work", "purge"]),
        st.sampled_from(["a", "b", "quiet-0"]),
        st.integers(1, 30),
    ),
    min_size=1,
    max_size=8,
)


def take(replicas: Replicas, what: str, name: str, n: int) -> None:
    key = ConsumerKey(KEY.stream, name)
    match what:
        case "publish":
            replicas.js.publish(KEY.stream, f"{SUBJECT}.{name}", n)
        case "work":
            replicas.js.ack(key, *replicas.js.pull(key, n))
        case "purge":
            replicas.js.purge(KEY.stream)


@pytest.mark.slow
@settings(max_examples=examples(5, most=25, why="each simulates a minute of three services, for some seconds"))
@given(steps=script, watched=st.permutations(WATCHED), broken=faults, seed=st.integers(0, 2**16))
def test_whatever_each_watches_and_reads_none_shows_what_was_not_so(
    steps: list[tuple[float, str, str, int]], watched: list[tuple[str, ...]], broken: list[Fault], seed: int
) -> None:
    async def scenario() -> None:
        async with Replicas(seed, settings=watching(*watched[0])).running(1) as replicas:
            truth = Truth(replicas)
            add_consumers(replicas, ["a", "b"], 2)
            truth.note()
            for n in (1, 2):
                replicas.add(f"r{n}", watching(*watched[n])).start()
            await replicas.clock.run(5.0)
            async with meanwhile(*(strike(replicas, fault) for fault in broken)):
                for seconds, what, name, n in steps:
                    for _ in range(round(seconds / 0.05)):
                        await replicas.clock.run(0.05)
                        assert truth.wrong() == []
                    take(replicas, what, name, n)
                    truth.note()
                await replicas.clock.run(LONGEST + 25.0)
            assert truth.wrong() == []

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("n", "streams"), [(2, 6), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((10, 1), (4, 6)))]
)
def test_with_too_small_a_budget_all_together_request_what_is_allowed(n: int, streams: int) -> None:
    counted: dict[int, int] = {}
    observe = replace(SETTINGS.observe, api_requests_per_second=10)

    async def scenario(replicas: Replicas, server: Server) -> None:
        for i in range(streams):
            key = ConsumerKey(f"S{i}", "worker")
            replicas.js.add_stream(key.stream, (f"s{i}",))
            replicas.js.add_consumer(key, ConsumerConfig())
            replicas.js.publish(key.stream, f"s{i}", 60)
        await replicas.clock.run(20.0)
        since = replicas.clock.now().mono
        await replicas.clock.run(20.0)
        counted[len(replicas.all)] = server.count(since)

    for one in (1, n):
        asyncio.run(run_with(one, scenario, settings=replace(SETTINGS, observe=observe), limited=True))
    assert counted[n] <= 1.2 * counted[1]
