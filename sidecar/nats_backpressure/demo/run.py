"""One run, from an empty server to its summary; whoever watches is told row by row and event by event."""

from __future__ import annotations

import asyncio
import json
import math
import time
import urllib.request
from collections import Counter
from contextlib import suppress
from typing import Any, Protocol

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.js.api import AckPolicy, ConsumerConfig

from nats_backpressure.demo.processes import DemoProcesses
from nats_backpressure.demo.scenario import CONSUMER, PREFIX, REPORT_EVERY, STREAM, SUBJECT, Scenario
from nats_backpressure.demo.summary import Row, RunData

ROW_EVERY = 0.25
READY_WITHIN = 20.0


class Audience(Protocol):
    def row(self, row: Row) -> None: ...
    def event(self, at: float, event: dict[str, Any]) -> None: ...
    def say(self, at: float, text: str) -> None: ...


class CannotRun(Exception):
    """A program of the demo did not come up; the text says which."""


async def run_demo(scene: Scenario, url: str, audience: Audience) -> RunData:
    """Raises CannotPlay."""
    cast = DemoProcesses(scene, url)
    async with await nats.connect(url) as nc:
        try:
            return await DemoRun(scene, nc, cast, audience).run()
        finally:
            await cast.end()


class DemoRun:
    def __init__(self, scene: Scenario, nc: Client, cast: DemoProcesses, audience: Audience) -> None:
        self._scene, self._nc, self._cast, self._audience = scene, nc, cast, audience
        self.take = RunData(scene)
        self._began = math.inf
        self._before = Counter[str]()
        """What a router that was killed had done."""

    async def run(self) -> RunData:
        scene = self._scene
        js = self._nc.jetstream()
        await js.add_stream(name=STREAM, subjects=[SUBJECT])
        config = ConsumerConfig(
            durable_name=CONSUMER,
            ack_policy=AckPolicy.EXPLICIT,
            max_ack_pending=1000,
            ack_wait=scene.ack_wait,
            max_deliver=scene.max_deliver,
        )
        await js.add_consumer(STREAM, config)
        await self._nc.subscribe(f"{PREFIX}.event.*.{SUBJECT}", cb=self._event)
        await self._nc.subscribe(f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{STREAM}.>", cb=self._gave_up)
        await self._cast.sidecar()
        await self._until_answered()
        router = await self._cast.router(self._worked)
        await self._cast.gateway()
        await self._until_open()
        self._began = time.monotonic()
        self._audience.say(0.0, f"calm: {scene.share_in_calm * scene.capacity:.0f} requests a second")
        rows = asyncio.create_task(self._rows())
        turns = [asyncio.create_task(self._turns()), asyncio.create_task(self._crash(router))]
        callers = await self._cast.callers(self._called)
        await callers.wait()
        await self._settled()
        left = {*turns, rows}
        while left:  # before Python 3.12 asyncio.wait_for loses a cancellation that comes with its answer
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=2)
        info = await js.consumer_info(STREAM, CONSUMER)
        self.take.left = (info.num_pending or 0) + (info.num_ack_pending or 0)
        self.take.page = await asyncio.to_thread(_read, f"http://127.0.0.1:{self._cast.ports.sidecar}/metrics")
        return self.take

    async def _settled(self) -> None:
        until = time.monotonic() + self._scene.settle
        while time.monotonic() < until:
            status = await self._status()
            if status and status["status"] == "inactive" and not _work(status):
                break
            await asyncio.sleep(0.1)
        await asyncio.sleep(2 * REPORT_EVERY)  # for the programs' last lines

    async def _crash(self, router: asyncio.subprocess.Process) -> None:
        if self._scene.crash_at is None:
            return
        await asyncio.sleep(self._scene.crash_at)
        self._audience.say(self._now, "the router is killed")
        router.kill()
        await asyncio.sleep(self._scene.crash_for)
        self._before = Counter(self.take.worker)
        self._audience.say(self._now, "the router is back")
        await self._cast.router(self._worked)

    @property
    def _now(self) -> float:
        return time.monotonic() - self._began

    async def _turns(self) -> None:
        scene = self._scene
        await asyncio.sleep(scene.calm)
        self._audience.say(
            self._now,
            f"overload: {scene.overload * scene.capacity:.0f} requests a second,"
            f" where the router can do {scene.capacity:.0f}",
        )
        await asyncio.sleep(scene.seconds)
        self._audience.say(self._now, "calm again")

    async def _until_answered(self) -> None:
        deadline = time.monotonic() + READY_WITHIN
        while await self._status() is None:
            if time.monotonic() > deadline:
                raise CannotRun(f"the sidecar did not answer within {READY_WITHIN:.0f} s")
            await asyncio.sleep(0.05)

    async def _until_open(self) -> None:
        deadline = time.monotonic() + READY_WITHIN
        while time.monotonic() < deadline:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self._cast.ports.gateway)
                writer.close()
                return
            await asyncio.sleep(0.05)
        raise CannotRun(f"the gateway did not come up within {READY_WITHIN:.0f} s")

    async def _rows(self) -> None:
        last, callers, done = self._now, Counter[str](), 0
        while True:
            await asyncio.sleep(ROW_EVERY)
            at, status = self._now, await self._status()
            took, now = max(0.001, at - last), Counter(self.take.callers)
            metrics = status["metrics"] if status else {}
            row = Row(
                at=round(at, 3),
                offered=round((now["offered"] - callers["offered"]) / took, 1),
                admitted=round((now["admitted"] - callers["admitted"]) / took, 1),
                shed=round((now["shed"] - callers["shed"]) / took, 1),
                processed=round((self.take.worker["done"] - done) / took, 1),
                backlog=metrics.get("pending_messages") or 0,
                inflight=metrics.get("inflight_messages") or 0,
                p95_ms=metrics.get("latency_p95_ms"),
                status=status["status"] if status else "unknown",
                admit_ratio=status["admit_ratio"] if status else 1.0,
            )
            last, callers, done = at, now, self.take.worker["done"]
            self.take.rows.append(row)
            self._audience.row(row)

    async def _status(self) -> dict[str, Any] | None:
        try:
            reply = await self._nc.request(f"{PREFIX}.get.status.{SUBJECT}", b"", timeout=0.5)
        except (TimeoutError, NoRespondersError):
            return None
        if reply.headers and "Nats-Service-Error-Code" in reply.headers:
            return None
        found: dict[str, Any] = json.loads(reply.data)
        return found

    async def _event(self, message: Msg) -> None:
        event = json.loads(message.data)
        self.take.events.append(event)
        self._audience.event(self._now, event)

    async def _gave_up(self, message: Msg) -> None:
        self.take.lost += 1

    def _worked(self, line: dict[str, Any]) -> None:
        at = line.pop("at") - self._began
        self.take.latencies += [(at, took) for took in line.pop("latencies")]
        self.take.worker = self._before + Counter(line)

    def _called(self, line: dict[str, Any]) -> None:
        line.pop("at")
        self.take.callers = Counter(line)


def _work(status: dict[str, Any]) -> int:
    return (status["metrics"]["pending_messages"] or 0) + (status["metrics"]["inflight_messages"] or 0)


def _read(page: str) -> str:
    with urllib.request.urlopen(page, timeout=5) as answer:
        return str(answer.read().decode())
