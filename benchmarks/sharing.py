"""Measures what it costs to share a reading: how long the event loop is held, and how much CPU time it takes.

One process sends readings of one stream to itself, without a server: `python -m benchmarks.sharing`. All is CPU time of
the thread, so that other processes do not count; Python's garbage collector is off (the service makes it short).
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable

from msgspec import Struct

from benchmarks.figures import Figure, Figures, Size, command, progress
from nats_backpressure.adapters.nats.replica_channel import LONGEST
from nats_backpressure.core.model.samples import ConsumerConfig, Sample, StreamLook
from nats_backpressure.core.reading.sharing import Position
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.recording.broadcast_numbers import AskedFor
from nats_backpressure.recording.broadcast_receiver import BroadcastReceiver
from nats_backpressure.recording.broadcast_sender import BroadcastSender, Unsent
from nats_backpressure.runtime.clock import SystemClock
from nats_backpressure.runtime.observations import ConsumersReading, Received
from nats_backpressure.runtime.tasks import cancel_and_wait

SIZES: dict[Size, tuple[int, ...]] = {"full": (3000, 10_000), "quick": (3000,), "tiny": (20,)}
ROUNDS: dict[Size, int] = {"full": 15, "quick": 5, "tiny": 1}
CONFIG = ConsumerConfig(filters=("orders.eu.created",), max_ack_pending=1000)
HERE = Position(writes=True, settled=True, share=0.5)


class Cost(Struct):
    cpu: float = 0.0
    longest: float = 0.0
    """The longest time without a turn for others."""


async def _cost(work: Awaitable[object]) -> Cost:
    """What it costs; the looks at the clock are part of it."""
    cost, began = Cost(), time.thread_time()

    async def probe() -> None:
        last = began
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            cost.longest, last = max(cost.longest, now - last), now

    task = asyncio.create_task(probe())
    await work
    cost.cpu = time.thread_time() - began
    await cancel_and_wait((task,))
    return cost


class Pair:
    """A sender, and a receiver of what it sent."""

    def __init__(self, consumers: int) -> None:
        self.clock, self._consumers = SystemClock(), consumers
        self._chunks: list[tuple[str, bytes]] = []
        self._received: list[Received] = []
        self.sender = BroadcastSender(self.clock, "sender", self, 1e9, _fail)  # type: ignore[arg-type]  # all it uses
        self.receiver = BroadcastReceiver(self.clock, "receiver", self._received.append, _fail)

    def room(self) -> int:
        return LONGEST

    def publish(self, topic: str, payload: bytes) -> bool:
        self._chunks.append((topic, payload))
        return True

    def reading(self, moved: int, value: int) -> ConsumersReading:
        """A reading in which the first consumers moved."""
        now = self.clock.now()
        samples = (
            Sample(
                ConsumerKey("S", f"consumer-{n:06}"), "2026-11-26T00:00:00.123456789Z", CONFIG, now,
                value if n < moved else 0, 3, 0, 2, 100_000 + n, 1000, 100_000, 997,
            )
            for n in range(self._consumers)
        )  # fmt: skip
        return ConsumersReading(StreamLook("S", "t", 1, 9, 9), tuple(samples), (), True, (), 0.5, 1)

    async def send(self, reading: ConsumersReading) -> None:
        now = self.clock.now()
        self._chunks.clear()
        self.sender.add("S", Unsent(reading, AskedFor(now.mono), HERE, now))
        await _until(lambda: not self.sender.busy)

    async def receive(self) -> None:
        for chunk in self._chunks:
            self.receiver.receive(*chunk)
        await _until(lambda: not self.receiver.busy)

    @property
    def size(self) -> int:
        return sum(len(payload) for _, payload in self._chunks)


def _fail(what: str) -> None:
    raise RuntimeError(what)


async def _until(done: Callable[[], bool]) -> None:
    while not done():
        await asyncio.sleep(0)


async def _measure(consumers: int, rounds: int) -> Figures:
    figures: Figures = {}
    pair = Pair(consumers)
    works = [asyncio.create_task(work) for work in (pair.sender.run(), pair.receiver.run())]
    await pair.send(pair.reading(0, 0))
    await pair.receive()
    gc.disable()
    for name, moved, whole in (("all of it", 0, True), ("a tenth moved", consumers // 10, False)):
        sent, received = list[Cost](), list[Cost]()
        for n in range(1, rounds + 1):
            reading = pair.reading(moved, n)
            if whole:
                pair.sender.send_whole()
            sent.append(await _cost(pair.send(reading)))
            received.append(await _cost(pair.receive()))
            gc.collect()
        progress(f"{consumers:,} consumers, {name}: {pair.size:,} bytes")
        for way, costs in (("sent", sent), ("received", received)):
            label = f"a reading of {consumers:,} consumers, {name}, is {way}"
            cpu = sorted(1000 * cost.cpu for cost in costs)[rounds // 2]
            longest = sorted(1000 * cost.longest for cost in costs)[rounds // 2]
            figures[f"{label}: longest hold of the loop"] = Figure(
                longest, "ms of CPU", aim=10.0, note=f"{pair.size:,} bytes"
            )
            figures[f"{label}: CPU time"] = Figure(cpu, "ms of CPU")
    gc.enable()
    await cancel_and_wait(works)
    return figures


async def _run(size: Size) -> Figures:
    figures: Figures = {}
    for consumers in SIZES[size]:
        figures |= await _measure(consumers, ROUNDS[size])
    return figures


def main(size: Size = "full") -> Figures:
    return asyncio.run(_run(size))


if __name__ == "__main__":
    command(main)
