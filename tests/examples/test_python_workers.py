"""docs/examples/python: what the workers have in flight, and that they handle each message once."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.examples.conftest import EXAMPLES, MARK
from tests.examples.program import Program
from tests.support.background import meanwhile
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, Sidecar, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(170)]


@asynccontextmanager
async def workers(example: str, n: int, server: NatsServer, where: Path) -> AsyncIterator[list[Program]]:
    environment = {**os.environ, "NATS_URL": server.url}
    async with AsyncExitStack() as stack:
        programs = []
        for worker in range(n):
            (place := where / f"worker-{worker}").mkdir()
            command = [sys.executable, EXAMPLES / "python" / example]
            programs.append(await stack.enter_async_context(Program(place, command, environment)))
        yield programs


async def most_in_flight(nc: Client, programs: list[Program], total: int) -> int:
    """Publish as many messages and wait until they are handled, each once. Returns the most that were in flight."""
    most = 0

    async def observe() -> None:
        nonlocal most
        while True:
            most = max(most, (await nc.jetstream().consumer_info("ROUTER", "router")).num_ack_pending)
            await asyncio.sleep(0.01)

    def handled() -> list[str]:
        return re.findall(r"handled (\d+)\n", "".join(program.output for program in programs))

    async def look() -> bool:
        return len(handled()) >= total

    async with meanwhile(observe()):
        for n in range(total):
            await nc.jetstream().publish(SUBJECT, b"%d" % n)  # JSON, too
        await eventually(look, f"{total} messages handled", 60)
    assert sorted(map(int, handled())) == list(range(total))
    assert all(program.count("handled") for program in programs), "all work"
    return most


@pytest.fixture
async def askers(nc: Client) -> set[str]:
    """Who asked before a pull so far."""
    seen = set()

    async def receive(message: Msg) -> None:
        seen.add(message.reply.rpartition(".")[0])

    await nc.subscribe("backpressure.v1.decide.consumer.>", cb=receive)
    return seen


async def test_faststream_workers_pull_no_more_than_they_are_granted(
    nc: Client, server: NatsServer, sidecar: Sidecar, tmp_path: Path, askers: set[str]
) -> None:
    n = MARK // 10 + 1  # with their batches of 10 they would take more than the mark
    async with workers("faststream_worker.py", n, server, tmp_path) as programs:
        await eventually(lambda: _true(lambda: len(askers) >= n), "the first question of each", 60)
        assert 0 < await most_in_flight(nc, programs, 200) <= MARK


async def test_push_workers_are_sent_no_more_than_max_ack_pending(
    nc: Client, server: NatsServer, tmp_path: Path
) -> None:
    js = nc.jetstream()
    await js.add_stream(name="ROUTER", subjects=[SUBJECT])

    async def bound() -> bool:
        return any(consumer.push_bound for consumer in await js.consumers_info("ROUTER"))

    async with workers("push_worker.py", 2, server, tmp_path) as programs:
        await eventually(bound, "the consumer", 60)
        assert await most_in_flight(nc, programs, 200) == 20


def test_the_examples_are_all_run_here() -> None:
    names = {path.name for path in (EXAMPLES / "python").glob("*_worker.py")}
    assert names == {"faststream_worker.py", "push_worker.py"}


async def _true(fact: Callable[[], bool]) -> bool:
    return fact()
