"""A decision service whose answers a test chooses, and which records the requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from tests.simulations.state_bucket import SUBJECT

GATEWAY = {"subject": SUBJECT, "role": "gateway", "status": "active", "action": "reject", "retry_after_seconds": 30}
Answer = dict[str, Any] | bytes | str | None
"""An object, raw bytes, the code of a service error, or None for no reply."""


class FakeDecisionService:
    """`async with FakeDecisionService(nc) as service:` answers with `answer(request)` after `delay` seconds."""

    def __init__(self, nc: Client, answer: Callable[[dict[str, Any]], Answer] = lambda _: GATEWAY) -> None:
        self.nc, self.answer, self.delay = nc, answer, 0.0
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self._subscription: Subscription | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._subscription = await self.nc.subscribe("backpressure.v1.decide.>", cb=self._receive)
        await self.nc.request("$JS.API.INFO", timeout=10)  # proof that the server knows the subscription
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._subscription is not None
        await self._subscription.unsubscribe()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _receive(self, message: Msg) -> None:
        task = asyncio.create_task(self._reply(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reply(self, message: Msg) -> None:
        request = json.loads(message.data)
        self.requests.append((message.subject.removeprefix("backpressure.v1.decide."), request))
        answer = self.answer(request)
        await asyncio.sleep(self.delay)
        if answer is None:
            return
        headers = {"Nats-Service-Error-Code": answer, "Nats-Service-Error": "why"} if isinstance(answer, str) else None
        data = json.dumps(answer).encode() if isinstance(answer, dict) else answer if isinstance(answer, bytes) else b""
        with suppress(Exception):  # the test may be over
            await self.nc.publish(message.reply, data, headers=headers)
