"""The programs of one run, each a process of its own: started, listened to, and ended."""

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

END_WITHIN = 5.0

Heard = Callable[[dict[str, Any]], None]


class Ports(Struct, frozen=True):
    gateway: int
    sidecar: int


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class DemoProcesses:
    """The sidecar, the gateway, the router and the callers around one NATS server."""

    def __init__(self, scene: Scenario, url: str) -> None:
        self.scene, self.url = scene, url
        self.ports = Ports(free_port(), free_port())
        self._here = tempfile.TemporaryDirectory(prefix="nats-backpressure-demo-")
        self._processes: list[asyncio.subprocess.Process] = []
        self._readers: list[asyncio.Task[None]] = []

    async def sidecar(self) -> None:
        config = Path(self._here.name) / "config.yaml"
        config.write_text(json.dumps(settings(self.scene, self.ports.sidecar)))  # JSON is YAML
        await self._start("nats_backpressure", "run", "--config", str(config))

    async def router(self, heard: Heard) -> asyncio.subprocess.Process:
        return await self._start("nats_backpressure.demo.worker", self._shown, self.url, heard=heard)

    async def gateway(self) -> None:
        page = f"http://127.0.0.1:{self.ports.sidecar}/metrics"
        await self._start("nats_backpressure.demo.gateway", self._shown, self.url, page, str(self.ports.gateway))

    async def callers(self, heard: Heard) -> asyncio.subprocess.Process:
        return await self._start(
            "nats_backpressure.demo.load_generator", self._shown, str(self.ports.gateway), heard=heard
        )

    async def end(self) -> None:
        for process in reversed(self._processes):
            if process.returncode is None:
                process.terminate()
        for process in self._processes:
            try:
                async with asyncio.timeout(END_WITHIN):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        await asyncio.gather(*self._readers)
        self._here.cleanup()

    @property
    def _shown(self) -> str:
        return msgspec.json.encode(self.scene).decode()

    async def _start(self, module: str, *arguments: str, heard: Heard | None = None) -> asyncio.subprocess.Process:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("NATS_", "BACKPRESSURE_"))}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            *arguments,
            env=environment | {"NATS_URL": self.url},
            stdout=asyncio.subprocess.PIPE if heard else None,
            limit=2**22,
        )
        self._processes.append(process)
        if heard and process.stdout:
            self._readers.append(asyncio.create_task(_listen(process.stdout, heard)))
        return process


async def _listen(lines: asyncio.StreamReader, heard: Heard) -> None:
    async for line in lines:
        heard(json.loads(line))


def settings(scene: Scenario, port: int) -> dict[str, Any]:
    """Marks in proportion to what this router can do: the defaults are for one that does more."""
    hands, second = scene.hands, scene.capacity
    policy: dict[str, Any] = {
        "subjects": [SUBJECT],
        "pending": {"warn": 0.2 * second, "critical": 0.5 * second, "overload": scene.target_drain * second},
        "inflight": {"warn": 1.5 * hands, "critical": 2 * hands, "overload": 3 * hands},
        "latency_p95": {"warn": 500, "critical": 1000, "overload": 2000},
        "drain_seconds": {"warn": 0.5, "critical": 1, "overload": scene.target_drain},
        "retry_after_seconds": 10,
    }
    if scene.mode == "adaptive":
        policy["admission"] = {"mode": "adaptive", "target_drain_seconds": scene.target_drain}
    if scene.policy is not None:
        policy = {"subjects": [SUBJECT], **scene.policy}
    return {
        "policies": [policy],
        "http": {"host": "127.0.0.1", "port": port},
        "log": {"level": "error"},
    }
