"""`events`: prints stored events and follows new ones."""

from __future__ import annotations

import asyncio
import json
import signal

from nats.aio.client import Client

from tests.support.command import Command
from tests.support.router import drain, publish
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, Sidecar, Wire, eventually


async def test_events_of_one_or_all_subjects_are_printed_the_newest_last(
    command: Command, nc: Client, sidecar: Sidecar, wire: Wire
) -> None:
    await publish(nc, 1500)
    await wire.event("backpressure_warning")
    await drain(nc, [])
    await wire.status(status="inactive")
    types: list[str] = []

    async def over() -> bool:
        stored = await wire.stored()
        types[:] = [event["type"] for event in stored]
        return bool(stored[-1]["to"] == "inactive")

    await eventually(over, "the recovery to be stored")
    for asked in ((), (SUBJECT,)):
        rose, *between, fell = (await command.good("events", *asked)).splitlines()  # a slow drain is a second signal
        assert [line.split()[2] for line in (rose, *between, fell)] == types
        assert f"{SUBJECT}  backpressure_warning  inactive -> warning  [pending" in rose and "  pending 1," in rose
        assert "recovery  warning -> inactive" in fell
        newest = await command.json("events", *asked, "--limit", 1)
        assert [each["type"] for each in newest["events"]] == ["recovery"] and newest["truncated"]
        only = await command.json("events", *asked, "--type", "backpressure_warning", "--since", "1h")
        assert [each["seq"] for each in only["events"]] == [1]
        assert not await command.good("events", *asked, "--since", "2999-01-01T00:00:00Z")


async def test_follow_prints_each_event_once_across_a_server_restart_until_interrupted(
    command: Command, nc: Client, server: NatsServer, sidecar: Sidecar, wire: Wire
) -> None:
    await publish(nc, 1500)
    following = await command.start("events", "--follow", "--since", "1h", "--json")
    assert following.stdout is not None and following.stderr is not None
    async with asyncio.timeout(15):
        assert json.loads(await following.stdout.readline())["type"] == "backpressure_warning"
        await server.restart()
        assert b"the connection was lost" in await following.stderr.readline()
        while not nc.is_connected:
            await asyncio.sleep(0.02)
        await drain(nc, [])
        lines = []
        while not lines or lines[-1]["type"] != "recovery":
            lines.append(json.loads(await following.stdout.readline()))
        # A restart that takes its time is a loss of sight of its own, and a drain that does lasts until nobody pulls.
        between = {"monitoring_lost", "monitoring_restored", "backpressure_active", "recovery"}
        assert {each["type"] for each in lines} <= between
        assert [each["seq"] for each in lines] == list(range(2, len(lines) + 2))
        following.send_signal(signal.SIGINT)
        rest, _ = await following.communicate()
    assert (following.returncode, rest) == (130, b"")


async def test_events_of_a_subject_outlive_its_consumer_and_the_sidecar(
    command: Command, nc: Client, orders: Sidecar
) -> None:
    wire = await Wire(nc).listen()
    await wire.status("orders.paid", status="inactive")
    await nc.jetstream().delete_consumer("ORDERS", "router-paid")
    await wire.event("monitoring_lost")
    await command.good("forget", "orders.paid")

    async def forgotten() -> bool:
        return "orders.paid" not in await command.good("status")

    await eventually(forgotten, "the subject to be forgotten")
    await read_from_the_stream(command, "orders.paid is not watched (404)")
    for asked in (["events"], ["status"], ["decide", "gateway"], ["policy", "get"], ["forget"]):
        assert await command.failed(*asked, "orders.pait") == (
            "Error: orders.pait is not watched (404): `nats-backpressure status` lists what is watched\n"
        )
    await orders.kill()
    await read_from_the_stream(command, "nobody answers under the name `backpressure`")


async def read_from_the_stream(command: Command, note: str) -> None:
    for asked in ("orders.paid", "orders.*"):
        ran = await command("events", asked)
        assert ran.exit_code == 0, ran.stderr
        assert {line.split()[1] for line in ran.stdout.splitlines()} == {"orders.paid"}
        assert note in ran.stderr or asked in ran.stderr
        assert "what follows is read from the stream of events" in ran.stderr
    lost = await command.json("events", "orders.paid", "--type", "monitoring_lost", "--limit", 1)
    assert [event["subject"] for event in lost["events"]] == ["orders.paid"]


async def test_it_is_said_that_nothing_can_be_published_without_the_stream_of_events(
    command: Command, nc: Client, sidecar: Sidecar, wire: Wire
) -> None:
    await wire.status(status="inactive")
    ran = await command("events", SUBJECT)
    assert (ran.exit_code, ran.stdout, ran.stderr) == (0, "", ""), "there is a stream, and no event"
    js = nc.jetstream()
    config = (await js.stream_info("BACKPRESSURE_EVENTS")).config
    await js.update_stream(config.evolve(subjects=["elsewhere"]))
    await js.add_stream(name="FOREIGN", subjects=["backpressure.v1.event.>"])
    await js.delete_stream("BACKPRESSURE_EVENTS")
    for asked in ([SUBJECT], [SUBJECT, "--json"]):
        ran = await command("events", *asked)
        assert ran.exit_code == 0 and "there is no stream BACKPRESSURE_EVENTS" in ran.stderr
        assert "`nats-backpressure doctor` says what is in the way" in ran.stderr
    following = await command.start("events", "--follow", SUBJECT)
    assert following.stderr is not None
    async with asyncio.timeout(15):
        assert b"there is no stream BACKPRESSURE_EVENTS" in await following.stderr.readline()


async def test_a_name_that_nobody_has_is_an_error(command: Command, sidecar: Sidecar) -> None:
    for more in ((), ("--follow",)):
        error = await command.failed("events", "--name", "backpresure", *more)
        assert "there is no stream BACKPRESURE_EVENTS" in error and "is --name right?" in error
