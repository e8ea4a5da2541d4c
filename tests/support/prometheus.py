"""A real Prometheus, and its promtool: of the machine, or of the Debian package."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.debian import unpacked
from tests.support.servers import free_port
from tests.support.sidecar import eventually

STARTS_WITHIN = 60.0
EVALUATES_WITHIN = 60.0
"""Seconds: four intervals of the rules, and a busy machine."""


def program(name: str) -> Path:
    """`prometheus` or `promtool`."""
    path = shutil.which(name)
    return Path(path) if path else unpacked("prometheus") / "usr/bin" / name


def promtool(*arguments: str | Path, given: str | None = None) -> str:
    """What it prints. Raises AssertionError with that where it finds a mistake."""
    command = [program("promtool"), *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class Prometheus:
    """A process that scrapes sidecars once a second, with the rules of a file."""

    def __init__(self, where: Path, rules: Path, *targets: str) -> None:
        self._where, self.url = where, f"http://127.0.0.1:{free_port()}"
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": [{"job_name": "nats-backpressure", "static_configs": [{"targets": list(targets)}]}],
        }
        where.mkdir(parents=True)
        (where / "prometheus.yaml").write_text(json.dumps(config))
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        options = {
            "config.file": self._where / "prometheus.yaml",
            "storage.tsdb.path": self._where / "data",
            "web.listen-address": self.url.removeprefix("http://"),
        }
        with (self._where / "log").open("wb") as log:
            arguments = [f"--{name}={value}" for name, value in options.items()]
            self._process = await asyncio.create_subprocess_exec(
                program("prometheus"), *arguments, stdout=log, stderr=log
            )
        await eventually(self._is_ready, "Prometheus to start", STARTS_WITHIN)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """The rows of an expression now."""
        return await self._get(f"/api/v1/query?{urllib.parse.urlencode({'query': expression})}", "result")

    async def labels(self, label: str, of: str) -> list[Any]:
        """The values of a label of a metric."""
        return await self._get(f"/api/v1/label/{label}/values?{urllib.parse.urlencode({'match[]': of})}")

    async def evaluated(self) -> list[dict[str, Any]]:
        """Every rule with its health, once each has one: a group waits up to its interval before it begins."""

        async def look() -> list[dict[str, Any]] | None:
            groups = await self._get("/api/v1/rules", "groups")
            rules = [rule for group in groups for rule in group["rules"]]
            return None if any(rule["health"] == "unknown" for rule in rules) else rules

        rules: list[dict[str, Any]] = await eventually(look, "every rule to be evaluated", EVALUATES_WITHIN)
        return rules

    async def scraped(self) -> None:
        """Wait until every target has been scraped once more."""
        since = time.time()

        async def look() -> bool:
            return not await self.query(f"timestamp(up) <= {since}") and bool(await self.query("up"))

        await eventually(look, "another scrape", EVALUATES_WITHIN)

    async def _get(self, path: str, part: str = "") -> list[Any]:
        answer = json.loads(await asyncio.to_thread(_read, self.url + path))
        assert answer["status"] == "success", answer
        result: list[Any] = answer["data"][part] if part else answer["data"]
        return result

    async def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.returncode is None, (self._where / "log").read_text()
        with suppress(OSError):
            return b"Ready" in await asyncio.to_thread(_read, f"{self.url}/-/ready")
        return False


def _read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as reply:
        body: bytes = reply.read()
    return body
