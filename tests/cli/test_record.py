"""`record`: what it does with files, settings and servers that it cannot use."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import pytest

from nats_backpressure.recording.format import FORMAT, HeaderLine, decode_line, encode_line
from tests.support.command import Command
from tests.support.servers import free_port
from tests.support.sidecar import eventually


async def test_a_file_that_is_no_recording_is_left_as_it_is(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("notes\n")
    assert "is no recording" in await command.failed("record", file, code=78)
    assert file.read_text() == "notes\n"


async def test_a_file_that_cannot_be_written_is_named(command: Command, tmp_path: Path) -> None:
    missing = tmp_path / "no" / "recording"
    assert f"{missing}: cannot be written: no such file" in await command.failed("record", missing, code=78)


async def test_settings_of_another_installation_are_refused(command: Command, tmp_path: Path) -> None:
    settings = tmp_path / "other.yaml"
    settings.write_text(json.dumps({"name": "other"}))
    refused = await command.failed("record", tmp_path / "r", "--config", settings, code=2)
    assert "give --name other" in refused and not (tmp_path / "r").exists()


@pytest.mark.parametrize("option", [False, True], ids=["of the file", "of the option"])
async def test_it_connects_as_the_settings_file_says_unless_an_option_does(tmp_path: Path, option: bool) -> None:
    port, settings = free_port(), tmp_path / "own.yaml"
    settings.write_text(json.dumps({"nats": {"servers": [f"nats://127.0.0.1:{port}"]}}))
    command = Command(None)
    server = ("--server", f"nats://127.0.0.1:{(port := free_port())}") if option else ()
    process = await command.start("record", str(tmp_path / "r"), "--config", str(settings), *server)
    assert str(port).encode() in await unreachable(process)
    await command.close()


async def test_with_nobody_to_listen_to_it_goes_on_until_it_is_stopped(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "r"
    file.write_bytes(encode_line(HeaderLine(FORMAT, "backpressure", "0", (1.0, 1.0))))
    process = await command.start("record", str(file))
    assert process.stderr is not None
    assert b"end it with Ctrl-C" in await process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"recorded 0 readings of 0 streams\n")
    lines = file.read_bytes().splitlines()
    assert len(lines) == 2 and all(isinstance(decode_line(line), HeaderLine) for line in lines), "it is continued"


async def test_a_server_that_is_away_is_named_and_awaited(tmp_path: Path) -> None:
    port = free_port()
    command = Command(f"nats://127.0.0.1:{port}")
    process = await command.start("record", str(tmp_path / "r"))
    assert str(port).encode() in await unreachable(process)
    assert process.returncode is None
    await command.close()


async def unreachable(process: asyncio.subprocess.Process) -> bytes:
    """What it prints, once it has named the server that it cannot reach."""
    errors = bytearray()

    async def named() -> bool:
        assert process.stderr is not None
        errors.extend(await asyncio.wait_for(process.stderr.read(4096), 10))
        return b"nats.unreachable" in errors and b"servers" in errors

    await eventually(named, "the server that is away")
    return bytes(errors)


async def test_a_full_disk_ends_it_with_an_error(command: Command) -> None:
    process = await command.start("record", "/dev/full")
    _, errors = await process.communicate()
    assert process.returncode == 1 and b"/dev/full: cannot be written any further" in errors and b"Trace" not in errors
