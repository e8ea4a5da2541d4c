"""A recording of a real process is evaluated again with the same result."""

from __future__ import annotations

import asyncio
import json
import signal
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from nats.aio.client import Client

from nats_backpressure.cli.replay import replay
from tests.chaos.installation import FAST, Installation
from tests.conftest import StartServer
from tests.support.command import Command
from tests.support.router import CONSUMER, drain, override, publish, take
from tests.support.servers import NatsServer
from tests.support.sidecar import STARTS_WITHIN, SUBJECT, UNHURRIED, Sidecar, Wire, eventually

SLOW_WRITE = 0.5
"""Seconds by which published events may lag behind those that a replay computes at once."""


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NATS_URL", "BACKPRESSURE_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def replayed(file: Path, *arguments: str) -> list[dict[str, Any]]:
    ran = CliRunner().invoke(replay, [str(file), "--json", *arguments])
    assert ran.exit_code == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def turns(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rises to active and the ends. What moves in between while a slow write is under way is published as one step,
    and as two by a replay, whose writes are done at once."""
    return [e for e in events if e["from"] != e["to"] in ("active", "inactive")]


def moves(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [e for e in events if e["from"] != e["to"]]


def event_facts(events: list[dict[str, Any]]) -> list[tuple[object, ...]]:
    return [(e["type"], e["subject"], e["to"]) for e in events]


async def test_a_recorded_burst_gives_the_same_events_again(
    nc: Client, server: NatsServer, router: None, wire: Wire, tmp_path: Path
) -> None:
    file = tmp_path / "burst.jsonl"
    # A slow drain is no signal of its own: it would be a second rise to active.
    backlog = {"subjects": [">"], "drain_seconds": {"overload": 1e6}, "latency_p95": {"overload": 1e6}}
    settings = UNHURRIED | {"policies": [backlog | {"stall_seconds": 3600}]}
    async with Sidecar(tmp_path, server.url, settings, "--record", str(file)) as process:
        await process.observing()
        for incident in (1, 2):
            await publish(nc, 2100)
            held = await take(nc, 600)
            await wire.event("backpressure_active", incident)
            await wire.status(status="active")
            await drain(nc, held)
            await wire.event("recovery", incident)
            await wire.status(status="inactive")
        assert (await process.end())[0] == 0
        stored = turns(await wire.stored())
    again = turns(await asyncio.to_thread(replayed, file))
    assert len(stored) == 4 and event_facts(again) == event_facts(stored)
    for one, other in zip(again, stored, strict=True):
        apart = datetime.fromisoformat(one["timestamp"]) - datetime.fromisoformat(other["timestamp"])
        assert abs(apart.total_seconds()) < SLOW_WRITE

    strict = tmp_path / "strict.yaml"
    strict.write_text("policies: [{subjects: ['>'], pending: {overload: 50000}, inflight: {overload: 50000}}]\n")
    milder = await asyncio.to_thread(replayed, file, "--config", str(strict))
    assert [event for event in milder if event["to"] == "active"] == []


async def test_without_settings_the_recorded_policies_are_used(
    nc: Client, server: NatsServer, router: None, wire: Wire, tmp_path: Path
) -> None:
    """seed.md D17: of the file, of the bucket while it changed, and an override."""
    file = tmp_path / "policies.jsonl"
    mild = {"subjects": [">"], "pending": {"overload": 50_000}, "inflight": {"overload": 50_000}}
    settings = UNHURRIED | {"policies": [mild], "watch": [{"stream": "ROUTER", "consumers": ["router"]}]}
    async with Sidecar(tmp_path, server.url, settings, "--record", str(file)) as process:
        await process.observing()
        await nc.jetstream().add_consumer("ROUTER", CONSUMER.evolve(durable_name="audit"))
        await publish(nc, 2100)
        held = await take(nc, 600)
        await wire.status(status="inactive")
        bucket = await nc.jetstream().key_value("backpressure_policy")
        await bucket.put(SUBJECT, b'{"pending": {"overload": 1000}, "inflight": {"overload": 500}}')
        await wire.event("backpressure_active")
        put = await override(nc, "beamline.>", "open", 60)
        await wire.status(override=put)
        await drain(nc, held)
        await wire.event("recovery")
        await wire.status(status="inactive")
        assert (await process.end())[0] == 0
        stored = turns(await wire.stored())
    ran = await asyncio.to_thread(CliRunner().invoke, replay, [str(file), "--json"])
    assert ran.exit_code == 0 and "holds no policies" not in ran.stderr
    again = turns([json.loads(line) for line in ran.stdout.splitlines()])
    assert event_facts(again) == event_facts(stored) and len(stored) >= 2
    assert [(e["override"] or {}).get("action") for e in again] == [(e["override"] or {}).get("action") for e in stored]


LISTENER = """authorization { users: [
  {user: all, password: all}
  {user: listener, password: l, permissions: {publish: {deny: ">"}, subscribe: "backpressure.v1.internal.>"}} ]}"""


@pytest.mark.slow
async def test_what_replicas_read_is_recorded_by_a_process_that_may_only_listen(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = await start_server(LISTENER)
    file, settings, password = (tmp_path / name for name in ("heard.jsonl", "settings.yaml", "password"))
    settings.write_text(json.dumps({"policies": [FAST], **UNHURRIED}))
    observe = UNHURRIED["observe"]
    async with Installation(tmp_path, [server.port or 0], 0, login="all:all@", observe=observe) as installation:
        password.write_text("l")
        command = Command(server.url)  # it listens from the start: later it waits for a message that shows all
        listener = await command.start(
            *("record", str(file), "--config", str(settings), "--user", "listener", "--password-file", str(password))
        )
        await eventually(lambda: asyncio.to_thread(file.exists), "the recording to begin", STARTS_WITHIN)
        for name in ("i0", "i1"):
            await (await installation.add(name, login="all:all@")).sidecar.observing()

        async def listens() -> bool:
            return b'"t":"read"' in file.read_bytes()

        await eventually(listens, "the first reading that is recorded")

        async def heard(count: int) -> None:
            """After a standstill it uses nothing before the next message that shows all: an incident may be over."""

            async def has() -> bool:
                return len(moves(await asyncio.to_thread(replayed, file))) >= count

            await eventually(has, f"{count} changes in the recording", STARTS_WITHIN)

        for incident in range(2):
            await installation.overload()
            await heard(2 * incident + 1)
            await installation.calm()
            await heard(2 * incident + 2)
        await installation.check()
        listener.send_signal(signal.SIGINT)
        _, errors = await listener.communicate()
        assert listener.returncode == 0 and b"recorded " in errors and b"Traceback" not in errors, errors
        stored = moves(await installation.events())
        await command.close()
    again = moves(await asyncio.to_thread(replayed, file))
    assert len(stored) == 4 and event_facts(again) == event_facts(stored)


async def test_the_recording_of_a_killed_process_is_continued_by_the_next(
    nc: Client, server: NatsServer, router: None, wire: Wire, tmp_path: Path
) -> None:
    file = tmp_path / "crash.jsonl"
    async with Sidecar(tmp_path, server.url, UNHURRIED, "--record", str(file)) as process:
        await process.observing()
        await process.kill()
        with file.open("ab") as recording:
            recording.write(b'{"t":"read","s":0,"at":[1')
        await process.start()
        await process.observing()
        await publish(nc, 2100)
        await take(nc, 600)
        await wire.event("backpressure_active")
        await process.end()
    ran = await asyncio.to_thread(CliRunner().invoke, replay, [str(file)])
    assert ran.exit_code == 0
    assert ran.stderr.count("the line is skipped") == 1
    assert ran.stdout.count("-> active  backpressure_active") == 1


async def test_a_recording_that_cannot_be_written_is_reported_before_the_start(tmp_path: Path) -> None:
    async with Sidecar(tmp_path, None, UNHURRIED, "--record", str(tmp_path / "none" / "file")) as process:
        assert process.process is not None
        assert await asyncio.wait_for(process.process.wait(), STARTS_WITHIN) == 78
        assert process.log.strip() == f"--record: {tmp_path}/none/file: cannot be written: no such file or directory"
