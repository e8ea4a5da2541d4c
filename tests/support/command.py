"""Runs `nats-backpressure` as an operator does, beside a running server."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from typing import Any

import msgspec
from click.testing import CliRunner, Result

from nats_backpressure.cli import main

PLAIN = {name: None for name in os.environ if name.startswith("NATS_")}
"""Variables of the developer's environment that a command in a test must not get."""


class Command:
    def __init__(self, url: str | None, *options: str) -> None:
        """`url`: NATS_URL; None leaves it out. `options` follow the arguments of each command."""
        self.url, self._options = url, options
        self._processes: list[Process] = []

    async def __call__(self, *arguments: object, data: str | None = None, **env: str) -> Result:
        """What it printed, and its exit code; never a stack trace."""
        given = [str(argument) for argument in (*arguments, *self._options)]
        ran = await asyncio.to_thread(
            lambda: CliRunner().invoke(main, given, input=data, env={**PLAIN, "NATS_URL": self.url, **env})
        )
        assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
        assert "Traceback" not in ran.output
        return ran

    async def good(self, *arguments: object, data: str | None = None) -> str:
        ran = await self(*arguments, data=data)
        assert ran.exit_code == 0, ran.stderr
        return ran.stdout

    async def json(self, *arguments: object) -> Any:
        return msgspec.json.decode(await self.good(*arguments, "--json"))

    async def failed(self, *arguments: object, code: int = 1, data: str | None = None, **env: str) -> str:
        """Its error output, where it fails."""
        ran = await self(*arguments, data=data, **env)
        assert ran.exit_code == code and not ran.stdout, ran.output
        return ran.stderr

    async def start(self, *arguments: str) -> Process:
        """A process of its own, for what goes on until it is interrupted."""
        env = {k: v for k, v in os.environ.items() if k not in PLAIN}
        if self.url is not None:
            env["NATS_URL"] = self.url
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "nats_backpressure", *arguments, *self._options),
            env=env,
            stdout=PIPE,
            stderr=PIPE,
            # A shell starts what runs in its background with SIGINT ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self._processes.append(process)
        return process

    async def close(self) -> None:
        """End processes that still run, as they do after a failed test."""
        for process in self._processes:
            if process.returncode is None:
                process.kill()
                await process.wait()
