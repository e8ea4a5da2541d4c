"""Measures how long an overload goes unseen, from the publish that crosses the mark to the event at a subscriber.

1,000 idle consumers in 4 streams, default settings, the sidecar as a process. A crossing: a burst brings one of them
above the overload mark of `pending`, at a random moment. The time runs from before the burst is handed to the kernel
until the status event is received. Then the consumer is drained, the recovery awaited, and some idle time passes. Two
such walks go on at a time, each in streams of its own. Beside: a program that asks `js.consumer_info` of each
consumer in turn, with the same budget of API requests; there nothing is drained, so its crossings may follow each
other closely.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence

import nats
from msgspec import Struct
from nats.aio.client import Client
from nats.aio.msg import Msg

from benchmarks.consumers import Consumer, PlainSocket, create
from benchmarks.figures import Figure, Figures, Size, command, percentile, percentiles, progress
from benchmarks.processes import SidecarProcess, nats_server

CROSSING = 1001
"""Messages of a burst: one above the default overload mark of `pending`."""
BUDGET = 50.0
"""API requests per second: the default of `observe.api_requests_per_second`."""
IDLE = (0.7, 1.7)
"""Seconds between a recovery and the next crossing: a random time in this range."""
WITHIN = 60.0
"""Seconds after which a crossing counts as missed."""
WALKS = 2


class Scale(Struct, frozen=True):
    consumers: int
    streams: int
    crossings: int


SCALES: dict[Size, Scale] = {"full": Scale(1000, 4, 200), "quick": Scale(400, 4, 16), "tiny": Scale(8, 2, 2)}


class Events:
    """The status events that are received: the time of the next one of each subject, and what it changed to."""

    def __init__(self) -> None:
        self._awaited: dict[str, tuple[bool, asyncio.Future[float]]] = {}

    async def listen(self, client: Client) -> None:
        await client.subscribe("backpressure.v1.event.>", cb=self._receive)
        await client.flush()

    def next(self, subject: str, calm: bool) -> asyncio.Future[float]:
        """When the next event to `inactive` (`calm`), or to any other status, is received."""
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._awaited[subject] = (calm, future)
        return future

    async def _receive(self, message: Msg) -> None:
        at, event = time.monotonic(), json.loads(message.data)
        if event["type"] not in ("backpressure_active", "backpressure_warning", "recovery"):
            return
        calm, future = self._awaited.get(event["subject"], (False, None))
        if future is not None and not future.done() and (event["to"] == "inactive") is calm:
            future.set_result(at)


async def _walk(
    consumers: Sequence[Consumer], crossings: int, socket: PlainSocket, events: Events, dice: random.Random
) -> list[float]:
    """Seconds until each crossing was seen; infinite where it was not."""
    seconds: list[float] = []
    for n in range(crossings):
        consumer = dice.choice(consumers)
        await asyncio.sleep(dice.uniform(*IDLE))
        seen = events.next(consumer.subject, calm=False)
        started = time.monotonic()
        socket.publish(consumer.subject, CROSSING)
        try:
            seconds.append(await asyncio.wait_for(seen, WITHIN) - started)
        except TimeoutError:
            seconds.append(float("inf"))
        recovered = events.next(consumer.subject, calm=True)
        await socket.drain(consumer, CROSSING)
        if seconds[-1] < WITHIN:
            await asyncio.wait_for(recovered, WITHIN)
        if n % 25 == 24:
            progress(f"{n + 1} crossings of {crossings} in one of {WALKS} walks")
    return seconds


async def delays(scale: Scale) -> list[float]:
    async with nats_server() as (server, client):
        consumers = await create(client, scale.consumers, scale.streams)
        async with SidecarProcess(server.url):
            events = Events()
            await events.listen(client)
            walks = []
            for n in range(WALKS):
                mine = [consumer for consumer in consumers if int(consumer.stream[1:]) % WALKS == n]
                socket = await PlainSocket.connect(server.url)
                walks.append(_walk(mine, scale.crossings // WALKS, socket, events, random.Random(n)))
            return [seconds for walk in await asyncio.gather(*walks) for seconds in walk]


async def _naive(scale: Scale) -> list[float]:
    """The same crossings, seen by a program that asks about one consumer after the other."""
    async with nats_server() as (server, client):
        consumers = await create(client, scale.consumers, scale.streams)
        arguments = [server.url, str(scale.consumers), str(scale.streams)]
        poller = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.detection", "--poll", *arguments), stdout=subprocess.PIPE
        )
        assert poller.stdout is not None
        try:
            await poller.stdout.readline()  # it is connected
            dice, cycle = random.Random(9), scale.consumers / BUDGET
            chosen = dice.sample(consumers, min(scale.crossings, scale.consumers))
            socket, crossed = await PlainSocket.connect(server.url), {}
            for consumer in chosen:
                await asyncio.sleep(cycle / len(chosen) * dice.uniform(0.5, 1.5))
                crossed[f"{consumer.stream} {consumer.name}"] = time.monotonic()
                socket.publish(consumer.subject, CROSSING)
            seconds: list[float] = []
            while len(seconds) < len(chosen):
                line = (await asyncio.wait_for(poller.stdout.readline(), 2 * cycle + 10)).decode()
                name, _, at = line.rstrip().rpartition(" ")
                seconds.append(float(at) - crossed[name])
            return seconds
        finally:
            poller.kill()
            await poller.wait()


async def poll(url: str, consumers: int, streams: int) -> None:
    """The naive poller, a process of its own: prints each consumer with the time at which it was first seen full."""
    async with await nats.connect(url) as client:
        js = client.jetstream()
        print("ready", flush=True)
        full: set[tuple[str, str]] = set()
        due = time.monotonic()
        while True:
            for n in range(consumers // streams):
                for s in range(streams):
                    due += 1 / BUDGET
                    await asyncio.sleep(due - time.monotonic())
                    info = await js.consumer_info(f"S{s}", f"c{n}")
                    at, key = time.monotonic(), (f"S{s}", f"c{n}")
                    if info.num_pending >= CROSSING and key not in full:
                        full.add(key)
                        print(*key, at, flush=True)


def main(size: Size = "full") -> Figures:
    scale = SCALES[size]
    progress(f"{scale.crossings} crossings among {scale.consumers} consumers")
    ours = asyncio.run(delays(scale))
    progress("the same, seen by one consumer_info after the other")
    naive = asyncio.run(_naive(scale))
    ours, naive = [1000 * each for each in ours], [1000 * each for each in naive]
    peer = "js.consumer_info of each in turn"
    spread = {f"p{share}": percentile(ours, share / 100) for share in range(10, 100, 10)} | percentiles(ours)
    theirs = {f"p{share}": percentile(naive, share / 100) for share in range(10, 100, 10)} | percentiles(naive)
    figures = {
        f"an overload is seen after, {name}": Figure(spread[part], "ms", theirs[part], peer, aim=aim)
        for name, part, aim in (("p50", "p50", 100.0), ("p99", "p99", 250.0), ("worst", "worst", None))
    }
    return figures | {
        "an overload is seen after, all": Figure(spread["p50"], "ms", spread=spread),
        "an overload is seen after, all of the peer": Figure(theirs["p50"], "ms", spread=theirs),
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--poll"]:
        asyncio.run(poll(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
    else:
        command(main)
