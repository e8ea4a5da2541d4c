"""Reads one consumer of a real server like the poller; the test controls the time."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import nats
from msgspec import Struct
from nats.aio.client import Client

from nats_backpressure.adapters.nats.advisories import AdvisoryListener
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.model.samples import Sample
from nats_backpressure.core.signals.tracker import ConsumerTracker
from nats_backpressure.protocol.values import ConsumerKey, Diagnosis
from nats_backpressure.runtime.observations import AckSeen, Hint, MaxDeliveries, Nak, Terminated
from nats_backpressure.runtime.ports import Unavailable
from tests.fakes.clock import FakeClock
from tests.simulations.both_servers import SETTLES_WITHIN, Direct, RealWorld
from tests.support.servers import NatsServer

C = ConsumerKey("S", "c")


class Answer(Struct):
    data: bytes


class Doctored(Direct):
    """The test's own client, and a lie: `change` may alter every page of consumers before it is read."""

    change: Callable[[dict[str, Any]], None] | None = None
    between: Callable[[], Awaitable[object]] | None = None
    """What happens after the consumers were sampled and before the stream is looked at."""

    async def request(self, subject: str, payload: bytes, seconds: float) -> Any:
        if self.between is not None and ".STREAM.INFO." in subject:
            await self.between()
        answer = await super().request(subject, payload, seconds)
        if self.change is None or ".CONSUMER.LIST." not in subject:
            return answer
        page = json.loads(answer.data)
        self.change(page)
        return Answer(json.dumps(page).encode())


class Following:
    """A world with one stream `S`, and what is made of its consumer `c`. Each reading comes a second after the last."""

    def __init__(self, server: NatsServer, client: Client) -> None:
        self.clock = FakeClock()
        self.line = Doctored(client)
        self.world = RealWorld(client, server.version, clock=self.clock, connection=self.line)
        self.track = ConsumerTracker()
        self.hints: list[Hint] = []

    async def sample(self) -> Sample:
        return next(s for s in (await self.world.observer.consumers("S")).samples if s.key == C)

    async def take(self, after: float = 1.0) -> Reading | str:
        self.clock.advance(after)
        followed = await self.world.observer.consumers("S")
        return self.track.add_sample(next(s for s in followed.samples if s.key == C), followed.look)

    async def read(self, after: float = 1.0) -> Reading:
        reading = await self.take(after)
        assert isinstance(reading, Reading), reading
        return reading

    async def says(self, *, within: int = 8) -> Diagnosis | None:
        """The diagnosis after this number of readings in which nothing else happens."""
        return [(await self.read()).diagnosis for _ in range(within)][-1]

    async def work(self, n: int) -> None:
        """A worker takes n messages and acknowledges them."""
        await self.world.ack(C, *(await self.world.pull(C, n)))

    async def until(self, holds: Callable[[Sample], bool]) -> None:
        """Wait until the server shows it: what was sent without an answer takes effect a moment later."""
        deadline = time.monotonic() + SETTLES_WITHIN
        while not holds(sample := await self.sample()):
            assert time.monotonic() < deadline, sample
            await asyncio.sleep(0.005)

    async def until_connected(self) -> None:
        """Wait until the server is there again."""
        deadline = time.monotonic() + SETTLES_WITHIN
        while True:
            try:
                await self.world.observer.consumers("S")
                return
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)

    async def received(self, kind: type[Hint]) -> None:
        """Wait until an advisory of this kind came."""
        deadline = time.monotonic() + SETTLES_WITHIN
        while not any(isinstance(hint, kind) for hint in self.hints):
            assert time.monotonic() < deadline, self.hints
            await asyncio.sleep(0.005)

    def hear(self, hint: Hint) -> None:
        self.hints.append(hint)
        now = self.clock.now()
        match hint:
            case AckSeen():
                self.track.ack_seen(hint.seconds, hint.deliveries, now)
            case Nak():
                self.track.nak_seen(now)
            case MaxDeliveries() | Terminated():
                self.track.dropped_seen(now)


@asynccontextmanager
async def following(server: NatsServer) -> AsyncIterator[Following]:
    publisher, subscriber = await nats.connect(server.url), await nats.connect(server.url)
    followed = Following(server, publisher)
    await AdvisoryListener(followed.clock, followed.hear, lambda what: None).listen(subscriber)
    await subscriber.request("$JS.API.INFO", timeout=10)  # a flush would not do: its PING overtakes the subscriptions
    yield followed
    for client in (publisher, subscriber):
        await client.close()
