"""Measures one reading of 10,000 idle consumers in 20 streams, beside one `js.consumer_info` of each.

A reading: every list and what follows from it, judged by the intake of the service. CPU time of this process and of the
server, medians of the rounds. Between two readings the clock of the judging moves on as it would in the service.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace
from nats.aio.client import Client

from benchmarks.consumers import Consumer, create
from benchmarks.figures import Figure, Figures, Size, command, percentile, progress, rounds
from benchmarks.judging import INTERVAL, World
from benchmarks.processes import cpu_seconds, nats_server
from nats_backpressure.adapters.nats.observer import JetStreamObserver
from nats_backpressure.adapters.nats.observer_requests import ObserverRequests, Response
from nats_backpressure.runtime.clock import SystemClock
from nats_backpressure.runtime.followed_streams import FollowedStream
from nats_backpressure.runtime.observations import ConsumersReading

PEER = "one js.consumer_info each"
WARM_UP = 8
"""Readings before the first that is measured: until a consumer is at rest."""


class Scale(Struct, frozen=True):
    consumers: int
    streams: int
    readings: int


SCALES: dict[Size, Scale] = {"full": Scale(10_000, 20, 7), "quick": Scale(2000, 4, 3), "tiny": Scale(20, 2, 1)}


class _Requester:
    """What the observer needs of a connection."""

    epoch, round_trip = 1, 0.0

    def __init__(self, client: Client) -> None:
        self._client = client

    async def request(self, subject: str, payload: bytes, seconds: float) -> Response:
        return await self._client.request(subject, payload, timeout=seconds)


class Cpu(Struct, frozen=True):
    """CPU seconds of one reading of all."""

    client: float
    server: float
    judging: float = 0.0
    """The part of `client` after the replies were decoded."""


class ReadingOfAll:
    """Reads every stream once, and judges what was read."""

    def __init__(self, client: Client, streams: int) -> None:
        self._observer = JetStreamObserver(
            ObserverRequests(
                _Requester(client),
                SystemClock(),
                count=lambda what: None,
                count_request=lambda op, outcome, seconds: None,
            )
        )
        self._names = [f"S{n}" for n in range(streams)]
        self._world = World([])
        self._streams: dict[str, FollowedStream] = {}

    async def once(self, server: int) -> Cpu:
        client, served = time.process_time(), cpu_seconds(server)
        readings = [await self._observer.consumers(stream) for stream in self._names]
        client = time.process_time() - client
        self._world.time.mono += INTERVAL
        judging = sum(self._judge(reading) for reading in readings)
        return Cpu(client + judging, cpu_seconds(server) - served, judging)

    def _judge(self, reading: ConsumersReading) -> float:
        at, name = self._world.time.now(), reading.look.name
        if name not in self._streams:
            self._streams[name] = FollowedStream(reading.look, 0.0, interval=INTERVAL)
            self._world.registry.streams[name] = self._streams[name]
        samples = [replace(sample, at=at) for sample in reading.samples]  # as if read at the time of the judging
        started = time.process_time()
        self._streams[name].look = reading.look
        self._world.take(self._streams[name], samples)
        return time.process_time() - started


async def _each(client: Client, consumers: Sequence[Consumer], server: int) -> Cpu:
    """One `js.consumer_info` of each, one after the other."""
    js = client.jetstream()
    spent, served = time.process_time(), cpu_seconds(server)
    for each in consumers:
        await js.consumer_info(each.stream, each.name)
    return Cpu(time.process_time() - spent, cpu_seconds(server) - served)


async def _measure(scale: Scale) -> Figures:
    async with nats_server() as (server, client):
        consumers = await create(client, scale.consumers, scale.streams)
        progress(f"readings of {scale.consumers:,} consumers in {scale.streams} streams")
        reading = ReadingOfAll(client, scale.streams)
        for _ in range(WARM_UP):
            await reading.once(server.pid)
        gc.collect()
        gc.freeze()  # as in the service, where no collection goes through what is remembered
        ours = [await reading.once(server.pid) for _ in range(scale.readings)]
        progress(PEER)
        theirs = [await _each(client, consumers, server.pid) for _ in range(2)]
    return _figures(f"one reading of {scale.consumers:,}", ours, theirs)


def _figures(name: str, ours: Sequence[Cpu], theirs: Sequence[Cpu]) -> Figures:
    def milliseconds(values: list[float], peers: list[float], aim: float | None = None) -> Figure:
        values, peers = [1000 * value for value in values], [1000 * value for value in peers]
        median = percentile(values, 0.5)
        return Figure(median, "ms of CPU", min(peers), PEER, aim=aim, aim_of_ratio=True, spread=rounds(values))

    judging = [1000 * each.judging for each in ours]
    return {
        f"{name}: client, read and judged": milliseconds([e.client for e in ours], [e.client for e in theirs], 0.1),
        f"{name}: server": milliseconds([e.server for e in ours], [e.server for e in theirs], 0.5),
        f"{name}: judging alone": Figure(percentile(judging, 0.5), "ms of CPU", spread=rounds(judging)),
    }


def main(size: Size = "full") -> Figures:
    return asyncio.run(_measure(SCALES[size]))


if __name__ == "__main__":
    command(main)
