"""On a terminal lists are drawn within its width and in colours; in a pipe they are plain text, which may end early."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from nats_backpressure.cli import BROKEN_PIPE
from tests.support.router import CONSUMER, override
from tests.support.servers import NatsServer
from tests.support.sidecar import UNHURRIED, Sidecar, Wire, eventually
from tests.support.terminal import Terminal

PROGRAM = [sys.executable, "-m", "nats_backpressure"]
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
POLICY = b'{"pending": {"warn": 0.2, "critical": 0.5, "overload": 0.9}}'
LONG = [f"orders.tenant-{n:02}.created.in-a-subject-of-many-tokens" for n in range(4)]


@pytest.fixture
async def env(nc: Client, server: NatsServer, tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """The environment of a command beside a sidecar of long subjects, with an event, a policy and an override."""
    await nc.jetstream().add_stream(name="ORDERS", subjects=["orders.>"])
    for n, subject in enumerate(LONG):
        await nc.jetstream().add_consumer("ORDERS", CONSUMER.evolve(durable_name=f"c{n}", filter_subject=subject))
    plain = {k: v for k, v in os.environ.items() if not k.startswith("NATS_") and k not in ("NO_COLOR", "COLUMNS")}
    async with Sidecar(tmp_path, server.url, UNHURRIED) as process:
        await process.observing()
        await override(nc, LONG[0], "open", 600)
        await (await nc.jetstream().key_value("backpressure_policy")).put("orders.=3E", POLICY)
        await nc.jetstream().publish(LONG[3], b"")
        await Wire(nc).status(LONG[3], status="warning")
        yield plain | {"NATS_URL": server.url}


def drawn(env: dict[str, str], columns: int, *arguments: str) -> str:
    with Terminal([*PROGRAM, *arguments], env, columns=columns) as terminal:
        assert terminal.end() == 0, terminal.output
        return terminal.output


def widest(shown: str) -> int:
    return max(len(line) for line in CONTROL.sub("", shown).splitlines())


async def test_status_fits_80_columns_and_cuts_no_subject(env: dict[str, str]) -> None:
    shown = await asyncio.to_thread(drawn, env, 80, "status")
    assert widest(shown) <= 80 and all(subject in shown for subject in LONG), shown
    assert widest(await asyncio.to_thread(drawn, env, 60, "status")) <= 60
    detail = await asyncio.to_thread(drawn, env, 80, "status", LONG[0])
    assert widest(detail) <= 80 and LONG[0] in detail


async def test_lists_are_drawn_in_colours_on_a_terminal_only(env: dict[str, str]) -> None:
    def piped(*arguments: str) -> str:
        return subprocess.run([*PROGRAM, *arguments], env=env, capture_output=True, text=True, check=True).stdout

    for arguments in (("status",), ("policy", "get", LONG[1])):
        shown = await asyncio.to_thread(drawn, env, 200, *arguments)
        assert CONTROL.search(shown) and "│" in shown
        plain = await asyncio.to_thread(piped, *arguments)
        assert not CONTROL.search(plain) and "│" not in plain
    assert not CONTROL.search(await asyncio.to_thread(drawn, env | {"NO_COLOR": "1", "TERM": "dumb"}, 200, "events"))


async def test_a_list_that_is_redrawn_survives_a_loss_of_nats(env: dict[str, str], server: NatsServer) -> None:
    with Terminal([*PROGRAM, "status", "--watch"], env) as terminal:
        totals, error = "4 subjects: ", "\x1b[31m"
        await asyncio.to_thread(terminal.until, totals)
        await server.kill()
        shown = await asyncio.to_thread(terminal.until, error)
        assert "Traceback" not in shown
        await server.start()

        async def is_drawn_without_an_error() -> bool:
            terminal.output = ""
            return error not in (await asyncio.to_thread(terminal.until, totals, 2)).partition(totals)[2]

        await eventually(is_drawn_without_an_error, "the list without an error", 60)


PRINTING = (
    "status",
    "status -o json",
    f"status {LONG[0]}",
    "status --watch",
    "events",
    "policy ls",
    f"policy get {LONG[0]}",
    "override ls",
    f"decide gateway {LONG[0]}",
    "doctor",
)


async def test_a_reader_that_has_ended_ends_a_connected_command_without_a_traceback(env: dict[str, str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)

    async def ended(command: str) -> tuple[str, int, str]:
        arguments = [*PROGRAM, *command.split()]
        ran = await asyncio.to_thread(
            subprocess.run, arguments, env=env, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60
        )
        return command, ran.returncode, ran.stderr

    try:
        all_of_them = await asyncio.gather(*map(ended, PRINTING))
    finally:
        os.close(writing)
    assert all_of_them == [(command, BROKEN_PIPE, "") for command in PRINTING]
