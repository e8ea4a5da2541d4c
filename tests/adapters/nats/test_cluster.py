"""A cluster of three whose nodes are killed one after another: what has no leader is not read as empty."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import nats
import pytest
from nats.js.errors import NoStreamResponseError

from nats_backpressure.core.model.samples import Sample
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.observations import Unavailable
from nats_backpressure.runtime.tasks import cancel_and_wait
from tests.simulations.both_servers import RealWorld
from tests.support.cluster import Cluster
from tests.support.sidecar import eventually

pytestmark = [pytest.mark.real_server, pytest.mark.timeout(120)]

COPIES = {"S3": 3, "S1": 1}
"""With one copy a stream is away with its node."""
KEYS = [ConsumerKey(stream, f"c{n}") for stream in COPIES for n in range(3)]
WAITING = 50
DOWN, UP = 0.5, 5.0
"""Seconds: elections go on after a node is back."""


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path) as cluster:
        yield cluster


async def test_without_a_leader_nothing_is_read(cluster: Cluster) -> None:
    client = await nats.connect(
        [node.url for node in cluster.nodes], max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=_ignore
    )
    world, js = RealWorld(client, cluster.nodes[0].version), client.jetstream()

    async def stored(subject: str) -> bool:
        with suppress(NoStreamResponseError):
            return bool(await js.publish(subject, b""))
        return False

    for stream, copies in COPIES.items():
        await js.add_stream(name=stream, subjects=[f"{stream}.>"], num_replicas=copies)
        await eventually(partial(stored, f"{stream}.x"), "a leader")
        await world.publish(stream, f"{stream}.x", WAITING - 1)
    for key in KEYS:
        await world.add_consumer(key)
    read: list[Sample] = []
    messages: list[int] = []

    async def one(key: ConsumerKey) -> None:
        read.append(await world.observer.consumer(key))

    async def listed(stream: str) -> None:
        reading = await world.observer.consumers(stream)
        read.extend(reading.samples)
        messages.append(reading.look.messages)

    async def streams() -> None:
        messages.extend(look.messages for look in (await world.observer.streams()).looks)

    async def stream(name: str) -> None:
        messages.extend(look.messages for look in (await world.observer.stream(name)).looks)

    async def all_is_read() -> bool:
        read.clear()
        with suppress(Unavailable):
            await asyncio.gather(*(one(key) for key in KEYS))
        return [sample.pending for sample in read] == [WAITING] * len(KEYS)

    async def again_and_again(look: Callable[[], Awaitable[None]]) -> None:
        while True:
            with suppress(Unavailable):
                await look()
            await asyncio.sleep(0.02)

    await eventually(all_is_read, "all consumers to be read")
    looks = [streams, *(partial(one, key) for key in KEYS)]
    looks += [partial(of, name) for name in COPIES for of in (listed, stream)]
    polling = [asyncio.create_task(again_and_again(look)) for look in looks]
    for node in cluster.nodes:
        await node.kill()
        await asyncio.sleep(DOWN)
        await node.start()
        await asyncio.sleep(UP)
    await cancel_and_wait(polling)
    assert {sample.pending for sample in read} == {WAITING} and set(messages) == {WAITING}
    await eventually(all_is_read, "all consumers to be read again")
    await client.close()


async def _ignore(error: Exception) -> None:
    """A node is away."""
