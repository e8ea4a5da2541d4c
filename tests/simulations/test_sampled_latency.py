"""Replicas that are replaced while a latency is steady: its ack metrics decide, and no estimate before they come."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import pytest
from msgspec.structs import replace

from nats_backpressure.core.model.samples import ConsumerConfig
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.runtime.observations import AckSeen
from tests.simulations import replicas as simulated
from tests.simulations.replicas import KEY, SUBJECT, Replicas
from tests.support.event_checks import event_problems, shown
from tests.support.policies import entry

MARK = 2000
BELOW, ABOVE = 0.81, 2.5
"""Seconds from delivery to ack: three times the one is above the mark, too."""
EVERY, EACH = 0.1, 5
"""Seconds between two rounds of the worker, and the messages that it takes in each."""
NEVER = {"overload": 1_000_000}
POLICY: dict[str, Any] = {"pending": NEVER, "drain_seconds": NEVER, "latency_p95": {"overload": MARK}}
SETTINGS = replace(simulated.SETTINGS, policies=(entry(">", recovery_hold_seconds=0.2, **POLICY),))


class Worker:
    """Acknowledges each message so many seconds after it was delivered; `permitted`: the ack metrics arrive."""

    def __init__(self, replicas: Replicas, seconds: float, permitted: bool = True) -> None:
        self.replicas, self.seconds, self.permitted = replicas, seconds, permitted
        self.taken: deque[tuple[float, list[int]]] = deque()

    async def run(self, seconds: float) -> None:
        for _ in range(round(seconds / EVERY)):
            self.replicas.js.publish(KEY.stream, SUBJECT, EACH)
            self.taken.append((self.replicas.clock.now().mono, self.replicas.js.pull(KEY, EACH)))
            while self.taken[0][0] <= self.replicas.clock.now().mono - self.seconds:
                self.acknowledge(*self.taken.popleft())
            await self.replicas.clock.run(EVERY)

    def acknowledge(self, delivered: float, messages: list[int]) -> None:
        self.replicas.js.ack(KEY, *messages)
        for _ in messages if self.permitted else ():
            self.replicas.hint(AckSeen(KEY, self.replicas.clock.now().mono - delivered, 1, Now(-1.0, -1.0)))

    async def end(self) -> None:
        while self.taken:
            self.acknowledge(*self.taken.popleft())
        await self.replicas.clock.run(5.0)


async def replace_each(replicas: Replicas, worker: Worker, n: int, seconds: float) -> None:
    """The new one starts, then the old one ends; `seconds` between any two of these."""
    for i in range(n):
        replicas.add(f"r{n + i}").start()
        await worker.run(seconds)
        await replicas.all[f"r{i}"].kill()
        await worker.run(seconds)


@pytest.mark.parametrize(
    ("n", "latency", "permitted", "before", "incidents"),
    [
        pytest.param(1, BELOW, True, 5.0, 0, id="below the mark"),
        pytest.param(2, BELOW, True, 5.0, 0, id="below the mark, two replicas"),
        pytest.param(1, ABOVE, True, 15.0, 1, id="above the mark"),
        pytest.param(1, BELOW, False, 65.0, 1, id="estimated for want of ack metrics", marks=pytest.mark.slow),
    ],
)
def test_a_steady_latency_is_judged_the_same_after_each_replacement(
    n: int, latency: float, permitted: bool, before: float, incidents: int
) -> None:
    async def run() -> None:
        replicas = Replicas(settings=SETTINGS)
        replicas.js.of(KEY).config = ConsumerConfig(sampled=True)
        worker = Worker(replicas, latency, permitted)
        async with replicas.running(n):
            await worker.run(before)
            assert len(replicas.events()) == incidents, shown(replicas.events())
            await replace_each(replicas, worker, n, 12.0)
            assert len(replicas.events()) == incidents, shown(replicas.events())
            await worker.end()
            assert not (problems := event_problems(replicas.events(), incidents)), problems

    asyncio.run(run())
