"""A reading of 10,000 consumers goes over a real connection whole, and what is short passes it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from nats_backpressure.adapters.nats.connection import Connection
from nats_backpressure.adapters.nats.replica_channel import LONGEST, ROOM, NatsReplicaChannel
from nats_backpressure.config.nats import Nats
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.recording.broadcast_numbers import AskedFor
from nats_backpressure.recording.broadcast_receiver import BroadcastReceiver
from nats_backpressure.recording.broadcast_sender import BroadcastSender, Unsent
from nats_backpressure.runtime.clock import SystemClock
from nats_backpressure.runtime.observations import ConsumersReading, Received
from tests.conftest import StartServer
from tests.recording.observations import LOOK, sample
from tests.recording.test_broadcast import HERE
from tests.support.background import meanwhile
from tests.support.connected import up
from tests.support.proxy import Proxy
from tests.support.sidecar import eventually

CONSUMERS = 10_000


class Replica:
    """What one replica has of sharing, on a connection of its own."""

    def __init__(self, url: str, name: str) -> None:
        self.clock, self.counted = SystemClock(), Counter[str]()
        self.connection = Connection(
            name,
            Nats((url,)),
            self.clock,
            set_up=lambda client: self.channel.subscribe(client),
            count=self.count,
            on_rebuild=lambda: None,
            echo=False,
            probe_every=600.0,  # a link that takes nothing is no lost one here
        )
        listening_time = self.connection.listening_time
        self.channel = NatsReplicaChannel(Names(), lambda: self.connection.client, listening_time, self.count)
        self.received: list[Received] = []
        self.short: list[bytes] = []
        self.sender = BroadcastSender(self.clock, name, self.channel, 5.0, self.count)
        receiver = BroadcastReceiver(self.clock, name, self.received.append, self.count)
        self.channel.listen("reading.>", receiver.receive)
        self.channel.listen("grants", lambda topic, payload: self.short.append(payload))
        self.works = (self.connection.run(), self.sender.run(), receiver.run())

    def count(self, what: str) -> None:
        self.counted[what] += 1

    def share(self, consumers: int, pending: int = 0) -> None:
        now = self.clock.now()
        samples = (sample(0.0, f"consumer-{n:05}", pending=pending) for n in range(consumers))
        reading = ConsumersReading(LOOK, tuple(samples), (), True, (), 0.001, 1)
        self.sender.add("S", Unsent(reading, AskedFor(now.mono), HERE, now))

    async def receives(self, n: int) -> Received:
        async def came() -> bool:
            return len(self.received) >= n

        await eventually(came, f"{n} readings", 60)
        return self.received[n - 1]


@pytest.fixture(params=[""])
async def replicas(
    start_server: StartServer, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Replica, Replica, Proxy]]:
    server = await start_server(config=request.param)
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Proxy(server.port))
        reader, follower = Replica(proxy.url, "reader"), Replica(server.url, "follower")
        for replica in (reader, follower):
            await stack.enter_async_context(meanwhile(*replica.works))
            await up(replica.connection)
            await replica.connection.client.flush()
        yield reader, follower, proxy


async def first_message(reader: Replica, follower: Replica) -> None:
    """The first message of a sender only shows its time."""

    async def used() -> bool:
        reader.share(1)
        return bool(follower.received)

    await eventually(used, "a first reading")
    reader.share(0)

    async def last() -> bool:
        return shown(follower.received[-1]) == (set(), 0)

    await eventually(last, "the last of the first readings")
    follower.received.clear()
    reader.counted.clear()


def shown(received: Received) -> Any:
    assert isinstance(received.shown, ConsumersReading)
    return {one.pending for one in received.shown.samples}, len(received.shown.samples)


@pytest.mark.parametrize("replicas", ["", "max_payload: 8192"], indirect=True)
async def test_a_reading_of_any_size_arrives_whole(replicas: tuple[Replica, Replica, Proxy]) -> None:
    reader, follower, _ = replicas
    await first_message(reader, follower)
    for n in (1, 2):
        reader.share(CONSUMERS, n)
        assert shown(await follower.receives(n)) == ({n}, CONSUMERS)
    assert not reader.counted and not follower.counted


async def test_what_is_short_does_not_wait_behind_a_large_reading(replicas: tuple[Replica, Replica, Proxy]) -> None:
    """The link takes nothing: so much waits to be sent that a short message still passes, and no more."""
    reader, follower, proxy = replicas
    await first_message(reader, follower)
    proxy.black_hole()
    n = 0
    while n < 4 or (n < 60 and not reader.connection.client.bytes_waiting):  # more than the sockets on the way hold
        n += 1
        reader.share(CONSUMERS, n)
        for _ in range(2000):
            await asyncio.sleep(0)
            assert reader.connection.client.bytes_waiting <= ROOM + LONGEST + 200
        assert reader.channel.publish("grants", b"%d" % n)
    assert reader.connection.client.bytes_waiting > 0
    proxy.forward()

    async def newest() -> bool:
        return bool(follower.received) and shown(follower.received[-1]) == ({n}, CONSUMERS)

    await eventually(newest, "the newest reading", 60)
    assert follower.short == [b"%d" % sent for sent in range(1, n + 1)]
    assert set(reader.counted) <= {"reading_unsent"}
