"""A computed stream with workers behind gates, on a clock that only tests move: arrivals, grants, pulls, acks."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from nats_backpressure.client.pull_gate import EARLY_BELOW, EARLY_BY
from nats_backpressure.core.model.member import Latches, Member
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.status import latches, thresholds
from nats_backpressure.policy.schema import InflightRule, Policy
from nats_backpressure.protocol.requests import ConsumerRequest
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.queries.pulls import Granted, PullRequest
from tests.fakes.clock import FakeClock
from tests.fakes.replica_channel import FakeBus
from tests.runtime.test_effect_runner import Counts
from tests.simulations.granting_replicas import GrantingReplicas

KEY = ConsumerKey("S", "c")
TRIP = 0.001
"""Seconds of a round trip to the server or a sidecar."""
PULL_LASTS, BATCH_WAIT = 1.0, 0.02
"""As PullGate has them."""


@dataclass
class Setting:
    workers: int
    batch: int
    mark: int
    service: float
    """Seconds per message; each worker handles one after another."""
    reads_every: float
    replicas: int
    early: bool = False
    """Whether each worker asks again while it works on its last message."""
    delay: float = 0.005
    """Seconds until another replica learns of a grant."""
    seed: int = 1

    @property
    def capacity(self) -> float:
        """Messages per second, where each is asked for and pulled alone."""
        return self.workers / (self.service + 2 * TRIP)


@dataclass
class Seen:
    """What happened since it was emptied."""

    asked: int = 0
    refused: int = 0
    waits: list[float] = field(default_factory=list)
    """Seconds from the arrival of each message until a worker began with it."""

    @property
    def handled(self) -> int:
        return len(self.waits)


class PulledStream:
    def __init__(self, setting: Setting) -> None:
        self.setting, self.clock, counts = setting, FakeClock(), Counts()
        self.bus = FakeBus(self.clock, delay=(0.0, setting.delay))
        self.policy = Policy(inflight=InflightRule(setting.mark, setting.mark, setting.mark))
        self.waiting: deque[float] = deque()
        """When each arrived."""
        self._pulls: dict[asyncio.Event, list[float]] = {}
        """Those that wait for a message, the oldest first, and what each got."""
        self.inflight = self.delivered = self.most = 0
        self.seen = Seen()
        self._random = random.Random(setting.seed)
        self._latches = Latches()
        self.read()
        self.replicas = GrantingReplicas(
            setting.replicas, self.clock, self.bus, counts, lambda key: self.member.reading if key == KEY else None
        )
        self.held = [0] * setting.workers
        """By worker."""

    def tasks(self) -> list[asyncio.Task[Any]]:
        work = [
            self._keep_reading(),
            *(one.run() for one in self.replicas.all),
            *map(self._work, range(self.setting.workers)),
        ]
        return [asyncio.create_task(each) for each in work]

    def publish(self, n: int = 1) -> None:
        self.waiting.extend([self.clock.mono()] * n)
        while self.waiting and self._pulls:
            pull = next(iter(self._pulls))
            self._pulls.pop(pull).extend(self.take(1))
            pull.set()

    async def arrive(self, rate: float) -> None:
        """For ever, evenly."""
        while True:
            self.publish()
            await self.clock.sleep(1 / rate)

    def take(self, n: int) -> list[float]:
        taken = [self.waiting.popleft() for _ in range(min(n, len(self.waiting)))]
        self.inflight, self.delivered = self.inflight + len(taken), self.delivered + len(taken)
        self.most = max(self.most, self.inflight)
        return taken

    def read(self) -> None:
        now = self.clock.now()
        reading = Reading(
            KEY,
            Now(now.mono, now.wall),
            len(self.waiting),
            self.inflight,
            None,
            None,
            ack_rate=self.setting.capacity,
            delivered_consumer=self.delivered,
            waiting=len(self._pulls),
        )
        marks = thresholds.marks(self.policy, reading)
        over = latches.latch(self._latches.inflight, self.inflight, marks.inflight.overload, self.policy, now.mono)
        self._latches = Latches(inflight=over)
        self.member = Member(KEY, self.policy, reading=reading, proof=now.mono, marks=marks, latches=self._latches)

    async def _keep_reading(self) -> None:
        while True:
            await self.clock.sleep(self.setting.reads_every)
            self.read()

    async def _work(self, worker: int) -> None:
        await self.clock.sleep(self._random.random() * self.setting.service)
        unused, early = 0, None
        while True:
            if early is None or not early.n:
                await self.clock.sleep(TRIP)
                granted, asked_at = self._ask(worker, unused), self.clock.mono()
            else:
                granted = early
            early = None
            if granted.n == 0:
                unused = 0
                await self.clock.sleep(granted.wait_ms / 1000)
                continue
            messages = await self._pull(granted.n, asked_at + PULL_LASTS)
            unused = granted.n - len(messages)
            self.held[worker] += len(messages)
            await self._handle(worker, messages[:-1])
            if not messages or not self.setting.early:
                await self._handle(worker, messages[-1:])
                continue
            service = self.setting.service
            before = 0.0 if service <= EARLY_BELOW else service - EARLY_BY
            self._begin(messages[-1])
            await self.clock.sleep(before)
            early, asked_at, unused = self._ask(worker, unused, ahead=1), self.clock.mono(), 0
            await self.clock.sleep(service - before)
            self._end(worker)

    def _ask(self, worker: int, unused: int, ahead: int = 0) -> Granted:
        replica = self._random.randrange(self.setting.replicas)
        request = ConsumerRequest(self.setting.batch, held=self.held[worker], unused=unused, ahead=ahead)
        pull = PullRequest(request, [], (self.member,), None)
        granted = self.replicas.pulls[replica].grant(pull, f"worker-{worker}", self.clock.mono())
        self.seen.asked += 1
        self.seen.refused += granted.n == 0
        return granted

    async def _pull(self, n: int, until: float) -> list[float]:
        """As PullGate does: the first message is waited for until then, the others come with it or a moment later."""
        await self.clock.sleep(TRIP)
        messages = self.take(1) or await self._wait_for_one(until)
        if messages and (rest := min(n - 1, len(self.waiting))):
            await self.clock.sleep(TRIP)
            others = self.take(rest)
            if len(others) < rest:
                await self.clock.sleep(BATCH_WAIT)
                others += self.take(rest - len(others))
            messages += others
        return messages

    async def _wait_for_one(self, until: float) -> list[float]:
        pull, messages = asyncio.Event(), list[float]()
        self._pulls[pull] = messages
        await self.clock.wait(pull, until - self.clock.mono())
        self._pulls.pop(pull, None)
        return messages

    async def _handle(self, worker: int, messages: list[float]) -> None:
        for arrived in messages:
            self._begin(arrived)
            await self.clock.sleep(self.setting.service)
            self._end(worker)

    def _begin(self, arrived: float) -> None:
        self.seen.waits.append(self.clock.mono() - arrived)

    def _end(self, worker: int) -> None:
        self.inflight -= 1
        self.held[worker] -= 1
