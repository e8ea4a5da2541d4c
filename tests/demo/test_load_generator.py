"""The load generator offers the planned number of requests and counts their responses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from nats_backpressure.demo.load_generator import HttpConnection, LoadGenerator
from nats_backpressure.demo.scenario import Scenario

Server = tuple[int, list[int]]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A port that responds with each of these statuses once, then with 202."""
    statuses: list[int] = []
    tasks: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.current_task())  # type: ignore[arg-type]
        while await reader.readline():
            while (await reader.readline()).strip():
                pass
            status = statuses.pop(0) if statuses else 202
            writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\nok".encode())
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield int(listener.sockets[0].getsockname()[1]), statuses
    listener.close()
    await asyncio.gather(*tasks)


async def test_a_connection_is_reused_for_the_next_request(server: Server) -> None:
    port, statuses = server
    statuses += [202, 503]
    connection = HttpConnection(port)
    assert [await connection.call() for _ in range(3)] == [202, 503, 202]
    connection.close()


async def test_every_request_is_counted_by_its_response(server: Server) -> None:
    port, statuses = server
    statuses += [503, 429, 500]
    scenario = Scenario(workers=10, seconds_per_message=0.1, overload=2, seconds=0.2, calm=0.1)
    load = LoadGenerator(scenario, port)
    await load.run()
    counts = load.counts
    assert (counts["shed"], counts["failed"]) == (2, 1)
    assert counts["offered"] == sum(counts[kind] for kind in ("admitted", "shed", "failed", "missed"))


async def test_a_gateway_that_is_away_is_a_failed_request() -> None:
    scenario = Scenario(workers=10, seconds_per_message=0.1, overload=2, seconds=0.1, calm=0.0)
    load = LoadGenerator(scenario, 1)
    await load.run()
    assert load.counts["failed"] == load.counts["offered"] - load.counts["missed"] > 0
