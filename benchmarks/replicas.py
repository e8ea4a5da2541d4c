"""Measures what 1, 3 and 10 replicas cost beside one server, and how soon another one reads after the reader is killed.

1,000 consumers in 8 streams, a tenth of them busy; and two replicas on one stream, which one of them reads. CPU time is
from /proc, in percent of one core; API requests are those of the account, less what there is without a sidecar; writes
are those to the state bucket. Then the reader of a stream is killed again and again, and an overload begins there at
once: how long until another replica shares what it read there, and until the overload is published.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from msgspec import Struct
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import NotFoundError

from benchmarks.consumers import Consumer, PlainSocket, create
from benchmarks.figures import Figure, Figures, Size, command, percentiles, progress
from benchmarks.processes import SidecarProcess, api_requests, cpu_seconds, nats_server
from nats_backpressure.recording.broadcast_format import topic_of
from nats_backpressure.runtime.tasks import cancel_and_wait

POLICY = {
    "subjects": [">"],
    "pending": {"warn": 5, "critical": 10, "overload": 20},
    "drain_seconds": {"overload": 1_000_000},
    "latency_p95": {"overload": 1_000_000},
    "recovery_hold_seconds": 0.2,
}
OVERLOAD = 60
"""Messages: three times the mark."""
ASK_EVERY = 0.02
"""Seconds between two decisions, whose longest silence is measured."""
SEEN_WITHIN = 30.0
SETTLE = 5.0
"""Seconds after a start before anything is done."""
LEARNT = 45.0
"""Seconds after the last start before costs are measured: by then each subject has stored what it learnt at first."""


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


class Case(Struct, frozen=True):
    replicas: int
    streams: int

    @property
    def name(self) -> str:
        return f"{_count(self.replicas, 'replica')} on {_count(self.streams, 'stream')}"


class Scale(Struct, frozen=True):
    cases: tuple[Case, ...]
    """The first of each number of streams is what the others are compared with."""
    consumers: int
    seconds: float
    """Of each window."""
    kills: int


SCALES: dict[Size, Scale] = {
    "full": Scale((Case(1, 8), Case(3, 8), Case(10, 8), Case(1, 1), Case(2, 1)), 1000, 30.0, 200),
    "quick": Scale((Case(1, 8), Case(3, 8), Case(1, 1), Case(2, 1)), 200, 8.0, 10),
    "tiny": Scale((Case(1, 2), Case(2, 1)), 16, 0.3, 1),
}
STREAMS = 8
"""Where readers are killed."""
READ_AGAIN, SEEN = 1.0, 0.25
"""Aims, p99, seconds: another replica reads, and what it reads is published (as where nobody is killed)."""


class Cost(Struct, frozen=True, order=True):
    """Of one replica."""

    reads: int
    """How many streams."""
    cpu: float
    """Share of a core."""


class Costs(Struct, frozen=True):
    """What one window took."""

    requests: float
    server: float
    sidecars: list[Cost]
    """The one that reads least first."""
    writes: float
    """To the state bucket, per second."""


async def _window(client: Client, server: int, sidecars: Sequence[SidecarProcess], seconds: float) -> Costs:
    def spent() -> list[float]:
        return [cpu_seconds(pid) for pid in (server, *(sidecar.pid for sidecar in sidecars))]

    writes = await _writes(client)
    started, before, requests = time.monotonic(), spent(), await api_requests(client)
    await asyncio.sleep(seconds)
    after, took = spent(), time.monotonic() - started
    requests = await api_requests(client) - requests - 1
    shares = [(b - a) / took for a, b in zip(before, after, strict=True)]
    reads = [await asyncio.to_thread(_reads, sidecar) for sidecar in sidecars]
    writes = await _writes(client) - writes
    return Costs(requests / took, shares[0], sorted(map(Cost, reads, shares[1:])), writes / took)


async def _writes(client: Client) -> int:
    """How many there were to the state bucket."""
    with suppress(NotFoundError):
        return (await client.jetstream().stream_info("KV_backpressure_state")).state.last_seq
    return 0


def _reads(sidecar: SidecarProcess) -> int:
    """How many streams it reads; a sidecar without sharing reads all that it has."""
    with urllib.request.urlopen(f"http://127.0.0.1:{sidecar.port}/readyz", timeout=5) as reply:
        ready: dict[str, Any] = json.load(reply)
    return int(ready.get("reads", ready.get("streams", 0)))


def _is_reader(sidecar: SidecarProcess, stream: str) -> bool:
    with urllib.request.urlopen(sidecar.page, timeout=5) as reply:
        return f'router_backpressure_reading{{stream="{stream}"}} 1' in reply.read().decode()


@asynccontextmanager
async def _busy(url: str, consumers: Sequence[Consumer]) -> AsyncIterator[None]:
    """Each of these gets a message a second, which is acknowledged at once."""
    socket = await PlainSocket.connect(url)

    async def work() -> None:
        while True:
            started = time.monotonic()
            for consumer in consumers:
                socket.publish(consumer.subject, 1)
                await socket.drain(consumer, 1)
            await asyncio.sleep(max(0.0, 1.0 - (time.monotonic() - started)))

    task = asyncio.create_task(work())
    try:
        yield
    finally:
        await cancel_and_wait((task,))
        socket.close()


async def _costs(case: Case, scale: Scale) -> Costs:
    async with nats_server() as (server, client):
        created = await create(client, scale.consumers, case.streams)
        async with _busy(server.url, created[::10]), AsyncExitStack() as stack:
            await asyncio.sleep(min(SETTLE, scale.seconds))
            without = await _window(client, server.pid, (), scale.seconds / 2)
            sidecars = [SidecarProcess(server.url, {"instance": f"i{i}"}) for i in range(case.replicas)]
            for sidecar in sidecars:
                await stack.enter_async_context(sidecar)
            await asyncio.sleep(min(LEARNT, scale.seconds * 1.5))
            costs = await _window(client, server.pid, sidecars, scale.seconds)
    progress(f"{case.name}: {costs.requests:.0f} requests/s, reads {[one.reads for one in costs.sidecars]}")
    return Costs(costs.requests - without.requests, costs.server - without.server, costs.sidecars, costs.writes)


class Takeover(Struct, frozen=True):
    """Seconds after a kill."""

    read: float
    """Until another replica has read the stream."""
    published: float
    """Until the overload is published."""


class _Takeovers:
    """Kills the reader of a stream, and measures how soon another one reads it, and publishes its overload."""

    def __init__(self, client: Client, url: str, consumer: Consumer, sidecars: list[SidecarProcess]) -> None:
        self._client, self._url, self._consumer, self._sidecars = client, url, consumer, sidecars
        self._events: list[dict[str, Any]] = []
        self._readings: list[tuple[float, str]] = []
        """When each was shared since the last kill, and by whom; first the last one before it."""
        self._came = asyncio.Event()
        self._answers = client.new_inbox()
        self.answered_at: list[float] = []

    async def run(self, kills: int, stack: AsyncExitStack) -> list[Takeover]:
        await self._client.subscribe(f"backpressure.v1.event.*.{self._consumer.subject}", cb=self._receive)
        await self._client.subscribe(f"{self._answers}.*", cb=self._answered)
        topic = topic_of(self._consumer.stream)
        await self._client.subscribe(f"backpressure.v1.internal.{topic}", cb=self._read)
        socket, asking = await PlainSocket.connect(self._url), asyncio.create_task(self._ask())
        try:
            return [await self._kill_once(socket, stack) for _ in range(kills)]
        finally:
            await cancel_and_wait((asking,))
            socket.close()

    async def _kill_once(self, socket: PlainSocket, stack: AsyncExitStack) -> Takeover:
        readers = [s for s in self._sidecars if await asyncio.to_thread(_is_reader, s, self._consumer.stream)]
        victim = random.choice(readers or self._sidecars)
        del self._readings[:-1]
        victim.kill()
        started = time.monotonic()
        socket.publish(self._consumer.subject, OVERLOAD)
        await self._status("warning")
        published = time.monotonic()
        took = Takeover(min(self._read_at(), published) - started, published - started)
        await socket.drain(self._consumer, OVERLOAD)
        await self._status("inactive")
        replacement = SidecarProcess(self._url, victim.settings)
        self._sidecars[self._sidecars.index(victim)] = await stack.enter_async_context(replacement)
        return took

    async def _status(self, status: str) -> None:
        async with asyncio.timeout(SEEN_WITHIN):
            while not self._events or self._events[-1]["to"] != status:
                self._came.clear()
                await self._came.wait()

    def _read_at(self) -> float:
        """When the first one came that is not of the process that was killed; never, if the event came before it."""
        (_, killed), *others = self._readings
        return next((at for at, sender in others if sender != killed), math.inf)

    async def _read(self, message: Msg) -> None:
        header = json.loads(message.data.partition(b"\n")[0])
        self._readings.append((time.monotonic(), header["sender"]))

    async def _receive(self, message: Msg) -> None:
        self._events.append(json.loads(message.data))
        self._came.set()

    async def _ask(self) -> None:
        """Asks without waiting: a question that a killed process had received is lost, and the next one is not."""
        subject = f"backpressure.v1.decide.gateway.{self._consumer.subject}"
        for n in itertools.count():
            await self._client.publish(subject, reply=f"{self._answers}.{n}")
            await asyncio.sleep(ASK_EVERY)

    async def _answered(self, message: Msg) -> None:
        self.answered_at.append(time.monotonic())

    @property
    def violations(self) -> int:
        """Events that do not lead on from the one before, or whose id came twice."""
        ids = Counter(str(event["id"]) for event in self._events)
        twice = len(self._events) - len(ids)
        pairs = itertools.pairwise(self._events)
        return twice + sum(bool(b["seq"] != a["seq"] + 1 or b["from"] != a["to"]) for a, b in pairs)

    @property
    def longest_silence(self) -> float:
        return max((b - a for a, b in itertools.pairwise(self.answered_at)), default=float("nan"))


async def _takeovers(scale: Scale) -> Figures:
    async with nats_server() as (server, client), AsyncExitStack() as stack:
        created = await create(client, STREAMS, STREAMS)
        settings = [{"instance": f"i{i}", "policies": [POLICY]} for i in range(3)]
        sidecars = [await stack.enter_async_context(SidecarProcess(server.url, each)) for each in settings]
        await asyncio.sleep(min(SETTLE, scale.seconds))
        takeovers = _Takeovers(client, server.url, created[0], sidecars)
        times = await takeovers.run(scale.kills, stack)
    name = f"{scale.kills} kills of the reader, 3 replicas"
    read, seen = percentiles([each.read for each in times]), percentiles([each.published for each in times])
    return {
        f"{name}: until its stream is read again (p99)": Figure(read["p99"], "s", aim=READ_AGAIN, spread=read),
        f"{name}: until an overload that begins then is published (p99)": Figure(
            seen["p99"], "s", aim=READ_AGAIN + SEEN, spread=seen
        ),
        f"{name}: violations": Figure(takeovers.violations, "events", aim=0.0),
        f"{name}: longest silence of decisions": Figure(
            takeovers.longest_silence, "s", aim=0.3, note="asked by one client, 50 times a second"
        ),
    }


def cost_figures(costs: dict[Case, Costs]) -> Figures:
    figures: Figures = {}
    for case, each in costs.items():
        one = next(costs[other] for other in costs if other.streams == case.streams)
        figures |= {f"{case.name}: {what}": figure for what, figure in _beside(case, each, one).items()}
    return figures


def _beside(case: Case, each: Costs, one: Costs) -> Figures:
    """The figures of a case, beside those of one replica."""
    least, most = each.sidecars[0], each.sidecars[-1]
    cpu = {"sum": 100 * sum(one.cpu for one in each.sidecars)}
    reads = f"streams that each reads: {', '.join(str(one.reads) for one in each.sidecars)}"
    if each is one:
        return {
            "API requests": Figure(each.requests, "1/s"),
            "writes to the state bucket": Figure(each.writes, "1/s"),
            "server": Figure(100 * each.server, "% of a core"),
            "sidecar": Figure(100 * most.cpu, "% of a core"),
        }
    more = 0.2 * (case.replicas - 1)
    peer = "one replica"
    follows = least.reads == 0 and most.reads == case.streams
    return {
        "API requests": Figure(each.requests, "1/s", one.requests, peer, aim=1.2, aim_of_ratio=True),
        "writes to the state bucket": Figure(each.writes, "1/s", one.writes, peer, aim=1.2, aim_of_ratio=True),
        "server": Figure(100 * each.server, "% of a core", 100 * one.server, peer, aim=120 * one.server + more),
        "the one that reads least": Figure(
            100 * least.cpu,
            "% of a core",
            100 * most.cpu,
            "the one that reads most",
            aim=1 / 3 if follows else None,
            aim_of_ratio=True,
            spread=cpu,
            note=reads,
        ),
    }


async def _run(scale: Scale) -> Figures:
    costs = {case: await _costs(case, scale) for case in scale.cases}
    return cost_figures(costs) | await _takeovers(scale)


def main(size: Size = "full") -> Figures:
    return asyncio.run(_run(SCALES[size]))


if __name__ == "__main__":
    command(main)
