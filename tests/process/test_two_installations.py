"""Two installations with different names on one server, as processes: neither touches what belongs to the other."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.process.waits import observed_for
from tests.support.router import CONSUMER, drain, override, publish, take
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, UNHURRIED, Sidecar, Wire, eventually

BILLING = "billing.orders"
FAST = {
    "recovery_hold_seconds": 0.2,
    "alone_factor": 1_000_000,
    "active_signals": 4,
    "drain_seconds": {"overload": 1_000_000},
    "alert_on_active": False,
}


def marks(overload: int) -> dict[str, Any]:
    return {"policies": [{"subjects": [">"], "pending": {"warn": 1, "critical": 2, "overload": overload}, **FAST}]}


ONE = UNHURRIED | marks(20) | {"name": "one", "instance": "pod", "watch": [{"stream": "ROUTER"}]}
TWO = UNHURRIED | marks(200) | {"name": "two", "instance": "pod"}
"""The first watches one stream, the second one all; their marks differ, their instances have the same name."""


@pytest.fixture
async def both(tmp_path: Path, server: NatsServer, nc: Client, router: None) -> AsyncIterator[tuple[Wire, Wire]]:
    await nc.jetstream().add_stream(name="BILLING", subjects=[BILLING])
    await nc.jetstream().add_consumer("BILLING", CONSUMER)
    async with AsyncExitStack() as stack:
        for config in (ONE, TWO):
            await (await stack.enter_async_context(Sidecar(tmp_path, server.url, config))).observing()
        yield await Wire(nc, "one").listen(), await Wire(nc, "two").listen()


async def writes(nc: Client) -> dict[str, set[str]]:
    """Who writes what from now on: the keys and event subjects, by the name in front; filled as they come."""
    seen: dict[str, set[str]] = {"one": set(), "two": set()}

    async def note(message: Msg) -> None:
        what = message.subject.removeprefix("$KV.")
        seen[what[:3]].add(what)

    for subject in ("$KV.*.>", "*.v1.event.>"):
        await nc.subscribe(subject, cb=note)
    return seen


def shown(state: dict[str, Any]) -> dict[str, Any]:
    """What only an event may change."""
    return {name: state[name] for name in ("status", "epoch", "seq", "incident", "since", "action")}


async def keys(nc: Client, name: str) -> set[str]:
    return set(await (await nc.jetstream().key_value(f"{name}_state")).keys()) - {"=heartbeat"}


async def test_each_judges_the_same_stream_by_its_own_marks(nc: Client, both: tuple[Wire, Wire]) -> None:
    one, two = both
    await publish(nc, 90)
    await one.event("backpressure_warning")
    await observed_for(two, 1.0)
    assert (await two.ask(f"get.status.{SUBJECT}"))["status"] == "inactive" and two.live == []
    await publish(nc, 400)
    event = await two.event("backpressure_warning")
    assert (event["subject"], event["seq"]) == (SUBJECT, 1)
    held = await take(nc, 1)
    await drain(nc, held)
    for wire in both:
        await wire.event("recovery")
        events = await wire.stored()
        assert [event["type"] for event in events] == ["backpressure_warning", "recovery"]
        state = await wire.state()
        assert (state["seq"], state["epoch"]) == (2, events[-1]["epoch"])
    epochs = {(await wire.state())["epoch"] for wire in both}
    assert len(epochs) == 2


async def test_what_only_one_watches_is_unknown_to_the_other(nc: Client, both: tuple[Wire, Wire]) -> None:
    one, two = both
    await two.status(BILLING, status="inactive")
    assert await one.refused(f"get.status.{BILLING}") == "404"
    assert await keys(nc, "one") == {SUBJECT} and await keys(nc, "two") == {SUBJECT, BILLING}


async def test_policies_and_overrides_of_one_are_none_of_the_other(nc: Client, both: tuple[Wire, Wire]) -> None:
    one, two = both
    bucket = await nc.jetstream().key_value("one_policy")
    await bucket.put(SUBJECT, json.dumps({"pending": {"overload": 7}}).encode())
    await override(nc, SUBJECT, "reject", 60, name="two")

    async def rejected() -> bool:
        return (await two.ask(f"decide.gateway.{SUBJECT}"))["action"] == "reject"

    async def lowered() -> bool:
        return (await one.ask(f"get.status.{SUBJECT}"))["thresholds"]["queue_overload"] == 7

    await eventually(rejected, "the override of the second")
    await eventually(lowered, "the policy of the first")
    assert (await one.ask(f"decide.gateway.{SUBJECT}"))["action"] == "continue"
    assert (await two.ask(f"get.status.{SUBJECT}"))["thresholds"]["queue_overload"] == 200


async def test_each_writes_under_its_own_name_only_and_outlives_the_other(
    nc: Client, server: NatsServer, router: None, tmp_path: Path
) -> None:
    async with Sidecar(tmp_path, server.url, TWO) as two:
        await two.observing()
        wire = await Wire(nc, "two").listen()
        await publish(nc, 400)
        await wire.event("backpressure_warning")
        before = shown(await wire.state()), await wire.stored()
        seen = await writes(nc)
        async with Sidecar(tmp_path, server.url, ONE) as one:
            await one.observing()
            await (await Wire(nc, "one").listen()).status(status="warning")
            assert "replica.present" not in one.log + two.log, "they are no replicas of each other"
            await one.end()
        await observed_for(wire, 2.0)
        assert seen["one"] >= {f"one_state.{SUBJECT}", f"one.v1.event.backpressure_warning.{SUBJECT}"}
        assert seen["two"] <= {"two_state.=heartbeat", f"two_state.{SUBJECT}"}, "no event, and no other key"
        assert (shown(await wire.state()), await wire.stored()) == before
        heartbeat = await (await nc.jetstream().key_value("two_state")).get("=heartbeat")
        assert json.loads(heartbeat.value or b"")["leaving"] is False
