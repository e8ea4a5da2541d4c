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
from typing import Any, NamedTuple

import nats
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.api import AckPolicy, ConsumerConfig

from nats_backpressure.client import BackpressureClient, PullGate
from nats_backpressure.client.requests import Answer
from tests.chaos.conftest import Install
from tests.chaos.installation import FAST, Installation, lasting
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
"""Seconds between two answers at most: after a lost question the next ones go to those that live."""
STANDS_STILL = 2.5
"""Seconds between two acks at most: nobody reads for up to 0.8 s after the reader's death, in which all that is granted
counts as in flight; a gate that was granted nothing then asks again within a second; and a message takes its time."""
SLOW = 0.15
"""Seconds between two looks, which need no sidecar, that show a machine too busy to judge by: of what is promised for
replicas that hear each other within 15 ms, and for questions that are answered in time, nothing can be seen then."""
COUNTS_FOR = 2.0
"""Seconds for which grants count."""
UNASKED_FOR = 5.0
"""Seconds after which what was pulled without an answer is surely acknowledged."""
CONSUMER = ConsumerConfig(durable_name="router", ack_policy=AckPolicy.EXPLICIT, max_ack_pending=1000, ack_wait=60)
"""Nothing comes again only because its worker was slow."""


POLICY: dict[str, Any] = FAST | {
    "pending": {"overload": 1_000_000},
    "inflight": {"warn": MARK, "critical": MARK, "overload": MARK},
}


class Look(NamedTuple):
    at: float
    after: float
    """Seconds since the look before."""
    inflight: int


class Drain:
    """What the workers do, and what is seen meanwhile."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self.handled: Counter[str] = Counter()
        self.acked: list[float] = []
        self.answered: list[float] = []
        """When, on the monotonic clock."""
        self.looks: list[Look] = []
        self.unasked: list[tuple[float, int]] = []
        """When a gate had no answer, and how many it pulled all the same."""
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
        last = time.monotonic()
        while True:
            info = await lasting(lambda: self._installation.nc.jetstream().consumer_info("ROUTER", "router"))
            now = time.monotonic()
            self.looks.append(Look(now, now - last, info.num_ack_pending or 0))
            last = now
            await asyncio.sleep(LOOK_EVERY)

    def shows(self, since: float, until: float) -> bool:
        """Whether the machine was fast enough for what was seen in this time to mean something."""
        return all(look.after <= SLOW for look in self.looks if look.at >= since and look.at - look.after <= until)

    def longest(self, times: list[float]) -> float:
        """Seconds between two of these."""
        pairs = itertools.pairwise([self.looks[0].at, *times])
        return max((later - earlier for earlier, later in pairs if self.shows(earlier, later)), default=0.0)

    def too_many(self) -> list[Look]:
        """Looks at more in flight than the mark, and what was pulled without an answer."""
        looks = [look for look in self.looks if self.shows(look.at - COUNTS_FOR, look.at)]
        return [look for look in looks if look.inflight > MARK + self._unasked(look.at)]

    def _unasked(self, now: float) -> int:
        return sum(n for at, n in self.unasked if now - UNASKED_FOR <= at <= now)

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


class Gate(PullGate):
    """Notes what it pulls without an answer."""

    unasked: list[tuple[float, int]]

    def _grant(self, decision: Answer, batch: int) -> tuple[int, float]:
        n, wait = super()._grant(decision, batch)
        if decision.failed_open is not None:
            self.unasked.append((time.monotonic(), n))
        return n, wait


@asynccontextmanager
async def gates(url: str) -> AsyncIterator[list[Gate]]:
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
        for gate in all_gates:
            gate.unasked = drain.unasked
        working = (drain.work(gate) for gate in all_gates)
        async with meanwhile(*working, drain.look(), drain.ask(), drain.kill_readers(dice)):
            await drain.over()
    assert drain.handled == Counter(map(str, range(MESSAGES))), "each message once"
    info = await installation.nc.jetstream().consumer_info("ROUTER", "router")
    assert (info.num_pending, info.num_ack_pending) == (0, 0)
    most, seen = max(look.inflight for look in drain.looks), sum(look.after <= SLOW for look in drain.looks)
    print(f"{drain.kills} kills, in flight at most {most} of {MARK}, {len(drain.unasked)} questions without an answer,")
    print(f"no ack for {drain.longest(drain.acked):.2f} s, no answer for {drain.longest(drain.answered):.2f} s,")
    print(f"{seen} of {len(drain.looks)} looks at a machine that was fast enough")
    assert drain.kills >= 2 and most > MARK / 2, "it was a test"
    assert not drain.too_many()
    assert drain.longest(drain.acked) <= STANDS_STILL
    assert drain.longest(drain.answered) <= UNANSWERED
