"""A fake JetStream whose requests take their turn in the budget and the slots of the observer, and may take long."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from nats_backpressure.core.model.samples import Sample
from nats_backpressure.core.reading.budget import RequestBudget
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.observations import ConsumersReading, StreamsReading, Unavailable
from tests.fakes.clock import FakeClock
from tests.fakes.observer import FakeJetStream

SLOTS, LONG = 8, 0.25
"""As the observer of the service: requests at once, and the seconds for which one holds a slot at most."""
NO_ANSWER = 5.0
"""Seconds after which a request without an answer fails."""


class BusyServer(FakeJetStream):
    """`list_seconds` is how long every list takes; consumers in `silent` do not answer by themselves, for NO_ANSWER."""

    def __init__(self, clock: FakeClock, rate: float = 50.0) -> None:
        super().__init__(clock)
        self.requests, self.list_seconds, self.sent = RequestBudget(rate), 0.001, 0
        self._slots = asyncio.Semaphore(SLOTS)

    async def streams(self) -> StreamsReading:
        seconds = self.list_seconds
        await self._request(seconds)
        self.took = seconds
        return await super().streams()

    async def stream(self, name: str) -> StreamsReading:
        await self._request(0.001)
        self.took = 0.001
        return await super().stream(name)

    async def consumers(self, stream: str, names: Sequence[str] = ()) -> ConsumersReading:
        seconds = self.list_seconds
        silent = [name for name in names if ConsumerKey(stream, name) in self.silent]
        await asyncio.gather(*(self._request(NO_ANSWER if name in silent else 0.001) for name in names))
        if not names:
            await self._request(seconds)
        await self._request(0.001)
        self.took = 0.001 * len(names) if names else seconds
        return await super().consumers(stream, names)

    async def consumer(self, key: ConsumerKey) -> Sample:
        if key in self.silent:
            await self._request(NO_ANSWER)
            raise Unavailable("no answer")
        await self._request(0.001)
        return await super().consumer(key)

    async def _request(self, seconds: float) -> None:
        await self.clock.sleep(self.requests.take(self.clock.now().mono))
        self.sent += 1
        async with self._slots:
            await self.clock.sleep(min(seconds, LONG))
        await self.clock.sleep(max(0.0, seconds - LONG))
