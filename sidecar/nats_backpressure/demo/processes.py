"""Starts the demo's processes (sidecar, gateway, router, load generator), reads their reports and stops them."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from nats_backpressure.demo.scenario import SUBJECT, Scenario

STOP_TIMEOUT = 5.0
"""Seconds after SIGTERM before a process is killed."""

OnReport = Callable[[dict[str, Any]], None]
"""Called with each line that a process reports."""


class Ports(Struct, frozen=True):
    gateway: int
    sidecar: int


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class DemoProcesses:
    """The sidecar, the gateway, the router and the load generator of one run, on one NATS server."""

    def __init__(self, scenario: Scenario, url: str) -> None:
        self.scenario, self.url = scenario, url
        self.ports = Ports(free_port(), free_port())
        self._directory = tempfile.TemporaryDirectory(prefix="nats-backpressure-demo-")
        self._processes: list[asyncio.subprocess.Process] = []
        self._readers: list[asyncio.Task[None]] = []

    async def sidecar(self) -> None:
        config = Path(self._directory.name) / "config.yaml"
        config.write_text(json.dumps(sidecar_settings(self.scenario, self.ports.sidecar)))  # JSON is YAML
        await self._start("nats_backpressure", "run", "--config", str(config))

    async def router(self, on_report: OnReport) -> asyncio.subprocess.Process:
        return await self._start("nats_backpressure.demo.router", self._scenario, self.url, on_report=on_report)

    async def gateway(self) -> None:
        page = f"http://127.0.0.1:{self.ports.sidecar}/metrics"
        await self._start("nats_backpressure.demo.gateway", self._scenario, self.url, page, str(self.ports.gateway))

    async def load_generator(self, on_report: OnReport) -> asyncio.subprocess.Process:
        return await self._start(
            "nats_backpressure.demo.load_generator", self._scenario, str(self.ports.gateway), on_report=on_report
        )

    async def stop(self) -> None:
        for process in reversed(self._processes):
            if process.returncode is None:
                process.terminate()
        for process in self._processes:
            try:
                async with asyncio.timeout(STOP_TIMEOUT):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        await asyncio.gather(*self._readers)
        self._directory.cleanup()

    @property
    def _scenario(self) -> str:
        return msgspec.json.encode(self.scenario).decode()

    async def _start(
        self, module: str, *arguments: str, on_report: OnReport | None = None
    ) -> asyncio.subprocess.Process:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("NATS_", "BACKPRESSURE_"))}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            *arguments,
            env=environment | {"NATS_URL": self.url},
            stdout=asyncio.subprocess.PIPE if on_report else None,
            limit=2**22,
        )
        self._processes.append(process)
        if on_report and process.stdout:
            self._readers.append(asyncio.create_task(_read_reports(process.stdout, on_report)))
        return process


async def _read_reports(lines: asyncio.StreamReader, on_report: OnReport) -> None:
    async for line in lines:
        on_report(json.loads(line))


def sidecar_settings(scenario: Scenario, port: int) -> dict[str, Any]:
    """Marks in proportion to this router's capacity: the defaults are for a larger one."""
    workers, second = scenario.workers, scenario.capacity
    policy: dict[str, Any] = {
        "subjects": [SUBJECT],
        "pending": {"warn": 0.2 * second, "critical": 0.5 * second, "overload": scenario.target_drain * second},
        "inflight": {"warn": 1.5 * workers, "critical": 2 * workers, "overload": 3 * workers},
        "latency_p95": {"warn": 500, "critical": 1000, "overload": 2000},
        "drain_seconds": {"warn": 0.5, "critical": 1, "overload": scenario.target_drain},
        "retry_after_seconds": 10,
    }
    if scenario.mode == "adaptive":
        policy["admission"] = {"mode": "adaptive", "target_drain_seconds": scenario.target_drain}
    if scenario.policy is not None:
        policy = {"subjects": [SUBJECT], **scenario.policy}
    return {
        "policies": [policy],
        "http": {"host": "127.0.0.1", "port": port},
        "log": {"level": "error"},
    }
