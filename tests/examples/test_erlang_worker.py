"""docs/examples/erlang: the worker pulls what a real sidecar grants, waits where it is asked to, and fails open."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.examples.conftest import MARK
from tests.examples.program import Program
from tests.support.background import meanwhile
from tests.support.router import take
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, Sidecar, Wire, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

BATCH = 100
StartWorker = Callable[..., Program]


@pytest.fixture
def worker(
    erlang: tuple[str, dict[str, str]], compiled_worker: Path, server: NatsServer, tmp_path: Path, stream: None
) -> StartWorker:
    program, environment = erlang

    def start(subject: str = SUBJECT, work_ms: int = 0) -> Program:
        command = [program, "-noshell", "-pa", compiled_worker, "-run", "worker", "main"]
        arguments = ["127.0.0.1", str(server.port), "ROUTER", "router", subject, str(BATCH)]
        return Program(tmp_path, [*command, *arguments], environment | {"WORK_MS": str(work_ms)})

    return start


async def publish(nc: Client, first: int, last: int) -> None:
    for n in range(first, last):
        await nc.jetstream().publish(SUBJECT, b"message-%d." % n)


async def handled(program: Program, total: int) -> None:
    """Wait until it has handled messages 0 to `total`, each once."""
    await program.printed("handled ", total)
    assert sorted(re.findall(r"handled message-(\d+)\.", program.output), key=int) == [str(n) for n in range(total)]


async def test_in_an_overload_it_pulls_what_it_is_granted_until_it_is_over(
    nc: Client, sidecar: Sidecar, worker: StartWorker
) -> None:
    wire, most = await Wire(nc).listen(), 0

    async def observe() -> None:
        nonlocal most
        while True:
            most = max(most, (await nc.jetstream().consumer_info("ROUTER", "router")).num_ack_pending)
            await asyncio.sleep(0.02)

    await publish(nc, 0, 1200)
    await wire.status(status="warning")
    async with worker(work_ms=1) as program, meanwhile(observe()):
        await handled(program, 1200)
    await wire.event("recovery")
    grants = [int(n) for n in re.findall(rf"granted (\d+) of {BATCH}", program.output)]
    assert 0 < max(grants) <= MARK
    late = program.count("no answer (timeout)")  # on a busy machine
    assert 0 < most <= MARK + BATCH * late


async def take_and_acknowledge(nc: Client) -> None:
    """Another worker's acks: while none moves, a worker is granted one message per wait."""
    subscription = await nc.jetstream().pull_subscribe_bind("router", "ROUTER")
    while True:
        await nc.jetstream().publish(SUBJECT, b"theirs.")
        with suppress(TimeoutError):
            for message in await subscription.fetch(1, timeout=0.5):
                await message.ack()
        await asyncio.sleep(0.1)


async def test_while_others_hold_all_that_may_be_in_flight_it_waits(
    nc: Client, sidecar: Sidecar, worker: StartWorker
) -> None:
    await publish(nc, 0, MARK)
    held = await take(nc, MARK)
    wire = Wire(nc)

    async def nothing_granted() -> bool:
        return (await wire.ask(f"decide.consumer.{SUBJECT}"))["pull"]["max_messages"] == 0

    async with meanwhile(take_and_acknowledge(nc)):
        await eventually(nothing_granted, "an answer of 0")
        began = time.monotonic()
        async with worker() as program:
            await program.printed(f"granted 0 of {BATCH}: wait ", 5)
            waits = [int(ms) for ms in re.findall(rf"granted 0 of {BATCH}: wait (\d+) ms", program.output)]
            assert time.monotonic() - began >= sum(waits[:-1]) / 1000 and min(waits) >= 50
            for message in held:
                await message.ack()
            await program.printed("handled theirs.", 5)


async def test_while_no_sidecar_answers_it_pulls_what_it_wants_and_asks_again_later(
    nc: Client, sidecar: Sidecar, worker: StartWorker
) -> None:
    await publish(nc, 0, 50)
    async with worker() as program:
        await handled(program, 50)
        assert "no answer" not in program.output
        await sidecar.kill()
        await program.printed("no answer (503): pull 100")
        await publish(nc, 50, 100)
        await handled(program, 100)
        granted = program.count("granted ")
        await sidecar.start()
        await program.printed("granted ", granted + 1)
        await publish(nc, 100, 150)
        await handled(program, 150)


async def test_a_sidecar_that_hangs_costs_a_quarter_of_a_second_in_a_second(
    nc: Client, sidecar: Sidecar, worker: StartWorker
) -> None:
    async with worker() as program:
        await program.printed("granted ")
        sidecar.pause()
        await program.printed("no answer (timeout): pull 100")
        await publish(nc, 0, 50)
        await handled(program, 50)
        granted = program.count("granted ")
        sidecar.resume()
        await program.printed("granted ", granted + 1)


async def test_it_asks_on_when_the_bucket_of_states_is_deleted(
    nc: Client, sidecar: Sidecar, worker: StartWorker
) -> None:
    async with worker() as program:
        await publish(nc, 0, 50)
        await handled(program, 50)
        await nc.jetstream().delete_stream("KV_backpressure_state")
        granted = program.count("granted ")
        await publish(nc, 50, 100)
        await handled(program, 100)
        await program.printed("granted ", granted + 1)
        assert "no answer" not in program.output


async def test_it_names_its_consumer_and_gives_back_what_it_did_not_pull(
    nc: Client, sidecar: Sidecar, worker: StartWorker
) -> None:
    questions: list[dict[str, object]] = []

    async def receive(message: Msg) -> None:
        questions.append(json.loads(message.data))

    await nc.subscribe("backpressure.v1.decide.consumer.>", cb=receive)
    await publish(nc, 0, 2)
    async with worker() as program:
        await handled(program, 2)
        await program.printed("granted ", 5)
    await nc.flush()
    granted = [(int(part.split()[0]), part.count("handled")) for part in program.output.split("granted ")[1:5]]
    unused = [n - received for n, received in granted]
    assert sum(unused) > 0
    fixed = {"max_messages": BATCH, "stream": "ROUTER", "consumer": "router", "held": 0, "lost": 0}
    assert questions[:5] == [fixed | {"unused": n} for n in (0, *unused)]


async def test_where_nobody_watches_its_subject_it_pulls_without_asking_each_time(
    nc: Client, sidecar: Sidecar, worker: StartWorker
) -> None:
    questions = 0

    async def count(_: object) -> None:
        nonlocal questions
        questions += 1

    await nc.subscribe("backpressure.v1.decide.consumer.>", cb=count)
    async with worker("nobody.at.all") as program:
        for n in range(3):
            await publish(nc, 20 * n, 20 * n + 20)
            await handled(program, 20 * n + 20)
    await nc.flush()
    assert questions == program.count("no answer (404): pull 100, ask again in 30000 ms") == 1


async def test_it_connects_again_when_the_server_has_restarted(
    nc: Client, server: NatsServer, sidecar: Sidecar, worker: StartWorker
) -> None:
    await publish(nc, 0, 20)
    async with worker() as program:
        await handled(program, 20)
        await server.restart()
        await program.printed("again in a second")

        async def back() -> bool:
            return nc.is_connected

        await eventually(back, "the test's own connection")
        granted = program.count("granted ")
        await publish(nc, 20, 40)
        await handled(program, 40)
        await program.printed("granted ", granted + 1)
