"""Replicas that share a stream of which several kinds of readings are due, and that do not all watch the same."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from nats_backpressure.config.settings import Settings
from nats_backpressure.core.model.samples import ConsumerConfig
from nats_backpressure.core.watch_filter import WatchEntry
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.observations import ConsumersReading, Unavailable
from tests.simulations.replicas import KEY, SETTINGS, SUBJECT, Replicas
from tests.simulations.test_shared_reading import INTERVAL, LAST, SLACK, Server, reads, run_with


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


@pytest.mark.parametrize("n", [2, 10])
@pytest.mark.parametrize("hot", [("hot",), ("hot-1", "hot-2")], ids=["one by one", "by list"])
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


@pytest.mark.parametrize(("n", "streams"), [(10, 1), (4, 6)])
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
