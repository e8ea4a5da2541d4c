"""Measures what the simulation of scale.py needs of a real server, and takes the rest from results.json."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from nats.aio.client import Client

from benchmarks.consumers import create
from benchmarks.figures import Figure, Figures, Size, progress
from benchmarks.judging import WARM_UP, World, spread
from benchmarks.processes import cpu_seconds, memory_mib, nats_server
from benchmarks.results import RESULTS, load
from benchmarks.scale_simulation import Costs
from nats_backpressure.adapters.nats.api_types import ListPage, StreamInfo, StreamInfoConfig
from nats_backpressure.adapters.nats.samples import stream_look
from nats_backpressure.core.reading.stream_plan import PAGE
from nats_backpressure.runtime.subject_registry import TICK

MIB = 2.0**20
FROM_RESULTS = (
    ("client_decode", "decoding a listed consumer", 1e-6),
    ("client_idle", "10,000 idle consumers, in process: judging a sample that says nothing new", 1e-6),
    ("client_moving", "judging a sample of a consumer that moves", 1e-6),
    ("client_consumer_bytes", "10,000 idle consumers, in process: memory per consumer", 1024.0),
    ("client_base_bytes", "3 idle consumers in 1 stream: memory (rss)", MIB),
)
"""Cost -> the figure that it is taken from, and its unit."""


class Scale(Struct, frozen=True):
    streams: int
    each: int
    """Consumers of a stream."""
    large: int
    """Consumers of one large stream."""
    seconds: float
    """CPU time of the server for each figure, at least."""


SCALES: dict[Size, Scale] = {
    "full": Scale(20, 500, 10_000, 0.5),
    "quick": Scale(8, 250, 2000, 0.2),
    "tiny": Scale(2, 5, 20, 0.01),
}


def measured_figures() -> dict[str, Figure]:
    """All figures of results.json."""
    results = load(RESULTS)
    runs = results.runs.values() if results is not None else ()
    return {name: figure for run in runs for name, figure in run.figures.items()}


def with_results(costs: Costs, figures: Mapping[str, Figure]) -> Costs:
    """The costs with what the other benchmarks measured; what they did not measure stays as it is."""
    return replace(costs, **{cost: figures[name].value * unit for cost, name, unit in FROM_RESULTS if name in figures})


class _Cpu(Struct, frozen=True):
    """CPU seconds of one request."""

    server: float
    client: float


async def _time(server: int, seconds: float, ask: Callable[[], Awaitable[object]]) -> _Cpu:
    times, began, started = 0, time.process_time(), cpu_seconds(server)
    while (spent := cpu_seconds(server) - started) < seconds:
        for _ in range(20):
            await ask()
        times += 20
    return _Cpu(spent / times, (time.process_time() - began) / times)


def _asker(client: Client, operation: str, body: bytes = b"") -> Callable[[], Awaitable[object]]:
    return lambda: client.request(f"$JS.API.{operation}", body, timeout=30)


def _stream_seconds(listed: bytes, streams: int) -> float:
    """Client CPU seconds to decode one stream of a list."""
    decoder = msgspec.json.Decoder(ListPage[StreamInfo[StreamInfoConfig]])

    def once() -> float:
        started = time.process_time()
        for info in decoder.decode(listed).streams or ():
            stream_look(info)
        return time.process_time() - started

    return min(once() for _ in range(20)) / streams


def tick_seconds(consumers: int) -> float:
    """CPU seconds of the service for each subject at rest, once a second."""
    world = World(spread(consumers, max(1, consumers // 250)))
    for _ in range(WARM_UP):
        world.read()

    def once() -> float:
        started = time.process_time()
        world.registry.tick()
        return time.process_time() - started

    return min(once() for _ in range(5)) / consumers / TICK


async def measure(size: Size) -> tuple[Costs, Figures]:
    """Costs on a real server, and the figures that show them."""
    scale = SCALES[size]
    consumers = scale.streams * scale.each
    async with nats_server() as (server, client):
        before = memory_mib(server.pid)["rss"]
        progress(f"a real server with {consumers:,} consumers in {scale.streams} streams")
        await create(client, consumers, scale.streams)
        grown = (memory_mib(server.pid)["rss"] - before) * MIB / consumers
        page = await _time(server.pid, scale.seconds, _asker(client, "CONSUMER.LIST.S0"))
        single = await _time(server.pid, scale.seconds, _asker(client, "CONSUMER.INFO.S0.c1"))
        streams = await _time(server.pid, scale.seconds, _asker(client, "STREAM.LIST"))
        listed = (await client.request("$JS.API.STREAM.LIST", b"", timeout=30)).data
    async with nats_server() as (server, client):
        progress(f"a real server with {scale.large:,} consumers in one stream")
        await create(client, scale.large, 1)
        last = b'{"offset":%d}' % max(0, scale.large - PAGE)
        large = await _time(server.pid, scale.seconds, _asker(client, "CONSUMER.LIST.S0", last))
    shown, shown_large = min(PAGE, scale.each), min(PAGE, scale.large)
    costs = Costs(
        server_member=page.server / shown,
        server_single=single.server,
        server_stream=streams.server / scale.streams,
        server_consumer_bytes=grown,
        client_request=single.client,
        client_stream=_stream_seconds(listed, scale.streams),
        client_tick=tick_seconds(min(consumers, 2000)),
    )
    many = f"its place in a list of a stream of {scale.each}"
    return costs, {
        "server: one consumer in a list": Figure(1e6 * costs.server_member, "us of CPU"),
        f"server: one consumer in the last page of a stream of {scale.large:,}": Figure(
            1e6 * large.server / shown_large, "us of CPU", 1e6 * costs.server_member, many
        ),
        "server: one CONSUMER.INFO": Figure(1e6 * costs.server_single, "us of CPU"),
        "server: one stream in STREAM.LIST": Figure(1e6 * costs.server_stream, "us of CPU"),
        "server: memory of an idle consumer": Figure(grown / 1024, "KiB"),
        "client: one request": Figure(1e6 * costs.client_request, "us of CPU"),
        "client: one stream in STREAM.LIST": Figure(1e6 * costs.client_stream, "us of CPU"),
        "client: one subject at rest, each second": Figure(1e6 * costs.client_tick, "us of CPU"),
    }
