"""Workers pull behind gates while the replica that reads is killed again and again: nothing is lost or delivered twice,
in flight stays at its mark, and the work goes on."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import nats
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.api import AckPolicy, ConsumerConfig

from nats_backpressure.client import BackpressureClient, PullGate
from tests.chaos.conftest import Install
from tests.chaos.installation import FAST, Installation
from tests.support.background import meanwhile
from tests.support.sidecar import SUBJECT

WORKERS, BATCH, MARK = 10, 20, 12
SERVICE = 0.05
"""Seconds that a worker takes for a message."""
MESSAGES = 2000
DONE_WITHIN = 120.0
LOOK_EVERY = 0.03
"""Seconds between two looks at what is in flight."""
LOST_AFTER = 0.25
"""Seconds after which a question counts as lost: one that the killed replica had taken has no answer."""
UNANSWERED = 1.0
"""Seconds between two answers at most: after a lost question the next ones go to those that live. Several times
LOST_AFTER, for a machine on which a process starts beside it."""
STANDS_STILL = 2.5
"""Seconds between two acks at most: nobody reads for up to 0.8 s after the reader's death, in which all that is granted
counts as in flight; a gate that was granted nothing then asks again within a second; and a message takes its time."""
CONSUMER = ConsumerConfig(durable_name="router", ack_policy=AckPolicy.EXPLICIT, max_ack_pending=1000, ack_wait=60)
"""Nothing comes again only because its worker was slow."""


POLICY: dict[str, Any] = FAST | {
    "pending": {"overload": 1_000_000},
    "inflight": {"warn": MARK, "critical": MARK, "overload": MARK},
}


class Drain:
    """What the workers do, and what is seen meanwhile."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self.handled: Counter[str] = Counter()
        self.acked: list[float] = []
        self.answered: list[float] = []
        """When, on the monotonic clock."""
        self.inflight: list[int] = []
        self.kills = 0

    async def work(self, gate: PullGate) -> None:
        while True:
            with suppress(NatsTimeoutError):
                for message in await gate.fetch(BATCH):
                    self.handled[message.data.decode()] += 1
                    await asyncio.sleep(SERVICE)
                    await message.ack()
                    self.acked.append(time.monotonic())

    async def look(self) -> None:
        while True:
            info = await self._installation.nc.jetstream().consumer_info("ROUTER", "router")
            self.inflight.append(info.num_ack_pending or 0)
            await asyncio.sleep(LOOK_EVERY)

    async def ask(self) -> None:
        while True:
            with suppress(NatsTimeoutError, NoRespondersError):
                await self._installation.nc.request(f"backpressure.v1.decide.gateway.{SUBJECT}", timeout=LOST_AFTER)
                self.answered.append(time.monotonic())
            await asyncio.sleep(LOOK_EVERY)

    async def kill_readers(self, dice: random.Random) -> None:
        while True:
            await asyncio.sleep(dice.uniform(0.3, 1.0))
            reader = self._installation[await self._installation.reader()]
            await reader.kill()
            self.kills += 1
            await asyncio.sleep(dice.uniform(0.0, 1.0))
            await reader.restart()
            await reader.sidecar.observing()

    async def over(self) -> None:
        async with asyncio.timeout(DONE_WITHIN):
            while len(self.acked) < MESSAGES:
                await asyncio.sleep(LOOK_EVERY)


def longest(times: list[float]) -> float:
    return max(later - earlier for earlier, later in itertools.pairwise(times))


@asynccontextmanager
async def gates(url: str) -> AsyncIterator[list[PullGate]]:
    connection = await nats.connect(url)
    try:
        async with BackpressureClient(connection) as asking:
            js = connection.jetstream()
            yield [PullGate(asking, await js.pull_subscribe_bind("router", "ROUTER"), SUBJECT) for _ in range(WORKERS)]
    finally:
        await connection.close()


async def test_workers_behind_gates_while_the_reader_is_killed(install: Install, dice: random.Random) -> None:
    installation = await install(3, policy=POLICY, consumer=CONSUMER)
    for n in range(MESSAGES):
        await installation.nc.publish(SUBJECT, str(n).encode())
    await installation.nc.flush()
    drain = Drain(installation)
    async with gates(installation.nc.connected_url.geturl()) as all_gates:
        working = (drain.work(gate) for gate in all_gates)
        async with meanwhile(*working, drain.look(), drain.ask(), drain.kill_readers(dice)):
            await drain.over()
    assert drain.handled == Counter(map(str, range(MESSAGES))), "each message once"
    info = await installation.nc.jetstream().consumer_info("ROUTER", "router")
    assert (info.num_pending, info.num_ack_pending) == (0, 0)
    print(f"{drain.kills} kills, in flight at most {max(drain.inflight)} of {MARK}", end="; ")
    print(f"no ack for {longest(drain.acked):.2f} s, no answer for {longest(drain.answered):.2f} s")
    assert drain.kills >= 2 and max(drain.inflight) > MARK / 2, "it was a test"
    assert max(drain.inflight) <= MARK, drain.inflight
    assert longest(drain.acked) <= STANDS_STILL
    assert longest(drain.answered) <= UNANSWERED
