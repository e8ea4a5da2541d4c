"""Runs the demo once: creates the stream, starts the processes, and collects rows and events until the end."""

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

from nats_backpressure.demo.processes import DemoProcesses
from nats_backpressure.demo.scenario import CONSUMER, PREFIX, REPORT_INTERVAL, STREAM, SUBJECT, Scenario
from nats_backpressure.demo.stream import create_stream
from nats_backpressure.demo.summary import Row, RunData

ROW_INTERVAL = 0.25
"""Seconds between two rows."""
READY_TIMEOUT = 20.0
"""Seconds within which the sidecar and the gateway must answer."""


class DemoOutput(Protocol):
    """Where a run prints what happens."""

    def print_row(self, row: Row) -> None: ...
    def print_event(self, at: float, event: dict[str, Any]) -> None: ...
    def print_heading(self, at: float, text: str) -> None: ...


class CannotRun(Exception):
    """A process of the demo did not start; the text says which."""


async def run_demo(scenario: Scenario, url: str, output: DemoOutput) -> RunData:
    """Raises CannotRun."""
    processes = DemoProcesses(scenario, url)
    async with await nats.connect(url) as nc:
        try:
            return await DemoRun(scenario, nc, processes, output).run()
        finally:
            await processes.stop()


class DemoRun:
    def __init__(self, scenario: Scenario, nc: Client, processes: DemoProcesses, output: DemoOutput) -> None:
        self._scenario, self._nc, self._processes, self._output = scenario, nc, processes, output
        self.data = RunData(scenario)
        self._start = math.inf
        self._before = Counter[str]()
        """Counts of a router that was killed."""

    async def run(self) -> RunData:
        scenario = self._scenario
        js = self._nc.jetstream()
        await create_stream(js, scenario)
        await self._nc.subscribe(f"{PREFIX}.event.*.{SUBJECT}", cb=self._on_event)
        await self._nc.subscribe(f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{STREAM}.>", cb=self._on_max_deliveries)
        await self._processes.sidecar()
        await self._wait_for_sidecar()
        router = await self._processes.router(self._on_worker_report)
        await self._processes.gateway()
        await self._wait_for_gateway()
        self._start = time.monotonic()
        self._output.print_heading(0.0, f"calm: {scenario.calm_load * scenario.capacity:.0f} requests a second")
        rows = asyncio.create_task(self._collect_rows())
        phases = [asyncio.create_task(self._print_phases()), asyncio.create_task(self._crash(router))]
        load = await self._processes.load_generator(self._on_load_report)
        await load.wait()
        await self._wait_until_settled()
        running = {*phases, rows}
        while running:  # before Python 3.12 asyncio.wait_for loses a cancellation that comes with its result
            for task in running:
                task.cancel()
            _, running = await asyncio.wait(running, timeout=2)
        info = await js.consumer_info(STREAM, CONSUMER)
        self.data.unfinished = (info.num_pending or 0) + (info.num_ack_pending or 0)
        url = f"http://127.0.0.1:{self._processes.ports.sidecar}/metrics"
        self.data.metrics_page = await asyncio.to_thread(_read_page, url)
        return self.data

    async def _wait_until_settled(self) -> None:
        until = time.monotonic() + self._scenario.settle
        while time.monotonic() < until:
            status = await self._status()
            if status and status["status"] == "inactive" and not _open_messages(status):
                break
            await asyncio.sleep(0.1)
        await asyncio.sleep(2 * REPORT_INTERVAL)  # for the last reports of the processes

    async def _crash(self, router: asyncio.subprocess.Process) -> None:
        if self._scenario.crash_at is None:
            return
        await asyncio.sleep(self._scenario.crash_at)
        js = self._nc.jetstream()
        while not (await js.consumer_info(STREAM, CONSUMER)).num_ack_pending:  # a crash in the middle of work
            await asyncio.sleep(0.02)
        self._output.print_heading(self._now, "the router is killed")
        router.kill()
        await asyncio.sleep(self._scenario.restart_after)
        self._before = Counter(self.data.worker)
        self._output.print_heading(self._now, "the router is started again")
        await self._processes.router(self._on_worker_report)

    @property
    def _now(self) -> float:
        return time.monotonic() - self._start

    async def _print_phases(self) -> None:
        scenario = self._scenario
        await asyncio.sleep(scenario.calm)
        self._output.print_heading(
            self._now,
            f"overload: {scenario.overload * scenario.capacity:.0f} requests a second,"
            f" for a router that can do {scenario.capacity:.0f}",
        )
        await asyncio.sleep(scenario.seconds)
        self._output.print_heading(self._now, "the overload ends")

    async def _wait_for_sidecar(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT
        while await self._status() is None:
            if time.monotonic() > deadline:
                raise CannotRun(f"the sidecar did not answer within {READY_TIMEOUT:.0f} s")
            await asyncio.sleep(0.05)

    async def _wait_for_gateway(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT
        while time.monotonic() < deadline:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self._processes.ports.gateway)
                writer.close()
                return
            await asyncio.sleep(0.05)
        raise CannotRun(f"the gateway did not start within {READY_TIMEOUT:.0f} s")

    async def _collect_rows(self) -> None:
        last, callers, done = self._now, Counter[str](), 0
        while True:
            await asyncio.sleep(ROW_INTERVAL)
            at, status = self._now, await self._status()
            took, now = max(0.001, at - last), Counter(self.data.callers)
            metrics = status["metrics"] if status else {}
            row = Row(
                at=round(at, 3),
                offered=round((now["offered"] - callers["offered"]) / took, 1),
                admitted=round((now["admitted"] - callers["admitted"]) / took, 1),
                shed=round((now["shed"] - callers["shed"]) / took, 1),
                processed=round((self.data.worker["done"] - done) / took, 1),
                backlog=metrics.get("pending_messages") or 0,
                inflight=metrics.get("inflight_messages") or 0,
                p95_ms=metrics.get("latency_p95_ms"),
                status=status["status"] if status else "unknown",
                admit_ratio=status["admit_ratio"] if status else 1.0,
            )
            last, callers, done = at, now, self.data.worker["done"]
            self.data.rows.append(row)
            self._output.print_row(row)

    async def _status(self) -> dict[str, Any] | None:
        try:
            reply = await self._nc.request(f"{PREFIX}.get.status.{SUBJECT}", b"", timeout=0.5)
        except (TimeoutError, NoRespondersError):
            return None
        if reply.headers and "Nats-Service-Error-Code" in reply.headers:
            return None
        status: dict[str, Any] = json.loads(reply.data)
        return status

    async def _on_event(self, message: Msg) -> None:
        event = json.loads(message.data)
        self.data.events.append(event)
        self._output.print_event(self._now, event)

    async def _on_max_deliveries(self, message: Msg) -> None:
        self.data.lost += 1

    def _on_worker_report(self, line: dict[str, Any]) -> None:
        at = line.pop("at") - self._start
        self.data.latencies += [(at, took) for took in line.pop("latencies")]
        self.data.worker = self._before + Counter(line)

    def _on_load_report(self, line: dict[str, Any]) -> None:
        line.pop("at")
        self.data.callers = Counter(line)


def _open_messages(status: dict[str, Any]) -> int:
    return (status["metrics"]["pending_messages"] or 0) + (status["metrics"]["inflight_messages"] or 0)


def _read_page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as response:
        return str(response.read().decode())
