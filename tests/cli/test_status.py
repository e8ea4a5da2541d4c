"""`status`: all subjects in a list, or everything about one."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from tests.support.command import Command
from tests.support.router import publish
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, UNHURRIED, Sidecar, Wire


@pytest.fixture
async def backlog(tmp_path: Path, server: NatsServer, router: None) -> AsyncIterator[Sidecar]:
    """It shows a backlog that nobody pulls as what it is by its size, however long that lasts."""
    policy = {"subjects": [">"], "stall_seconds": 3600}
    async with Sidecar(tmp_path, server.url, UNHURRIED | {"policies": [policy]}) as process:
        yield await process.observing()


async def test_the_list_starts_with_the_worst_and_one_subject_has_signals_marks_and_consumers(
    command: Command, nc: Client, backlog: Sidecar, wire: Wire
) -> None:
    await nc.jetstream().add_stream(name="CALM", subjects=["a.calm"])
    await nc.jetstream().add_consumer("CALM", durable_name="calm")
    await publish(nc, 1500)
    await wire.status("a.calm", status="inactive")
    await wire.status(status="warning")
    await wire.waiting(1500)
    headers, first, second, totals = (await command.good("status")).splitlines()
    assert totals == "2 subjects: 0 active, 1 warning, 0 unknown, 1 inactive"
    headers, only, totals = (await command.good("status", "beamline.>", "--status", "warning")).splitlines()
    assert only.split() == first.split() and totals.endswith("; 1 match")
    assert headers.split()[:3] == ["subject", "status", "pressure"]
    assert first.split()[:4] == [SUBJECT, "warning", "1.5", "1,500"] and "  pending" in first
    assert second.split()[:2] == ["a.calm", "inactive"]
    result = await command.json("status")
    assert {each["subject"] for each in result["subjects"]} == {SUBJECT, "a.calm"} and result["total"] == 2
    result = await command.json("status", "--sort", "subject", "--limit", "1")
    assert [each["subject"] for each in result["subjects"]] == ["a.calm"] and result["total"] == 2
    lines = [line.split() for line in (await command.good("status", SUBJECT)).splitlines()]
    assert ["subject", SUBJECT] in lines
    assert ["pending", "1,500", "overload", "10", "100", "1,000"] in [line[:6] for line in lines]
    assert ["ROUTER", "router", "warning", "1,500"] in [line[:4] for line in lines]
    assert (await command.json("status", SUBJECT))["metrics"]["pending_messages"] == 1500


async def test_watch_of_all_subjects_goes_on_after_a_loss_of_nats(
    command: Command, server: NatsServer, sidecar: Sidecar, wire: Wire
) -> None:
    await wire.status(status="inactive")
    watching = await command.start("status", "--watch")
    assert watching.stdout is not None and watching.stderr is not None

    async def shown(text: bytes) -> None:
        while text not in await watching.stdout.readline():  # type: ignore[union-attr]
            assert watching.returncode is None and not watching.stdout.at_eof()  # type: ignore[union-attr]

    await shown(b"1 subject: 0 active, 0 warning, 0 unknown, 1 inactive")
    await server.kill()
    assert b"; trying again" in await watching.stderr.readline()
    await server.start()
    await shown(b"known")
    await shown(b"1 subject: ")
    watching.send_signal(signal.SIGINT)
    _, text = await watching.communicate()
    assert (watching.returncode, text) == (130, b"")


async def test_watch_repeats_until_interrupted_also_after_a_loss_of_nats(
    command: Command, server: NatsServer, sidecar: Sidecar, wire: Wire
) -> None:
    await wire.status(status="inactive")
    watching = await command.start("status", SUBJECT, "--watch", "--json")
    assert watching.stdout is not None
    for _ in range(2):
        assert json.loads(await watching.stdout.readline())["subject"] == SUBJECT
    await server.kill()
    assert watching.stderr is not None
    assert b"; trying again" in await watching.stderr.readline(), "a loss of NATS does not end it"
    await server.start()
    while json.loads(await watching.stdout.readline())["freshness"] != "known":
        pass
    watching.send_signal(signal.SIGINT)
    _, text = await watching.communicate()
    assert (watching.returncode, text) == (130, b"")
