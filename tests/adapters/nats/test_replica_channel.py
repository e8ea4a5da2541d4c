"""Messages between replicas: the same tests on the fake bus and on a real server."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from nats_backpressure.adapters.nats.connection import Connection
from nats_backpressure.adapters.nats.replica_channel import UNSENT, NatsReplicaChannel
from nats_backpressure.config.nats import Nats
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.runtime.clock import SystemClock
from nats_backpressure.runtime.ports import ReplicaChannel, Unavailable
from tests.conftest import StartServer
from tests.fakes.clock import FakeClock
from tests.fakes.replica_channel import FakeBus
from tests.support.background import meanwhile
from tests.support.connected import connected, up
from tests.support.proxy import Proxy
from tests.support.servers import NatsServer
from tests.support.sidecar import eventually


class FakeReplicas:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.bus = FakeBus(self.clock)
        self.counted: Counter[str] = Counter()

    def new(self, name: str) -> ReplicaChannel:
        channel = self.bus.channel(name)
        channel.counted = self.counted
        return channel

    async def start(self) -> None:
        pass

    async def until(self, look: Callable[[], bool]) -> None:
        await self.clock.until(look, "messages to arrive")

    async def disconnect(self) -> None:
        for channel in self.bus.channels.values():
            channel.connected = False


class RealReplicas:
    def __init__(self, server: NatsServer) -> None:
        self._server, self._stack = server, AsyncExitStack()
        self._connections: list[Connection] = []
        self.counted: Counter[str] = Counter()

    def count(self, what: str) -> None:
        self.counted[what] += 1

    def new(self, name: str) -> ReplicaChannel:
        connection = Connection(
            name,
            Nats((self._server.url,)),
            SystemClock(),
            set_up=lambda client: channel.subscribe(client),
            count=self.count,
            on_rebuild=lambda: None,
            echo=False,
        )
        channel = NatsReplicaChannel(Names(), lambda: connection.client, connection.listening_time, self.count)
        self._connections.append(connection)
        return channel

    async def start(self) -> None:
        for connection in self._connections:
            await self._stack.enter_async_context(meanwhile(connection.run()))
            await up(connection)
            await connection.client.flush()

    async def until(self, look: Callable[[], bool]) -> None:
        async def done() -> bool:
            return look()

        await eventually(done, "messages to arrive")

    async def disconnect(self) -> None:
        await self._server.kill()

        async def lost() -> bool:
            return not any(connection.connected for connection in self._connections)

        await eventually(lost, "the connections to be lost")

    async def stop(self) -> None:
        await self._stack.aclose()


@pytest.fixture(params=["fake", "real"])
async def replicas(request: pytest.FixtureRequest, start_server: StartServer) -> AsyncIterator[Any]:
    if request.param == "fake":
        yield FakeReplicas()
        return
    real = RealReplicas(await start_server())
    yield real
    await real.stop()


async def test_each_message_reaches_those_who_listen_for_its_topic_and_not_its_sender(replicas: Any) -> None:
    received: list[tuple[str, str, bytes]] = []
    a, b, c = (replicas.new(name) for name in "abc")
    for name, channel, topic in (("a", a, "presence"), ("b", b, "presence"), ("b", b, "reading.>"), ("c", c, "grants")):
        channel.listen(topic, lambda topic, payload, name=name: received.append((name, topic, payload)))
    await replicas.start()
    a.publish("presence", b"1")
    a.publish("reading.orders.=2A", b"\x00\r\n\xff")
    a.publish("reading", b"3")
    b.publish("grants", b"4")
    await replicas.until(lambda: len(received) == 3)
    expected = [("b", "presence", b"1"), ("b", "reading.orders.=2A", b"\x00\r\n\xff"), ("c", "grants", b"4")]
    assert sorted(received) == expected
    assert not replicas.counted


async def test_messages_of_one_sender_come_in_order(replicas: Any) -> None:
    received: list[bytes] = []
    a, b = replicas.new("a"), replicas.new("b")
    b.listen("reading.>", lambda topic, payload: received.append(payload))
    await replicas.start()
    sent = [b"%d" % n * (n % 7 * 1000) for n in range(200)]
    for payload in sent:
        a.publish("reading.s", payload)
    await replicas.until(lambda: len(received) == len(sent))
    assert received == sent


async def test_without_a_connection_messages_are_dropped_and_counted(replicas: Any) -> None:
    a = replicas.new("a")
    await replicas.start()
    await replicas.disconnect()
    a.publish("presence", b"x")
    assert replicas.counted[UNSENT] == 1


async def test_on_a_link_that_takes_nothing_messages_are_dropped_and_counted(server: NatsServer) -> None:
    counted: Counter[str] = Counter()
    async with Proxy(server.port) as proxy:
        connection = Connection(
            "a",
            Nats((proxy.url,)),
            SystemClock(),
            set_up=lambda client: channel.subscribe(client),
            count=lambda what: counted.update([what]),
            on_rebuild=lambda: None,
            echo=False,
        )
        count = lambda what: counted.update([what])  # noqa: E731
        channel = NatsReplicaChannel(Names(), lambda: connection.client, connection.listening_time, count)
        async with meanwhile(connection.run()):
            await up(connection)
            proxy.black_hole()
            for _ in range(1000):
                channel.publish("reading.s", bytes(64 * 1024))
                await asyncio.sleep(0)
            assert counted[UNSENT] > 0


@pytest.mark.parametrize("topic", ["", "a b", "a\r\nPUB x 0", "ü"])
async def test_a_topic_that_is_no_subject_is_not_sent(server: NatsServer, topic: str) -> None:
    real = RealReplicas(server)
    channel = real.new("a")
    await real.start()
    channel.publish(f"reading.{topic} ", b"x")
    assert real.counted[UNSENT] == 1
    await real.stop()


async def test_the_bus_loses_delays_cuts_and_holds_messages() -> None:
    clock = FakeClock()
    bus = FakeBus(clock)
    received: list[tuple[float, bytes]] = []
    a, b = bus.channel("a"), bus.channel("b")
    b.listen("x", lambda topic, payload: received.append((clock.now().mono, payload)))
    began = clock.now().mono
    bus.delay = (0.3, 0.3)
    a.publish("x", b"late")
    await clock.run(1)
    assert received == [(began + 0.3, b"late")]
    bus.delay, bus.loss = (0, 0), 1.0
    a.publish("x", b"lost")
    bus.loss = 0.0
    bus.partition("a", "b")
    a.publish("x", b"cut")
    bus.heal()
    b.suspend()
    a.publish("x", b"held")
    await clock.run(1)
    assert len(received) == 1
    b.resume()
    assert received[1:] == [(began + 2, b"held")]
    a.publish("x", b"to a process that ended")
    bus.channel("b").listen("x", lambda topic, payload: received.append((0, b"never sent to it")))
    await clock.run(1)
    assert len(received) == 2


async def test_time_counts_as_listened_up_to_the_start_of_the_newest_round_trip(server: NatsServer) -> None:
    """By requests of our own: while their replies come, no PING is sent."""
    async with Proxy(server.port) as proxy, connected(Nats((proxy.url,)), probe_every=60) as (connection, _):
        began = time.monotonic()
        await up(connection)
        assert connection.listening_time(began) == 0.0
        await connection.request("$JS.API.INFO", b"", 5)
        asked_at = time.monotonic()
        reply = await connection.request("$JS.API.INFO", b"", 5)
        listened = connection.listening_time(began)
        assert reply.data and 0 < listened <= asked_at + 1 - began
        assert connection.listening_time(time.monotonic()) == 0.0
        proxy.black_hole()
        with pytest.raises(Unavailable):
            await connection.request("$JS.API.INFO", b"", 0.2)
        assert connection.listening_time(began) == listened, "a request without a reply proves nothing"


async def test_a_ping_that_is_answered_proves_the_time_before_it(server: NatsServer) -> None:
    async with connected(Nats((server.url,)), probe_every=0.05) as (connection, _):
        began = time.monotonic()

        async def proved() -> bool:
            return connection.listening_time(began) > 0.1

        await eventually(proved, "round trips by PING alone")
        await server.kill()

        async def lost() -> bool:
            return not connection.connected

        await eventually(lost, "the connection to be lost")
        assert connection.listening_time(began) == 0.0
