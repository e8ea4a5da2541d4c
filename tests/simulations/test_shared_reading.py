"""Replicas that share what they read: together they request what one does, and none shows what was not so."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.config.settings import Sharing
from nats_backpressure.core.model.proofs import newest_proof
from nats_backpressure.core.reading.sharing import ALL_STREAMS, APART, SETTLED_AFTER
from nats_backpressure.runtime.replicas import PRESENT_FOR
from tests.simulations.replicas import KEY, SETTINGS, SUBJECT, Replica, Replicas
from tests.simulations.test_replicas import KINDS, LONGEST, Fault, strike
from tests.support.background import meanwhile
from tests.support.exploring import examples

LEAST, LAST, INTERVAL = 0.6, 0.6 + APART, 0.1
"""Seconds: the shortest and the longest silence of a stream that is hot, and its interval."""
LONGEST_INTERVAL = SETTINGS.observe.max_interval_ms / 1000
SLACK = 0.05
"""Seconds for messages, requests and ticks of the simulation."""


class Server:
    """What was requested of the simulated server, and what it held when."""

    def __init__(self, replicas: Replicas) -> None:
        self.replicas, self.js = replicas, replicas.js
        self.requests: list[tuple[float, str]] = []
        self.slack = SLACK
        """Seconds by which a proof may seem newer than it is."""
        ask = self.js._ask

        def noted(what: str) -> None:
            self.requests.append((replicas.clock.now().mono, what.split()[0]))
            ask(what)

        self.js._ask = noted  # type: ignore[method-assign]
        self.held: list[tuple[float, tuple[int, int]]] = []
        self.note()

    def note(self) -> None:
        """What the consumer shows from now on."""
        stream, consumer = self.js.all[KEY.stream], self.js.of(KEY)
        now = self.replicas.clock.now().mono
        self.held.append((now, (len(self.js._pending(stream, consumer)), len(consumer.inflight))))

    def held_between(self, since: float, until: float) -> set[tuple[int, int]]:
        times = [*(at for at, _ in self.held[1:]), float("inf")]
        return {shown for (at, shown), end in zip(self.held, times, strict=True) if at <= until and end >= since}

    def count(self, since: float, *what: str) -> int:
        return sum(at >= since and (not what or name in what) for at, name in self.requests)

    def longest_gap(self, since: float, *what: str) -> float:
        times = [since, *(at for at, name in self.requests if name in what and at >= since)]
        times.append(self.replicas.clock.now().mono)
        return max(b - a for a, b in itertools.pairwise(times))

    def wrong(self) -> list[str]:
        """Replicas that show as known what the consumer did not have when they prove it."""
        wrong = []
        for name, replica in self.replicas.all.items():
            answer = replica.answer()
            state = replica.service.registry.subjects.get(SUBJECT) if replica.answering else None
            member = state.members.get(KEY) if state else None
            if answer is None or member is None or member.reading is None or answer["freshness"] != "known":
                continue
            proof = newest_proof(member, replica.service.registry.proofs(SUBJECT))
            assert proof is not None
            at = proof - replica.clock.now().mono + self.replicas.clock.now().mono
            shown = (member.reading.pending, member.reading.inflight or 0)
            if shown not in self.held_between(at - self.slack, at + SLACK):
                wrong.append(f"{name} shows {shown} at {at:.3f}; {self.held[-4:]}")
        return wrong


def reads(replica: Replica) -> bool:
    return replica.service.poller.shared.reads(KEY.stream)


async def run_with(n: int, scenario: Callable[[Replicas, Server], Coroutine[Any, Any, None]], **more: Any) -> None:
    replicas = Replicas(**more)
    server = Server(replicas)
    async with replicas.running(n):
        await scenario(replicas, server)


async def overloaded(replicas: Replicas, server: Server) -> None:
    await replicas.overload()
    server.note()
    await replicas.clock.run(2.0)


@pytest.mark.parametrize("n", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 6))])
def test_together_they_request_what_one_does(n: int) -> None:
    counted: dict[int, tuple[int, int]] = {}

    async def scenario(replicas: Replicas, server: Server) -> None:
        await overloaded(replicas, server)
        since, heartbeats = replicas.clock.now().mono, len(replicas.store.beats)
        await replicas.clock.run(20.0)
        counted[len(replicas.all)] = server.count(since), len(replicas.store.beats) - heartbeats
        assert sum(map(reads, replicas.all.values())) == 1
        assert not replicas.problems()

    asyncio.run(run_with(1, scenario))
    asyncio.run(run_with(n, scenario))
    (requests, heartbeats), (requests_of_one, heartbeats_of_one) = counted[n], counted[1]
    assert requests <= 1.2 * requests_of_one
    assert heartbeats == heartbeats_of_one == 10


@pytest.mark.parametrize("seed", [1, 2])
def test_a_new_replica_soon_reads_nothing_of_an_idle_stream_that_another_one_reads(seed: int) -> None:
    async def scenario(replicas: Replicas, server: Server) -> None:
        await replicas.clock.run(SETTLED_AFTER)
        reader = next(filter(reads, replicas.all.values()))
        await reader.kill()
        await replicas.clock.run(PRESENT_FOR + 2 * LONGEST_INTERVAL)  # another one reads what it read
        reader.start()
        await replicas.clock.run(LONGEST_INTERVAL + 1.0)
        since = replicas.clock.now().mono
        await replicas.clock.run(LONGEST_INTERVAL + 1.0)
        assert sum(map(reads, replicas.all.values())) == 1
        assert reads(reader) or server.count(since, "consumers", "consumer") <= 2

    asyncio.run(run_with(3, scenario, seed=seed))


def test_alone_a_replica_reads_as_without_sharing() -> None:
    counted = {}

    async def scenario(replicas: Replicas, server: Server) -> None:
        await overloaded(replicas, server)
        await replicas.calm()
        server.note()
        await replicas.clock.run(20.0)
        counted[replicas.settings.sharing.enabled] = [(round(at, 1), what) for at, what in server.requests]

    for enabled in (True, False):
        asyncio.run(run_with(1, scenario, settings=replace(SETTINGS, sharing=Sharing(enabled=enabled))))
    assert counted[True] == counted[False]


def test_without_sharing_each_reads_for_itself() -> None:
    async def scenario(replicas: Replicas, server: Server) -> None:
        await replicas.clock.run(2.0)
        assert all(map(reads, replicas.all.values()))

    asyncio.run(run_with(3, scenario, settings=replace(SETTINGS, sharing=Sharing(enabled=False))))


@pytest.mark.parametrize("how", ["kill", "hang", "stop"])
def test_heartbeats_go_on_without_the_replica_that_writes_them(how: str) -> None:
    async def scenario(replicas: Replicas, server: Server) -> None:
        every = replicas.settings.publish.heartbeat_seconds
        await replicas.clock.run(10.0)
        (writer,) = (r for r in replicas.all.values() if r.service.poller.shared.reads(ALL_STREAMS))
        broken = writer.stop() if how == "stop" else KINDS[how](writer, replicas.clock.sleep(30.0))
        written = [(replicas.clock.now().mono, len(replicas.store.beats))]
        async with meanwhile(broken):
            for _ in range(200):
                await replicas.clock.run(0.1)
                if (count := len(replicas.store.beats)) > written[-1][1]:
                    written.append((replicas.clock.now().mono, count))
        assert max(b[0] - a[0] for a, b in itertools.pairwise(written)) <= 1.5 * every + LAST + SLACK
        assert written[-1][1] - written[0][1] <= 20.0 / every + 3
        assert all(writer.name.encode() not in beat for beat in replicas.store.beats[-5:])

    asyncio.run(run_with(3, scenario))


@pytest.mark.parametrize("other_shares", [True, False])
def test_readings_are_sent_only_where_another_replica_uses_them(other_shares: bool) -> None:
    async def scenario(replicas: Replicas, server: Server) -> None:
        await overloaded(replicas, server)
        other = replace(SETTINGS, sharing=Sharing(enabled=other_shares))
        for n, expected in (("r1", other_shares), ("r2", True)):
            replicas.add(n, other if n == "r1" else None).start()
            await replicas.clock.run(2.0)
            replicas.bus.record, replicas.bus.sent = True, []
            await replicas.clock.run(2.0)
            assert any(topic.startswith("reading") for _, topic, _ in replicas.bus.sent) == expected

    asyncio.run(run_with(1, scenario))


@pytest.mark.parametrize("how", ["kill", "suspend", "hang", "cut"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_reader_that_fails_is_replaced_after_one_silence(how: str, seed: int) -> None:
    async def scenario(replicas: Replicas, server: Server) -> None:
        await overloaded(replicas, server)
        (reader,) = (replica for replica in replicas.all.values() if reads(replica))
        since = replicas.clock.now().mono
        async with meanwhile(KINDS[how](reader, replicas.clock.sleep(4.0))):
            await replicas.clock.run(3.0)
            assert server.longest_gap(since, "consumers", "consumer") <= LAST + INTERVAL + SLACK
            assert server.longest_gap(since, "streams", "stream") <= LAST + INTERVAL + SLACK
            assert sum(reads(each) for each in replicas.all.values() if each is not reader) == 1
            await replicas.clock.run(10.0)
        since = replicas.clock.now().mono
        await replicas.clock.run(2.0)
        assert sum(map(reads, replicas.all.values())) == 1
        assert server.count(since, "consumers", "consumer") <= 2.0 / INTERVAL + 1
        assert not replicas.problems()

    asyncio.run(run_with(3, scenario, seed=seed))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_one_silence_is_enough_for_all_streams_of_a_reader_that_fails(seed: int) -> None:
    """The stream is at rest when the reader of it and of the list of streams is killed, and moves at once."""

    async def scenario(replicas: Replicas, server: Server) -> None:
        await replicas.clock.run(30.0)
        for reader in list(replicas.all.values()):
            if reads(reader) and reader.service.poller.shared.reads(ALL_STREAMS):
                since = replicas.clock.now().mono
                async with meanwhile(KINDS["kill"](reader, replicas.clock.sleep(4.0))):
                    await replicas.overload()
                    await replicas.clock.run(3.0)
                first = min(at for at, what in server.requests if at > since and what in ("consumers", "consumer"))
                assert first - since <= LAST + INTERVAL + APART + SLACK

    asyncio.run(run_with(2, scenario, seed=seed))


def test_a_reader_that_stops_is_replaced_at_once() -> None:
    async def scenario(replicas: Replicas, server: Server) -> None:
        await overloaded(replicas, server)
        (reader,) = (replica for replica in replicas.all.values() if reads(replica))
        since = replicas.clock.now().mono
        stopped = asyncio.create_task(reader.stop())
        await replicas.clock.run(1.0)
        await stopped
        assert server.longest_gap(since, "consumers", "consumer") <= 2 * INTERVAL + APART + SLACK

    asyncio.run(run_with(3, scenario))


def test_a_stream_that_begins_to_move_is_not_read_by_all_at_once() -> None:
    async def scenario(replicas: Replicas, server: Server) -> None:
        await replicas.clock.run(30.0)
        since = replicas.clock.now().mono
        await replicas.overload()
        await replicas.clock.run(1.0)
        assert server.count(since, "consumers", "consumer") <= 13

    asyncio.run(run_with(5, scenario))


Step = tuple[float, str, int]
steps = st.lists(
    st.tuples(
        st.sampled_from([0.05, 0.3, 1.0, 3.0, 12.0]),
        st.sampled_from(["publish", "pull", "ack", "work", "purge"]),
        st.integers(1, 30),
    ),
    min_size=1,
    max_size=10,
)
BREAKS = ["kill", "suspend", "cut", "hang", "lose_replies"]
faults = st.lists(
    st.builds(
        Fault,
        st.sampled_from(BREAKS),
        st.integers(0, 2),
        st.floats(0.0, 20.0),
        st.floats(0.05, LONGEST),
    ),
    max_size=4,
    unique_by=lambda fault: fault.replica,
)


def take(replicas: Replicas, what: str, n: int) -> None:
    js = replicas.js
    match what:
        case "publish":
            js.publish(KEY.stream, SUBJECT, n)
        case "pull":
            js.pull(KEY, n)
        case "ack":
            js.ack(KEY, *list(js.of(KEY).inflight)[:n])
        case "work":
            replicas.work()
        case "purge":
            js.purge(KEY.stream)


@settings(max_examples=examples(10, most=60, why="each simulates a minute of three services"))
@given(script=steps, broken=faults, seed=st.integers(0, 2**16), slow=st.sampled_from([0.0, 0.1]))
def test_no_replica_ever_shows_as_known_what_was_not_so(
    script: list[Step], broken: list[Fault], seed: int, slow: float
) -> None:
    """Whatever is received late, twice or not at all, and whichever replica reads."""

    async def scenario(replicas: Replicas, server: Server) -> None:
        replicas.bus.delay = (0.0005, 0.0005 + slow)
        server.slack = SLACK + slow  # the first messages that a new replica hears may all have been late
        async with meanwhile(*(strike(replicas, fault) for fault in broken)):
            for seconds, what, n in script:
                for _ in range(round(seconds / 0.05)):
                    await replicas.clock.run(0.05)
                    assert server.wrong() == []
                take(replicas, what, n)
                server.note()
            await replicas.clock.run(LONGEST + 25.0)
        assert server.wrong() == []
        assert sum(map(reads, replicas.all.values())) == 1
        assert not replicas.problems()

    asyncio.run(run_with(3, scenario, seed=seed))
