"""Replicas that share ack metrics and advisories: each counts every one once, whoever reads and whatever fails."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.config.settings import Sharing, WatchSetting
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.model.samples import ConsumerConfig
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.recording.hint_messages import decode_hints, topic_of
from nats_backpressure.runtime.observations import AckSeen, Hint, MaxDeliveries, Nak, Terminated
from tests.simulations.replicas import KEY, SETTINGS, SUBJECT, Replica, Replicas
from tests.simulations.test_replicas import LONGEST, Fault, strike
from tests.simulations.test_shared_reading import BREAKS, INTERVAL, LAST
from tests.support.background import meanwhile
from tests.support.exploring import examples

EVERY = 0.03
"""Seconds between two hints."""
TOPIC = topic_of(KEY.stream)
SUMMED_FOR = 1.0
"""Seconds for which a reader may sum up at most."""
UNREAD = -1.0
"""Not used: the time of a hint is when it comes."""


class Server:
    """Publishes hints, and knows when: each ack metric has a number of its own as its number of deliveries."""

    def __init__(self, replicas: Replicas) -> None:
        self.replicas = replicas
        self.published: list[float] = []

    def ack(self, seconds: float = 0.02) -> None:
        self.published.append(self.replicas.clock.now().mono)
        self.replicas.hint(AckSeen(KEY, seconds, len(self.published), Now(UNREAD, UNREAD)))

    async def run(self, seconds: float, every: float = EVERY) -> None:
        """Publish ack metrics for so long."""
        for _ in range(round(seconds / every)):
            self.ack()
            await self.replicas.clock.run(every)

    def times(self, replica: Replica) -> list[int]:
        """How often each ack metric was counted."""
        counted: Counter[int] = Counter()
        for hint in replica.counted:
            if isinstance(hint, AckSeen):
                counted[hint.deliveries] += hint.times
        return [counted[n] for n in range(1, len(self.published) + 1)]

    def lost(self, replica: Replica, since: float) -> list[float]:
        """When those were published that were not counted."""
        return [at for at, n in zip(self.published, self.times(replica), strict=True) if not n and at >= since]


async def run_with(n: int, scenario: Callable[[Replicas, Server], Coroutine[Any, Any, None]], **more: Any) -> None:
    replicas = Replicas(**more)
    async with replicas.running(n):
        if replicas.settings.sharing.enabled:
            await replicas.clock.until(lambda: sum(map(reads_all, replicas.all.values())) == 1, "one reader")
        await replicas.clock.run(1.5)  # each knows the presence of all others
        await scenario(replicas, Server(replicas))


def reads_all(replica: Replica) -> bool:
    return replica.service.poller.shared.reads_all(KEY.stream)


def reader_and_others(replicas: Replicas) -> tuple[Replica, list[Replica]]:
    (reader,) = (replica for replica in replicas.all.values() if replica.alive and reads_all(replica))
    return reader, [replica for replica in replicas.all.values() if replica is not reader]


def reading(replica: Replica) -> Reading:
    shown = replica.service.registry.subjects[SUBJECT].members[KEY].reading
    assert shown is not None
    return shown


@pytest.mark.parametrize("n", [2, 4])
def test_all_show_the_same_of_hints_that_one_received(n: int) -> None:
    async def scenario(replicas: Replicas, server: Server) -> None:
        reader, others = reader_and_others(replicas)
        assert reader.subscribed.streams == {KEY.stream}
        assert [replica.subscribed.streams for replica in others] == [frozenset()] * len(others)
        await replicas.overload()
        for i in range(200):
            replicas.hint(AckSeen(KEY, 0.001 * 1.03**i, 1 + i % 2, Now(UNREAD, UNREAD)))
            if not i % 10:
                hints: list[Hint] = [Nak(KEY), MaxDeliveries(KEY), Terminated(KEY)]
                for hint in hints:
                    replicas.hint(hint)
            await replicas.clock.run(EVERY)
            if i % 50 == 49:
                await replicas.clock.run(0.5)
                assert len({reading(replica).p95 for replica in replicas.all.values()}) == 1
        await replicas.clock.run(1.0)
        shown = [reading(replica) for replica in replicas.all.values()]
        assert shown[0].latency_source == "sampled"
        assert shown[0].p95 is not None
        for what in ("p50", "p95", "p99", "latency_source", "redelivery_ratio", "diagnosis", "handed_back", "ack_rate"):
            assert len({getattr(each, what) for each in shown}) == 1, what
        kinds = [
            Counter(type(hint) for hint in replica.counted for _ in range(hint.times))
            for replica in replicas.all.values()
        ]
        assert kinds == [{AckSeen: 200, Nak: 20, MaxDeliveries: 20, Terminated: 20}] * n

    asyncio.run(run_with(n, scenario))


def test_nothing_is_published_while_nothing_comes() -> None:
    async def scenario(replicas: Replicas, server: Server) -> None:
        replicas.bus.record = True
        await replicas.clock.run(5.0)
        assert not [topic for _, topic, _ in replicas.bus.sent if topic.startswith("hints.")]
        await server.run(3.0)
        sent = [topic for _, topic, _ in replicas.bus.sent if topic.startswith("hints.")]
        readings = [topic for _, topic, _ in replicas.bus.sent if topic == f"reading.{KEY.stream}"]
        assert 0 < len(sent) <= len(readings) + 3.0 / SUMMED_FOR

    asyncio.run(run_with(3, scenario))


def test_what_came_before_a_reading_is_counted_before_it() -> None:
    async def scenario(replicas: Replicas, server: Server) -> None:
        await replicas.overload()
        await replicas.clock.run(1.0)
        for _ in range(5):
            server.ack()
            await replicas.clock.run(INTERVAL + 0.02)
            assert {server.times(replica)[-1] for replica in replicas.all.values()} == {1}

    asyncio.run(run_with(3, scenario))


def test_what_waited_for_a_suspended_reader_is_shared_with_nobody() -> None:
    async def scenario(replicas: Replicas, server: Server) -> None:
        await replicas.overload()
        await server.run(1.0)
        reader, _ = reader_and_others(replicas)
        replicas.bus.record = True
        before = len(server.published)
        reader.clock.suspend()
        await server.run(4.0)
        waited = range(before + 1, len(server.published) + 1)
        reader.clock.resume()
        await server.run(2.0)
        sent = [
            decode_hints(data) for name, topic, data in replicas.bus.sent if name == reader.name and "hints" in topic
        ]
        shared = {deliveries for each in sent if each for line in each.hints for _, deliveries, _ in line.acks}
        assert shared.isdisjoint(waited)
        assert all(set(server.times(replica)) <= {0, 1} for replica in replicas.all.values())

    asyncio.run(run_with(3, scenario))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_change_of_reader_loses_little_and_doubles_nothing(how: str, seed: int) -> None:
    async def scenario(replicas: Replicas, server: Server) -> None:
        await replicas.overload()  # it is read every 0.1 s
        await server.run(2.0)
        reader, others = reader_and_others(replicas)
        left_at = replicas.clock.now().mono
        async with meanwhile(getattr(reader, how)()):
            await server.run(8.0)
        await replicas.clock.run(SUMMED_FOR)
        for replica in others:
            assert set(server.times(replica)) <= {0, 1}
            lost = server.lost(replica, 0.0)
            assert len(lost) <= (LAST + 4 * INTERVAL) / EVERY, "a silence, and what waits where one takes over"
            assert not lost or lost[0] >= left_at - 2 * INTERVAL

    asyncio.run(run_with(3, scenario, seed=seed))


@pytest.mark.slow
def test_what_a_new_replica_receives_doubles_nothing() -> None:
    async def scenario(replicas: Replicas, server: Server) -> None:
        await replicas.overload()
        first, _ = reader_and_others(replicas)
        await server.run(2.0)
        replicas.add("new").start()
        since = replicas.clock.now().mono
        await server.run(70.0, every=0.1)  # it is settled then, and may read
        for replica in replicas.all.values():
            assert set(server.times(replica)) <= {0, 1}
        settled = since + 5.0
        assert len(server.lost(replicas.all["new"], settled)) <= 8, "what waits where one takes over"
        assert len(server.lost(first, since - 1.0)) <= 8

    asyncio.run(run_with(2, scenario))


def test_one_without_the_right_gets_them_from_the_reader() -> None:
    async def scenario(replicas: Replicas, server: Server) -> None:
        _, (other, *_) = reader_and_others(replicas)
        other.subscribed.denied = True
        await server.run(3.0)
        await replicas.clock.run(SUMMED_FOR)
        assert server.times(other) == [1] * len(server.published)

    asyncio.run(run_with(2, scenario))


def test_one_that_watches_other_consumers_gets_theirs_from_the_reader() -> None:
    async def scenario() -> None:
        replicas = Replicas()
        audit = ConsumerKey(KEY.stream, "audit")
        replicas.js.add_consumer(audit, ConsumerConfig())
        async with replicas.running(0):
            for name in (KEY.consumer, audit.consumer):
                replicas.add(name, replace(SETTINGS, watch=(WatchSetting(KEY.stream, (name,)),))).start()
            await replicas.clock.run(5.0)
            _, (other,) = reader_and_others(replicas)
            assert other.subscribed.streams == frozenset()
            acked = ConsumerKey(KEY.stream, other.name)
            for n in range(50):
                replicas.hint(AckSeen(acked, 0.02, 1 + n % 2, Now(UNREAD, UNREAD)))
                await replicas.clock.run(EVERY)
            await replicas.clock.run(SUMMED_FOR)
            assert sum(hint.times for hint in other.counted if isinstance(hint, AckSeen) and hint.key == acked) == 50

    asyncio.run(scenario())


def test_beside_a_reader_without_the_right_each_counts_its_own() -> None:
    async def scenario(replicas: Replicas, server: Server) -> None:
        reader, others = reader_and_others(replicas)
        reader.subscribed.denied = True
        await replicas.clock.run(2.0)  # it reports that within a second
        await server.run(3.0)
        for replica in others:
            assert replica.subscribed.streams == {KEY.stream}
            assert server.times(replica) == [1] * len(server.published)

    asyncio.run(run_with(3, scenario))


def test_beside_a_reader_of_an_older_version_each_counts_its_own() -> None:
    async def scenario(replicas: Replicas, server: Server) -> None:
        reader, others = reader_and_others(replicas)
        reader.others.hints = lambda: False
        await replicas.clock.run(2.0)
        await server.run(3.0)
        await replicas.clock.run(SUMMED_FOR)
        for replica in others:
            assert server.times(replica) == [1] * len(server.published)

    asyncio.run(run_with(3, scenario))


def test_a_stream_that_is_gone_is_subscribed_to_by_nobody() -> None:
    """Each has an end: otherwise temporary streams would use up the number of those that are subscribed to singly."""

    async def scenario(replicas: Replicas, server: Server) -> None:
        def subscribed() -> set[str]:
            return set[str]().union(*(replica.subscribed.streams or () for replica in replicas.all.values()))

        temporary = ConsumerKey("TEMPORARY", "c")
        replicas.js.add_stream(temporary.stream, ("temporary",))
        replicas.js.add_consumer(temporary)
        await replicas.clock.run(5.0)
        assert subscribed() == {KEY.stream, temporary.stream}
        replicas.hint(AckSeen(temporary, 0.02, 1, Now(UNREAD, UNREAD)))
        replicas.js.delete_stream(temporary.stream)
        await replicas.clock.run(30.0)
        assert subscribed() == {KEY.stream}
        assert not any(replica.hints._batches for replica in replicas.all.values())

    asyncio.run(run_with(2, scenario))


@pytest.mark.parametrize(("n", "enabled"), [(1, True), (2, False)])
def test_alone_or_without_sharing_each_hint_counts_at_once(n: int, enabled: bool) -> None:
    async def scenario(replicas: Replicas, server: Server) -> None:
        server.ack(0.0201)
        for replica in replicas.all.values():
            assert replica.subscribed.streams is None
            assert [hint.seconds for hint in replica.counted if isinstance(hint, AckSeen)] == [0.0201]

    asyncio.run(run_with(n, scenario, settings=replace(SETTINGS, sharing=Sharing(enabled=enabled))))


faults = st.lists(
    st.builds(Fault, st.sampled_from(BREAKS), st.integers(0, 2), st.floats(0.0, 15.0), st.floats(0.05, LONGEST)),
    max_size=4,
    unique_by=lambda fault: fault.replica,
)


# The clocks of two replicas are related by messages that took 60 ms at least.
@example(
    broken=[Fault("kill", 0, 0.0, 1.71), Fault("suspend", 2, 2.266, 2.837), Fault("lose_replies", 1, 0.0, 3.796)],
    seed=12817,
    slow=0.1,
    busy=False,
)
@settings(max_examples=examples(2, most=60, why="each simulates a minute of three services"))
@given(broken=faults, seed=st.integers(0, 2**16), slow=st.sampled_from([0.0, 0.1]), busy=st.booleans())
def test_no_hint_is_ever_counted_twice(broken: list[Fault], seed: int, slow: float, busy: bool) -> None:
    async def scenario(replicas: Replicas, server: Server) -> None:
        replicas.bus.delay = (0.0005, 0.0005 + slow)
        if busy:
            await replicas.overload()
        async with meanwhile(*(strike(replicas, fault) for fault in broken)):
            await server.run(15.0 + LONGEST, every=0.1)
        since = replicas.clock.now().mono + 15.0
        await server.run(25.0, every=0.1)
        await replicas.clock.run(SETTINGS.observe.max_interval_ms / 1000 + 1.0)
        for name, replica in replicas.all.items():
            assert max(server.times(replica)) <= 1, name
            assert len(server.lost(replica, since)) <= SUMMED_FOR / 0.1 + 1, "more than what comes until it is summed"

    asyncio.run(run_with(3, scenario, seed=seed))


def test_one_that_missed_what_was_handed_back_learns_it_from_the_record() -> None:
    """It stood still when the advisories came: without that it would see a worker that hangs, and say so once the other
    one is gone."""

    async def scenario(replicas: Replicas, server: Server) -> None:
        reader, (other,) = reader_and_others(replicas)
        other.service.poller._intake.hint = lambda hint, now: None  # type: ignore[method-assign]
        replicas.js.publish(KEY.stream, SUBJECT, 9)
        given = replicas.js.pull(KEY, 9)
        await replicas.clock.run(1.0)
        replicas.js.nak(KEY, *given)
        reader.hints.take(Nak(KEY, len(given)))
        await replicas.clock.run(5.0)
        assert reading(other).handed_back == reading(reader).handed_back == 9
        await reader.kill()
        await replicas.clock.run(20.0)
        assert (reading(other).handed_back, reading(other).stall) == (9, 0.0)

    asyncio.run(run_with(2, scenario))
