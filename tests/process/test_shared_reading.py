"""Several sidecars on one server: each stream is read by one of them, all answer the same, and one that dies or stands
still is replaced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
from nats.aio.client import Client
from prometheus_client.parser import text_string_to_metric_families

from tests.support.servers import NatsServer
from tests.support.sidecar import Sidecar, Wire, eventually

STREAMS = ("A", "B")
CONFIG = {
    "observe": {"min_interval_ms": 100},
    # All are hot all the time: the mark is below what waits.
    # That nobody pulls is no signal: with it they would be active some 12 s after the start.
    "policies": [{"subjects": [">"], "pending": {"warn": 1, "critical": 1, "overload": 1}, "stall_seconds": 3600}],
}
COUNTED_FOR = 3.0
"""Seconds over which requests are counted."""


async def metric(sidecar: Sidecar, name: str) -> dict[tuple[str, ...], float]:
    _, page = await sidecar.get("/metrics")
    samples = (s for f in text_string_to_metric_families(page) for s in f.samples if s.name == name)
    return {tuple(sample.labels.values()): sample.value for sample in samples}


async def requests(*sidecars: Sidecar) -> float:
    """JetStream API requests of all of them so far."""
    counted = [await metric(sidecar, "router_backpressure_api_requests_total") for sidecar in sidecars]
    return sum(sum(each.values()) for each in counted)


async def requests_per_second(*sidecars: Sidecar) -> float:
    loop = asyncio.get_running_loop()
    before, since = await requests(*sidecars), loop.time()
    await asyncio.sleep(COUNTED_FOR)
    return (await requests(*sidecars) - before) / (loop.time() - since)


async def readers(*sidecars: Sidecar) -> dict[str, int]:
    """How many of them read each stream."""
    counted = dict.fromkeys(STREAMS, 0)
    for sidecar in sidecars:
        for (stream,), reads in (await metric(sidecar, "router_backpressure_reading")).items():
            counted[stream] += round(reads)
    return counted


async def until_one_reads_each(*sidecars: Sidecar) -> None:
    async def look() -> bool:
        return await readers(*sidecars) == dict.fromkeys(STREAMS, 1)

    await eventually(look, "one reader of each stream")


@pytest.fixture
async def streams(nc: Client) -> None:
    js = nc.jetstream()
    for name in STREAMS:
        await js.add_stream(name=name, subjects=[f"{name.lower()}.>"])
        await js.add_consumer(name, durable_name="worker", filter_subject=f"{name.lower()}.x", ack_policy="explicit")
        for _ in range(5):
            await js.publish(f"{name.lower()}.x", b"")


@pytest.fixture
async def three(tmp_path: Path, server: NatsServer, streams: None) -> AsyncIterator[list[Sidecar]]:
    async with AsyncExitStack() as stack:
        sidecars = [Sidecar(tmp_path, server.url, CONFIG | {"instance": name}) for name in ("a", "b", "c")]
        for sidecar in sidecars:
            await stack.enter_async_context(sidecar)
        for sidecar in sidecars:
            await sidecar.observing()
        yield sidecars


async def test_three_read_what_one_reads(three: list[Sidecar], nc: Client) -> None:
    await until_one_reads_each(*three)
    together = await requests_per_second(*three)
    wire = await Wire(nc).listen()
    for stream in STREAMS:
        await wire.status(f"{stream.lower()}.x", status="warning", freshness="known")

    async def two_are_read() -> bool:
        return sum([(await sidecar.ready(streams=2))["reads"] for sidecar in three]) == 2

    await eventually(two_are_read, "each stream to be read by one")
    for sidecar in three[1:]:
        await sidecar.end()
    await until_one_reads_each(three[0])
    alone = await requests_per_second(three[0])
    assert together < 2 * alone, "three times as many without sharing"


async def test_a_reader_that_is_killed_or_stands_still_is_replaced(three: list[Sidecar], nc: Client) -> None:
    await until_one_reads_each(*three)
    wire = await Wire(nc).listen()
    await three[0].kill()
    await until_one_reads_each(*three[1:])
    await wire.status("a.x", status="warning", freshness="known")
    three[1].pause()
    await until_one_reads_each(three[2])
    three[1].resume()
    await until_one_reads_each(*three[1:])
    await three[0].start()
    await three[0].observing()
    await until_one_reads_each(*three)
    await nc.jetstream().purge_stream("A")
    await wire.status("a.x", status="inactive", freshness="known")
    types: list[str] = []

    async def recovered() -> bool:  # an event is published just after its status is stored
        types[:] = [event["type"] for event in await wire.stored() if event["subject"] == "a.x"]
        return "recovery" in types

    await eventually(recovered, "the recovery")
    assert types == ["backpressure_warning", "recovery"]


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_stream_of_many_consumers_and_subjects_is_read_by_one(
    tmp_path: Path, server: NatsServer, nc: Client
) -> None:
    """3,000 consumers take 1.6 MB in one message, and 2,500 subjects more than one chunk in the list of streams."""
    js, subjects = nc.jetstream(), [f"orders.{n}" for n in range(2500)]
    await js.add_stream(name="BIG", subjects=subjects, max_consumers=3000)
    for start in range(0, 3000, 100):
        made = (
            js.add_consumer("BIG", durable_name=f"w{n}", filter_subject=f"orders.{n % 50}", ack_policy="explicit")
            for n in range(start, start + 100)
        )
        await asyncio.gather(*made)
    async with AsyncExitStack() as stack:
        two = [Sidecar(tmp_path, server.url, {"instance": name}) for name in ("a", "b")]
        for sidecar in two:
            await stack.enter_async_context(sidecar)
            await sidecar.observing()

        async def heard() -> dict[str, float]:
            each = [await metric(sidecar, "router_backpressure_readings_heard_total") for sidecar in two]
            return {name: sum(one.get((name,), 0) for one in each) for name in ("BIG", "=streams")}

        async def shared(since: dict[str, float]) -> bool:
            reads = [(await metric(sidecar, "router_backpressure_reading")).get(("BIG",)) for sidecar in two]
            return sorted(reads, key=str) == [0, 1] and all(n > since[name] for name, n in (await heard()).items())

        # Again for what follows the first message. A slow machine may leave out a reading that a newer one overtook.
        for _ in range(3):
            before = await heard()
            await eventually(partial(shared, before), "one reader of all streams", 60)
