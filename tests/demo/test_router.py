"""The router works on as many messages at a time as it has workers, and in NAK mode returns what is too much."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

from nats_backpressure.demo.router import NAK_ABOVE, Worker
from nats_backpressure.demo.scenario import SENT_AT, Scenario


class FakeMessage:
    def __init__(self, delivered: int = 1) -> None:
        self.metadata = SimpleNamespace(num_delivered=delivered)
        self.headers = {SENT_AT: str(time.monotonic())}
        self.outcome = ""

    async def ack(self) -> None:
        self.outcome = "ack"

    async def nak(self, delay: float) -> None:
        self.outcome = "nak"


async def work_on(messages: list[FakeMessage], scenario: Scenario) -> Worker:
    """Run a worker on these messages until each has an outcome."""
    batches: list[list[Any]] = [list(messages)]

    async def fetch(n: int) -> list[Any]:
        if batches:
            return batches.pop()
        await asyncio.Event().wait()
        return []

    worker = Worker(None, scenario, fetch)  # type: ignore[arg-type]
    running = asyncio.create_task(worker.run())
    async with asyncio.timeout(10):
        while not all(message.outcome for message in messages) or sum(worker.counts.values()) == 0:
            await asyncio.sleep(0.005)
    running.cancel()
    return worker


async def test_every_message_is_acknowledged_and_counted() -> None:
    messages = [FakeMessage(), FakeMessage(), FakeMessage(delivered=2)]
    worker = await work_on(messages, Scenario(workers=2, seconds_per_message=0.01))
    assert {message.outcome for message in messages} == {"ack"}
    assert (worker.counts["done"], worker.counts["redelivered"], worker.counts["in_time"]) == (3, 1, 3)
    assert len(worker.latencies) == 3


async def test_in_nak_mode_messages_beyond_the_limit_are_returned() -> None:
    messages = [FakeMessage() for _ in range(NAK_ABOVE + 3)]
    worker = await work_on(messages, Scenario(workers=1, seconds_per_message=0.01, nak=True))
    assert [message.outcome for message in messages] == ["ack"] * NAK_ABOVE + ["nak"] * 3
    assert worker.counts["naked"] == 3
