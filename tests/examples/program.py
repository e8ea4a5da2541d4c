"""One of the examples as a process, and what it prints."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.support.sidecar import STARTS_WITHIN, WAIT_SECONDS, eventually


class Program:
    """Runs inside `async with`; what it prints goes to a file."""

    def __init__(self, where: Path, command: Sequence[str | Path], environment: dict[str, str] | None = None) -> None:
        self._command = [str(argument) for argument in command]
        self._environment = environment or dict(os.environ)
        self._path = where / f"{Path(self._command[0]).name}.out"
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        with self._path.open("wb") as out:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self._environment,
            )
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if any(error):
            print(self.output[-4000:])  # shown with the failed test

    async def end(self, how: signal.Signals) -> int:
        """Its exit code after a signal."""
        assert self._process is not None
        self._process.send_signal(how)
        async with asyncio.timeout(STARTS_WITHIN):
            return await self._process.wait()

    @property
    def output(self) -> str:
        return self._path.read_text(errors="replace")

    def own_tracebacks(self, name: str, since: int = 0) -> list[str]:
        """The frames of this program or of our client in tracebacks that it printed, and what was never awaited.
        nats-py and a server for development log tracebacks of their own; the guard's frame is in those of nats-py."""
        lines = [line.strip() for line in self.output[since:].splitlines()]
        frames = [line for line in lines if line.startswith("File ") and "reconnect_guard" not in line]
        own = [line for line in frames if name in line or "backpressure/client" in line]
        return own + [line for line in lines if "never awaited" in line]

    def count(self, text: str) -> int:
        return self.output.count(text)

    async def printed(self, text: str, n: int = 1) -> None:
        """Wait until it has printed a text `n` times."""

        async def look() -> bool:
            assert self._process is not None and self._process.returncode is None, self.output[-2000:]
            return self.count(text) >= n

        # Each message takes a turn of several processes, which may share one busy processor.
        await eventually(look, f"{text!r} {n} times in what it prints", WAIT_SECONDS + 0.05 * n)
