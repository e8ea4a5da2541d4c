"""Measures what PullGate costs a consumer: `python -m benchmarks.gate`, or `make bench-gate`.

For each number of workers, size of batch and mark of in flight, the same workers drain a backlog by a plain fetch and
behind gates, side by side in one run. Each worker handles one message after another. A mark below the number of workers
is left out: there it is the mark that limits the rate.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import nats
from msgspec import Struct
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.api import AckPolicy, ConsumerConfig

from benchmarks.figures import Figure, Figures, Size, command, progress
from benchmarks.processes import SidecarProcess, nats_server
from nats_backpressure.client import BackpressureClient, PullGate
from nats_backpressure.runtime.tasks import cancel_and_wait

SERVICE = 0.2
"""Seconds that a worker takes for a message."""
AT_ONCE = 6
"""Cases that run side by side."""
LEAST = 0.98
READ_EVERY = 0.02
"""Seconds between two looks at what is in flight."""

Fetch = Callable[[int], Awaitable[list[Msg]]]


class Case(Struct, frozen=True):
    workers: int
    batch: int
    mark: int

    @property
    def name(self) -> str:
        return f"{self.workers}x{self.batch}m{self.mark}"

    @property
    def text(self) -> str:
        return f"{self.workers} workers, fetch({self.batch}), mark {self.mark}"


class Scale(Struct, frozen=True):
    workers: tuple[int, ...]
    batches: tuple[int, ...]
    marks: tuple[float, ...]
    """In multiples of the workers."""
    seconds: float


SCALES: dict[Size, Scale] = {
    "full": Scale((1, 5, 20), (1, 10, 100), (1, 1.5, 2, 10), 12.0),
    "quick": Scale((5, 20), (1, 10), (1, 2), 6.0),
    "tiny": Scale((2,), (3,), (2,), 1.0),
}


class Drained(Struct, frozen=True):
    rate: float
    """Messages acknowledged per second."""
    most: int
    """In flight."""


async def _drain(client: Client, case: Case, fetches: Sequence[Fetch], consumer: str, seconds: float) -> Drained:
    """What the workers acknowledge in `seconds`, after as long as they need to get into step."""
    acked = most = 0
    js = client.jetstream()

    async def work(fetch: Fetch) -> None:
        nonlocal acked
        while True:
            with suppress(NatsTimeoutError):
                for message in await fetch(case.batch):
                    await asyncio.sleep(SERVICE)
                    await message.ack()
                    acked += 1

    async def look() -> None:
        nonlocal most
        while True:
            most = max(most, (await js.consumer_info(case.name, consumer)).num_ack_pending)
            await asyncio.sleep(READ_EVERY)

    tasks = [asyncio.create_task(each) for each in (*map(work, fetches), look())]
    await asyncio.sleep(seconds / 3)
    acked, started = 0, asyncio.get_running_loop().time()
    await asyncio.sleep(seconds)
    rate = acked / (asyncio.get_running_loop().time() - started)
    await cancel_and_wait(tasks)
    return Drained(rate, most)


async def _measure(url: str, case: Case, seconds: float) -> tuple[Drained, Drained]:
    """By a plain fetch, and behind gates."""
    plain, gated = await nats.connect(url), await nats.connect(url)
    try:
        async with BackpressureClient(gated) as asking:
            subscriptions = {
                client: [await client.jetstream().pull_subscribe_bind(consumer, case.name) for _ in range(case.workers)]
                for client, consumer in ((plain, "plain"), (gated, "gated"))
            }
            gates = [PullGate(asking, each, case.name, consumer="gated") for each in subscriptions[gated]]
            return await asyncio.gather(
                _drain(plain, case, [each.fetch for each in subscriptions[plain]], "plain", seconds),
                _drain(gated, case, [each.fetch for each in gates], "gated", seconds),
            )
    finally:
        await plain.close()
        await gated.close()


def _policy(case: Case) -> dict[str, object]:
    inflight = {"warn": case.mark, "critical": case.mark, "overload": case.mark}
    return {"subjects": [case.name], "inflight": inflight, "latency_p95": {"overload": 1_000_000}}


async def _create(client: Client, case: Case, seconds: float) -> None:
    js = client.jetstream()
    await js.add_stream(name=case.name, subjects=[case.name])
    for consumer in ("plain", "gated"):
        config = ConsumerConfig(
            durable_name=consumer, ack_policy=AckPolicy.EXPLICIT, ack_wait=60, max_ack_pending=10_000
        )
        await js.add_consumer(case.name, config)
    for _ in range(round(3 * seconds * case.workers / SERVICE)):
        await client.publish(case.name)
    await client.flush()


async def _run(scale: Scale) -> Figures:
    figures: Figures = {}
    cases = [
        Case(workers, batch, round(mark * workers))
        for workers, batch, mark in itertools.product(scale.workers, scale.batches, scale.marks)
    ]
    async with nats_server() as (server, client):
        for case in cases:
            await _create(client, case, scale.seconds)
        watch = [{"stream": case.name, "consumers": ["gated"]} for case in cases]
        settings = {"policies": [_policy(case) for case in cases], "watch": watch}
        async with SidecarProcess(server.url, settings):
            for some in _batches(cases):
                measured = await asyncio.gather(*(_measure(server.url, case, scale.seconds) for case in some))
                for case, (plain, gated) in zip(some, measured, strict=True):
                    note = f"in flight at most {gated.most}"
                    figures[case.text] = Figure(
                        gated.rate,
                        "1/s",
                        plain.rate,
                        "plain fetch",
                        aim=LEAST,
                        aim_of_ratio=True,
                        more_is_better=True,
                        note=note,
                    )
                    progress(f"{case.text}: {gated.rate:.1f}/s of {plain.rate:.1f}/s, {note}")
    return figures


def _batches(cases: list[Case]) -> list[list[Case]]:
    return [cases[i : i + AT_ONCE] for i in range(0, len(cases), AT_ONCE)]


def main(size: Size = "full") -> Figures:
    return asyncio.run(_run(SCALES[size]))


if __name__ == "__main__":
    command(main)
