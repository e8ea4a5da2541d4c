"""Starts the nats-server and the sidecar of a benchmark as processes, and reads what they cost (Linux)."""

from __future__ import annotations

import asyncio
import compileall
import json
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import nats
from msgspec import Struct
from nats.aio.client import Client

import nats_backpressure
from nats_backpressure.adapters.embedded_server import EmbeddedServer, end_with_parent
from nats_backpressure.demo.processes import free_port

CPU_CLOCK = 2
"""CPUCLOCK_SCHED of Linux: the kind of clock of a process."""
START_WITHIN = 120.0
"""Seconds until a sidecar has read every stream."""
STOP_WITHIN = 8.0
"""Seconds after SIGTERM before it is killed."""


def cpu_seconds(pid: int) -> float:
    """CPU time of a process since its start, user and system, of all its threads. From its clock (clock_getcpuclockid),
    which is exact: /proc has steps of 10 ms, a tenth of what is measured at rest."""
    return time.clock_gettime((~pid << 3) | CPU_CLOCK)


def memory_mib(pid: int | str) -> dict[str, float]:
    """Resident memory (`rss`), and with shared pages counted by their share (`pss`), in MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kib = {line.split(":")[0].lower(): int(line.split()[1]) for line in lines[1:]}
    return {"rss": kib["rss"] / 1024, "pss": kib["pss"] / 1024}


class Cost(Struct, frozen=True):
    """What two processes took in a while: shares of one core, and API requests per second."""

    sidecar: float
    server: float
    requests: float


async def api_requests(client: Client) -> int:
    """JetStream API requests of the account since the server started; this is one of them."""
    total: int = json.loads((await client.request("$JS.API.INFO")).data)["api"]["total"]
    return total


async def cost(client: Client, server: int, sidecar: int | None, seconds: float) -> Cost:
    """Measure for some seconds. `server` and `sidecar` are process ids."""

    async def totals() -> tuple[float, float, float, int]:
        requests = await api_requests(client)
        spent = cpu_seconds(sidecar) if sidecar is not None else 0.0
        return time.monotonic(), spent, cpu_seconds(server), requests

    before = await totals()
    await asyncio.sleep(seconds)
    after = await totals()
    took = after[0] - before[0]
    return Cost((after[1] - before[1]) / took, (after[2] - before[2]) / took, (after[3] - before[3] - 1) / took)


@asynccontextmanager
async def nats_server() -> AsyncIterator[tuple[EmbeddedServer, Client]]:
    """A server of our own and a connection to it; both are closed at the end, also after an error or Ctrl-C."""
    server = EmbeddedServer()
    await server.start()
    try:
        client = await nats.connect(server.url, pending_size=64 * 2**20)
        try:
            yield server, client
        finally:
            with suppress(Exception):
                await client.close()
    finally:
        await server.stop()


class SidecarProcess:
    """`nats-backpressure run` with its default settings (or `settings`), ready inside `async with`, ended after it.

    It ends with this process too, however that ends (Linux).
    """

    def __init__(self, url: str, settings: dict[str, Any] | None = None, *, probe: bool = False) -> None:
        """`probe`: with a probe in its event loop, whose holds are in the file `holds`."""
        self.url, self.port = url, free_port()
        self._module = "benchmarks.loop_probe" if probe else "nats_backpressure"
        self.settings = settings or {}
        self._settings: dict[str, Any] = {
            "http": {"host": "127.0.0.1", "port": self.port},
            "log": {"level": "warning"},
            **self.settings,
        }
        self._directory = tempfile.TemporaryDirectory(prefix="nats-backpressure-bench-")
        self._process: asyncio.subprocess.Process | None = None
        self.started_in = 0.0
        """Seconds from the start of the process until every stream was read."""

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None, "not started"
        self._process.kill()

    @property
    def holds(self) -> Path:
        return Path(self._directory.name) / "holds"

    @property
    def log(self) -> Path:
        return Path(self._directory.name) / "log"

    @property
    def page(self) -> str:
        return f"http://127.0.0.1:{self.port}/metrics"

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _start(self) -> None:
        place = Path(self._directory.name)
        (place / "config.yaml").write_text(json.dumps(self._settings))  # JSON is YAML
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("NATS_", "BACKPRESSURE_"))}
        # As where it is installed: what is compiled at each start stays in the memory of the process.
        compileall.compile_dir(Path(nats_backpressure.__file__).parent, quiet=1)
        started = time.monotonic()
        with self.log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", self._module, "run", "--config", str(place / "config.yaml")),
                env=environment | {"NATS_URL": self.url, "BENCH_HOLDS": str(self.holds)},
                stdout=log,
                stderr=log,
                preexec_fn=end_with_parent,
            )
        while not await asyncio.to_thread(self._observing):
            if self._process.returncode is not None or time.monotonic() - started > START_WITHIN:
                raise RuntimeError(f"the sidecar does not start: {self.log.read_text()[-2000:]}")
            await asyncio.sleep(0.05)
        self.started_in = time.monotonic() - started

    def _observing(self) -> bool:
        with suppress(OSError, ValueError):
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2) as reply:
                return bool(json.load(reply).get("observing"))
        return False

    async def _stop(self) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(STOP_WITHIN):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        self._directory.cleanup()
