"""The sidecar as a process, and its messages as another program sees them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError

from tests.support.servers import free_port

SUBJECT = "beamline.router.v1.decide"
WAIT_SECONDS = 15.0
"""Seconds a test waits for an event; it usually comes much faster."""
STARTS_WITHIN = 60.0
"""Seconds a test waits for a process that starts or ends; a busy machine takes more than 15 for it."""
QUICK = {"observe": {"min_interval_ms": 50, "stale_after_seconds": 1, "unknown_after_seconds": 2}}
"""Settings under which a status is stale or unknown within seconds: for tests that wait for that. On a busy machine a
process may read nothing for 2 s, which adds `monitoring_lost` and `monitoring_restored` to the events."""
UNHURRIED = {"observe": {"min_interval_ms": 50, "stale_after_seconds": 10, "unknown_after_seconds": 30}}
"""Settings for all other tests: a process that reads nothing for some seconds, or starts slowly, publishes no event
about that."""


class Sidecar:
    """`nats-backpressure run` with a config of its own; its log goes to a file."""

    def __init__(self, where: Path, url: str | None, config: dict[str, Any] | None = None, *arguments: str) -> None:
        self.port = free_port()
        self.log_path = where / f"sidecar-{self.port}.log"
        self._config = where / f"config-{self.port}.yaml"
        self.configure(config or {})
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("NATS_")}
        if url is not None:
            self.environment["NATS_URL"] = url
        self._arguments = arguments
        self.process: asyncio.subprocess.Process | None = None

    def configure(self, config: dict[str, Any]) -> None:
        """Write its file; a running one follows it, and takes it at once on SIGHUP."""
        http = {"host": "127.0.0.1", "port": self.port}
        self._config.write_text(json.dumps({"http": http, "log": {"level": "debug", "format": "json"}} | config))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()

    async def start(self) -> None:
        with self.log_path.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "nats_backpressure", "run", "--config", str(self._config), *self._arguments),
                env=self.environment,
                stdout=log,
                stderr=log,
            )

    async def kill(self) -> None:
        """kill -9. Harmless when it has already ended."""
        if self.process is not None and self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()

    async def end(self, how: signal.Signals = signal.SIGTERM) -> tuple[int, float]:
        """Its exit code after a signal, and the seconds that took."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(how)
        async with asyncio.timeout(STARTS_WITHIN):
            return await self.process.wait(), time.monotonic() - began

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.returncode is None

    def pause(self) -> None:
        """SIGSTOP: its connections stay open, and it does nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    async def get(self, path: str) -> tuple[int, str]:
        return await asyncio.to_thread(_get, f"http://127.0.0.1:{self.port}{path}")

    async def ready(self, **facts: Any) -> dict[str, Any]:
        """Wait until /readyz has all of these fields."""

        async def look() -> dict[str, Any] | None:
            assert self.process is not None
            assert self.process.returncode is None, self.log
            with suppress(OSError):
                _, body = await self.get("/readyz")
                readiness: dict[str, Any] = json.loads(body)
                if all(readiness.get(key) == value for key, value in facts.items()):
                    return readiness
            return None

        result: dict[str, Any] = await eventually(look, f"/readyz with {facts}", STARTS_WITHIN)
        return result

    async def observing(self) -> Self:
        await self.ready(observing=True)
        return self


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def eventually(look: Any, what: str, seconds: float = WAIT_SECONDS) -> Any:
    """The first true thing `look` gives; fails after `seconds` with what was waited for. A request of `look` that is
    not answered is sent again."""
    deadline = time.monotonic() + seconds
    result: Any = None
    while time.monotonic() < deadline:
        try:
            result = await look()
        except (NatsTimeoutError, NoRespondersError) as error:
            result = error
        else:
            if result:
                return result
        await asyncio.sleep(0.02)
    raise AssertionError(f"waited {seconds} s for {what}; last: {result!r}")


class Wire:
    """The public wire, read as any client would: requests, events live and stored, state in KV."""

    def __init__(self, nc: Client, name: str = "backpressure") -> None:
        self.nc, self.name = nc, name
        self.live: list[dict[str, Any]] = []

    async def listen(self) -> Self:
        await self.nc.subscribe(f"{self.name}.v1.event.>", cb=self.take)
        await self.nc.request("$JS.API.INFO", timeout=10)  # proof that the server knows it; a flush is none
        return self

    async def take(self, message: Msg) -> None:
        self.live.append(json.loads(message.data))

    async def raw(self, endpoint: str, payload: bytes = b"") -> Msg:
        return await self.nc.request(f"{self.name}.v1.{endpoint}", payload, timeout=5)

    async def ask(self, endpoint: str, payload: dict[str, Any] | None = None) -> dict[str, Any]:
        reply = await self.raw(endpoint, b"" if payload is None else json.dumps(payload).encode())
        assert not (reply.headers or {}).get("Nats-Service-Error-Code"), reply.headers
        result: dict[str, Any] = json.loads(reply.data)
        return result

    async def refused(self, endpoint: str, payload: bytes = b"") -> str:
        """The code of the service error it must answer with."""
        reply = await self.raw(endpoint, payload)
        assert reply.data == b""
        return (reply.headers or {})["Nats-Service-Error-Code"]

    async def status(self, subject: str = SUBJECT, **facts: Any) -> dict[str, Any]:
        """Wait until the status has all of these fields."""

        async def look() -> dict[str, Any] | None:
            with suppress(Exception):
                status = await self.ask(f"get.status.{subject}")
                if all(status.get(key) == value for key, value in facts.items()):
                    return status
            return None

        result: dict[str, Any] = await eventually(look, f"status of {subject} with {facts}")
        return result

    async def event(self, kind: str, n: int = 1, seconds: float = WAIT_SECONDS) -> dict[str, Any]:
        """Wait until the n-th event of a type came over core NATS."""

        async def look() -> dict[str, Any] | None:
            events = [event for event in self.live if event["type"] == kind]
            return events[n - 1] if len(events) >= n else None

        result: dict[str, Any] = await eventually(look, f"{kind} number {n}", seconds)
        return result

    async def stored(self) -> list[dict[str, Any]]:
        """Every event in the stream, in order; one that came live may be stored a moment later."""
        js = self.nc.jetstream()
        stream = f"{self.name.upper()}_EVENTS"
        received = {event["id"] for event in self.live}
        events: list[dict[str, Any]] = []

        async def look() -> bool:
            info = await js.stream_info(stream)
            first, last = info.state.first_seq, info.state.last_seq
            events[:] = [json.loads((await js.get_msg(stream, n)).data or b"") for n in range(max(1, first), last + 1)]
            return received <= {event["id"] for event in events}

        await eventually(look, "what came live to be stored")
        return events

    async def waiting(self, n: int, subject: str = SUBJECT) -> None:
        """Wait until the sidecar has seen so many messages wait: its first reading may come in the middle of them."""

        async def look() -> bool:
            status = await self.ask(f"get.status.{subject}")
            return bool(status["metrics"]["pending_messages"] == n)

        await eventually(look, f"{n} messages seen waiting")

    async def state(self, subject: str = SUBJECT) -> dict[str, Any]:
        kv = await self.nc.jetstream().key_value(f"{self.name}_state")
        result: dict[str, Any] = json.loads((await kv.get(subject)).value or b"")
        return result
