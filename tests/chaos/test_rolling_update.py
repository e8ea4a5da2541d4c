"""A rolling update in the middle of incidents of every kind: nothing is published that the load did not cause.

Each replica is replaced as the Deployment does it: the new one starts, then the old one gets SIGTERM.
`server_stuck`, the third diagnosis that counts, cannot be made on a server that works; it goes the way of the others.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig

from tests.chaos.conftest import Install
from tests.chaos.installation import FAST, Installation
from tests.support.earlier_build import earlier_build
from tests.support.event_checks import STATUS_EVENTS, event_problems, shown, state_problems
from tests.support.router import override
from tests.support.sidecar import eventually

HELD, WAITING = 30, 60
"""Messages that are taken and not acknowledged, and messages that nobody takes."""
QUEUE, ACKS = 3000, 10
"""Messages of a queue that its worker does in minutes, and how many of them in a second."""
SLOW_ACK = 0.5
"""Seconds after which a worker acknowledges, where the latency is the overload."""
ALERT_AFTER, ALERT_WITHIN = 30.0, 25.0
"""Seconds for which an alert is pending, and by which it may fire late: what was measured since the last write of a
state is measured again, and after a start alerts wait for 10 s."""
SETTLE = 3.0
"""Seconds between two replacements, for what a new replica may conclude late."""

NEVER = {"overload": 1_000_000}
CALM: dict[str, Any] = FAST | {"drain_seconds": NEVER, "latency_p95": NEVER, "alert_on_active": False}
KINDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "queue": ({"drain_seconds": {"overload": 5}}, "active", "drain"),
    "inflight": ({"inflight": {"warn": 5, "critical": 10, "overload": 20}, "active_signals": 2}, "warning", "inflight"),
    "stall": ({"latency_p95": {"overload": 500}}, "warning", "latency_p95"),
    "latency": ({"latency_p95": {"overload": 200}}, "warning", "latency_p95"),
    "nobody": ({"stall_seconds": 1}, "active", "nobody_pulling"),
    "cap": ({"stall_seconds": 1}, "active", "cap_reached"),
    "firing": ({"alerts": [{"name": "long", "when": {"pending_above": 30}, "for_seconds": 1}]}, "warning", "pending"),
    "soon": (
        {"alerts": [{"name": "long", "when": {"pending_above": 30}, "for_seconds": ALERT_AFTER}]},
        "warning",
        "pending",
    ),
}
"""What is special in the policy of each subject, the status of its incident, and a reason of that."""
OVERRIDDEN = "k.overridden"
STEADY, BELOW, WORKERS = "k.steady", 2000, 5
"""A subject whose latency is never above this mark, though three times its mean is; and its workers, which take turns,
so that there is always something in flight."""
STEADY_ACK = 0.8
POLICIES = [{**CALM, "subjects": [f"k.{kind}"], **policy} for kind, (policy, _, _) in KINDS.items()]
POLICIES += [{**CALM, "subjects": [STEADY], "latency_p95": {"overload": BELOW}}]


class Load:
    """One stream with a consumer for each kind of incident and one without, and the workers of three of them."""

    def __init__(self, nc: Client) -> None:
        self.nc, self.js = nc, nc.jetstream()
        self.held: list[Msg] = []
        self.over = False
        """Whether the workers are to end, with nothing left in flight."""

    async def make(self) -> None:
        await self.js.add_stream(name="KINDS", subjects=["k.>"])
        for kind in (*KINDS, "overridden", "steady"):
            cap = 5 if kind == "cap" else 1000
            sampled = {"sample_freq": "100"} if kind in ("latency", "steady") else {}
            config = ConsumerConfig(
                durable_name=kind, filter_subject=f"k.{kind}", ack_policy=AckPolicy.EXPLICIT, ack_wait=3600,
                max_ack_pending=cap, **sampled,
            )  # fmt: skip
            await self.js.add_consumer("KINDS", config)

    async def begin(self) -> None:
        amounts = {"queue": QUEUE, "inflight": HELD, "stall": 1} | dict.fromkeys(("nobody", "firing", "soon"), WAITING)
        for kind, n in {**amounts, "cap": WAITING}.items():
            await asyncio.gather(*(self.js.publish(f"k.{kind}", b"x") for _ in range(n)))
        for kind, n in (("inflight", HELD), ("stall", 1), ("cap", 5)):
            self.held += await self.take(kind, n)

    async def take(self, kind: str, n: int, seconds: float = 2.0) -> list[Msg]:
        """Up to `n` messages; none if there are none in this time."""
        pull = await self.js.pull_subscribe_bind(kind, "KINDS")
        with suppress(TimeoutError):
            taken: list[Msg] = await pull.fetch(n, timeout=seconds)
            await pull.unsubscribe()
            return taken
        await pull.unsubscribe()
        return []

    async def work(self) -> None:
        steady = (self.acknowledge("steady", 2, STEADY_ACK, i / WORKERS * STEADY_ACK) for i in range(WORKERS))
        await asyncio.gather(self.work_slowly(), self.acknowledge("latency", 10, SLOW_ACK), *steady)

    async def work_slowly(self) -> None:
        """Some of the queue every second."""
        while not self.over:
            for message in await self.take("queue", ACKS // 2):
                await message.ack()
            await asyncio.sleep(0.5)

    async def acknowledge(self, kind: str, n: int, after: float, begin: float = 0.0) -> None:
        """Some messages are always under way, each for `after` seconds, from `begin` seconds on."""
        await asyncio.sleep(begin)
        while not self.over:
            for _ in range(n):
                await self.js.publish(f"k.{kind}", b"x")
            taken = await self.take(kind, n)
            await asyncio.sleep(after)
            for message in taken:
                await message.ack()

    async def end(self) -> None:
        """All that is left is done."""
        for message in self.held:
            await message.ack()
        for kind in (*KINDS, "steady"):
            while (info := await self.js.consumer_info("KINDS", kind)).num_pending or info.num_ack_pending:
                for message in await self.take(kind, min(500, info.num_pending or 1)):
                    await message.ack()
                await self.nc.flush()


async def by_subject(installation: Installation) -> dict[str, list[dict[str, Any]]]:
    events: dict[str, list[dict[str, Any]]] = {f"k.{kind}": [] for kind in KINDS}
    for event in await installation.events():
        events.setdefault(event["subject"], []).append(event)
    return events


async def asked(nc: Client, subject: str, request: str = "get.status") -> dict[str, Any]:
    reply: dict[str, Any] = json.loads((await nc.request(f"backpressure.v1.{request}.{subject}", timeout=2)).data)
    return reply


async def all_under_way(nc: Client) -> None:
    for kind, (_, status, reason) in KINDS.items():

        async def is_there(kind: str = kind, status: str = status, reason: str = reason) -> bool:
            answer = await asked(nc, f"k.{kind}")
            return answer["status"] == status and reason in answer["reasons"]

        await eventually(is_there, f"{kind}: {status} because of {reason}", 40)


async def steady_is_judged(nc: Client) -> None:
    async def is_sampled() -> bool:
        metrics = (await asked(nc, STEADY))["metrics"]
        return metrics["latency_source"] == "sampled" and BELOW / 3 < metrics["latency_p95_ms"] < BELOW

    await eventually(is_sampled, "a steady latency, sampled, that would be too large as an estimate", 20)


async def replace_each(
    installation: Installation, n: int, watch: Callable[[], Awaitable[None]], build: Mapping[str, str]
) -> None:
    """The new one starts and serves, then the old one is stopped. `build`: the environment of the new ones."""
    for i in range(n):
        await (await installation.add(f"i{n + i}", build)).sidecar.observing()
        await asyncio.sleep(SETTLE)
        await installation[i].terminate()
        until = time.monotonic() + SETTLE
        while time.monotonic() < until:
            await watch()
            await asyncio.sleep(0.1)


def ids(events: Mapping[str, list[dict[str, Any]]]) -> dict[str, list[str]]:
    return {subject: [event["id"] for event in these] for subject, these in events.items()}


@pytest.mark.parametrize(("n", "change"), [(1, ""), (3, ""), (2, "upgrade"), (2, "rollback")])
async def test_no_event_that_the_load_did_not_cause(install: Install, tmp_path: Path, n: int, change: str) -> None:
    earlier = earlier_build(tmp_path / "earlier") if change else {}
    before_it, after_it = (earlier, {}) if change == "upgrade" else ({}, earlier)
    installation = await install(0, settings={"policies": POLICIES})
    for i in range(n):
        await (await installation.add(f"i{i}", before_it)).sidecar.observing()
    load = Load(installation.nc)
    await load.make()
    await override(installation.nc, OVERRIDDEN, "reject", 600)

    async def overridden() -> None:
        assert (await asked(installation.nc, OVERRIDDEN, "decide.gateway"))["action"] == "reject"

    working = asyncio.create_task(load.work())
    try:
        await load.begin()
        began = time.monotonic()
        await all_under_way(installation.nc)
        await steady_is_judged(installation.nc)
        await installation.published("alert_firing")
        await asyncio.sleep(SETTLE)
        await overridden()
        before = await by_subject(installation)
        await replace_each(installation, n, overridden, after_it)
        after = await by_subject(installation)
        fired = [event for event in after["k.soon"] if event["type"] == "alert_firing"]
        after["k.soon"] = [event for event in after["k.soon"] if event["type"] != "alert_firing"]
        assert ids(after) == ids(before), "\n".join([shown(await installation.events()), str(ids(before))])
        await all_under_way(installation.nc)
        await steady_is_judged(installation.nc)
        if not fired:
            left = began + ALERT_AFTER + ALERT_WITHIN - time.monotonic()
            await installation.published("alert_firing", 2, left)
    finally:
        load.over = True
        await working
    await load.end()

    async def is_over() -> bool:
        events = await by_subject(installation)
        moves = [[e for e in these if e["type"] in STATUS_EVENTS] for these in events.values()]
        return all(not these or these[-1]["to"] == "inactive" for these in moves)

    await eventually(is_over, "the ends of all incidents", 60)
    await asyncio.sleep(SETTLE)
    events = await by_subject(installation)
    problems = {
        subject: [
            *event_problems(these, subject.removeprefix("k.") in KINDS),
            *state_problems(these, await installation.state(subject)),
        ]
        for subject, these in events.items()
    }
    assert not any(problems.values()), f"{problems}\n{shown(await installation.events())}"
    alerts = [(e["subject"], e["type"]) for these in events.values() for e in these if "alert" in e["type"]]
    expected = [(f"k.{kind}", kind_of) for kind in ("firing", "soon") for kind_of in ("alert_firing", "alert_resolved")]
    assert sorted(alerts) == sorted(expected)
