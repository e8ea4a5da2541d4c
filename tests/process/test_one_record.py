"""Two or three sidecars beside one server: one record, whatever happens to one of them or to what is stored."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any

import nats
import pytest
from nats.aio.client import Client

from nats_backpressure.protocol.subjects import encode
from tests.conftest import StartServer
from tests.support.event_checks import event_problems, shown, state_problems
from tests.support.router import CONSUMER, drain, publish
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, Sidecar, Wire, eventually

CONFIG = {
    "observe": {"min_interval_ms": 50, "stale_after_seconds": 10, "unknown_after_seconds": 30},
    "policies": [
        {
            "subjects": [">"],
            "pending": {"warn": 5, "critical": 10, "overload": 20},
            "drain_seconds": {"overload": 1_000_000},
            "recovery_hold_seconds": 0.2,
            "stall_seconds": 3600,
        }
    ],
}
BUCKET = "backpressure_state"
AGREE_WITHIN = 3.0
"""Seconds from a write by anyone until bucket, events and all replicas agree: one is promised, and two more are for
processes that wait for their turn on a busy machine, and for the looks of the test."""
NUMBERS = {"inactive": "0.0", "warning": "1.0", "active": "2.0", "unknown": "-1.0"}
"""A status on /metrics."""


class Replicas:
    """Sidecars on one server, and what all of them must agree on."""

    def __init__(self, nc: Client, wire: Wire, processes: list[Sidecar]) -> None:
        self.nc, self.wire, self.all = nc, wire, processes

    async def problems(self) -> list[str]:
        """Where bucket, events and the metrics of the running replicas disagree."""
        events = await self.wire.stored()
        try:
            state = await self.wire.state()
        except Exception as error:
            return [f"nothing is stored: {error!r}"]
        problems = state_problems(events, state)
        for n, process in enumerate(self.all):
            if process.process is not None and process.process.returncode is None:
                shown = (await process.get("/metrics"))[1]
                line = f'router_backpressure_status{{subject="{SUBJECT}"}} {NUMBERS[state["status"]]}'
                problems += [] if line in shown else [f"replica {n} shows another status than {state['status']}"]
        return problems

    async def agree(self, status: str, since: float | None = None) -> None:
        """All agree on this status, AGREE_WITHIN after it is stored, or after the moment `since`."""

        async def is_stored() -> bool:
            return (await self.wire.stored_status()) == status

        async def agreed() -> bool:
            return await is_stored() and not await self.problems()

        if since is None:
            await eventually(is_stored, f"{status} to be stored")
            since = time.monotonic()
        try:
            await eventually(agreed, f"all to agree on {status}")
        except AssertionError:
            raise AssertionError("\n".join([*await self.problems(), shown(await self.wire.stored())])) from None
        took = time.monotonic() - since
        print(f"all agree on {status} after {took:.2f} s")
        assert took <= AGREE_WITHIN, f"all agree on {status} after {took:.2f} s, not {AGREE_WITHIN}"

    async def check(self, incidents: int) -> None:
        events = await self.wire.stored()
        assert not (problems := event_problems(events, incidents)), "\n".join([*problems, shown(events)])


class RouterWire(Wire):
    async def stored_status(self) -> str | None:
        try:
            return str((await self.state())["status"])
        except Exception:
            return None


@asynccontextmanager
async def replicas(nc: Client, server: NatsServer, where: Path, n: int, **more: Any) -> AsyncIterator[Replicas]:
    wire = RouterWire(nc)
    async with AsyncExitStack() as stack:
        processes = [Sidecar(where, server.url, CONFIG | {"instance": f"i{i}"} | more) for i in range(n)]
        for process in processes:
            await stack.enter_async_context(process)
        for process in processes:
            await process.observing()
        yield Replicas(nc, wire, processes)


def signalled(process: Sidecar, sign: int) -> None:
    assert process.process is not None
    process.process.send_signal(sign)


async def test_an_incident_that_only_a_dead_replica_saw_begin_is_ended(
    nc: Client, server: NatsServer, router: None, tmp_path: Path
) -> None:
    async with replicas(nc, server, tmp_path, 2) as both:
        await both.agree("inactive")
        first, second = both.all
        signalled(second, SIGSTOP)
        await publish(nc, 60)
        await both.wire.listen()
        await eventually(lambda: published(both, "backpressure_warning"), "the rise")
        await drain(nc, [])
        await first.kill()
        signalled(second, SIGCONT)
        await both.agree("inactive")
        await both.check(1)


async def published(both: Replicas, kind: str) -> bool:
    return any(event["type"] == kind for event in await both.wire.stored())


async def test_a_replica_that_was_suspended_over_the_end_begins_no_second_incident(
    nc: Client, server: NatsServer, router: None, tmp_path: Path
) -> None:
    async with replicas(nc, server, tmp_path, 2) as both:
        for round_ in range(3):
            await publish(nc, 60)
            await both.agree("warning")
            stopped = both.all[round_ % 2]
            signalled(stopped, SIGSTOP)
            await drain(nc, [])

            async def over(n: int = round_ + 1) -> bool:
                return sum(e["type"] == "recovery" for e in await both.wire.stored()) == n

            await eventually(over, "the recovery")
            signalled(stopped, SIGCONT)
            await both.agree("inactive")
        await both.check(3)


def garbage(state: dict[str, Any]) -> bytes:
    return b"garbage"


def foreign(state: dict[str, Any]) -> bytes:
    calm: dict[str, Any] = {"status": "inactive", "action": "continue", "incident": None, "reasons": []}
    record = {"status": 0, "announced": 0, "incident": None, "reasons": [], "latched": []}
    return json.dumps(state | calm | {"record": state["record"] | record}).encode()


def delete(state: dict[str, Any]) -> bytes:
    return b""


@pytest.mark.parametrize("n", [1, 3])
async def test_what_is_stored_behind_them_is_put_right_without_an_event(
    nc: Client, server: NatsServer, router: None, tmp_path: Path, n: int
) -> None:
    changes: tuple[Callable[[dict[str, Any]], bytes], ...] = (delete, garbage, foreign)
    async with replicas(nc, server, tmp_path, n) as all_:
        await publish(nc, 60)
        await all_.agree("warning")
        before = await all_.wire.stored()
        for change in changes:
            payload = change(await all_.wire.state())
            headers = {"KV-Operation": "DEL"} if change is delete else None
            stored = await nc.jetstream().publish(f"$KV.{BUCKET}.{encode(SUBJECT)}", payload, headers=headers)
            since = time.monotonic()
            await changed_since(all_, stored.seq)
            await all_.agree("warning", since)
        await nc.jetstream().purge_stream(f"KV_{BUCKET}")
        await all_.agree("warning", time.monotonic())
        assert await all_.wire.stored() == before
        await drain(nc, [])
        await all_.agree("inactive")
        await all_.check(1)


async def test_every_replica_counts_the_events_of_all(
    nc: Client, server: NatsServer, router: None, tmp_path: Path
) -> None:
    async with replicas(nc, server, tmp_path, 3) as three:
        for _ in range(3):
            await publish(nc, 60)
            await three.agree("warning")
            await drain(nc, [])
            await three.agree("inactive")

        async def all_count() -> bool:
            answers = [await three.wire.ask(f"get.metrics.{SUBJECT}") for _ in range(30)]
            counts = [answer["windows"]["5m"]["events"] for answer in answers]
            return all(count["backpressure_warning"] == count["recovery"] == 3 for count in counts)

        await eventually(all_count, "30 answers with 3 warnings and 3 recoveries")


async def test_what_a_killed_replica_has_stored_and_not_published_is_published_by_another(
    nc: Client, start_server: StartServer, tmp_path: Path
) -> None:
    """The user of the first may not publish events."""
    users = (
        '{user: first, password: p, permissions: {publish: {deny: ["backpressure.v1.event.>"]}}}',
        "{user: second, password: p}",
    )
    server = await start_server(f"authorization: {{users: [{', '.join(users)}]}}")
    async with await nats.connect(server.url, user="second", password="p") as other:
        await other.jetstream().add_stream(name="ROUTER", subjects=[SUBJECT])
        await other.jetstream().add_consumer("ROUTER", CONSUMER)
        async with AsyncExitStack() as stack:
            first, second = [
                Sidecar(tmp_path, server.url.replace("//", f"//{user}:p@"), CONFIG | {"instance": user})
                for user in ("first", "second")
            ]
            for process in (first, second):
                await stack.enter_async_context(process)
                await process.observing()
            both = Replicas(other, RouterWire(other), [first, second])
            await both.agree("inactive")
            signalled(second, SIGSTOP)
            await other.jetstream().delete_consumer("ROUTER", "router")

            async def unsent() -> bool:
                return bool((await both.wire.state())["record"].get("unsent"))

            await eventually(unsent, "an event that is stored and not published")
            await first.kill()
            signalled(second, SIGCONT)
            await eventually(lambda: published(both, "monitoring_lost"), "the event")

            async def taken_off() -> bool:
                return not (await both.wire.state())["record"].get("unsent")

            await eventually(taken_off, "the event to be taken off the record")
            assert [event["type"] for event in await both.wire.stored()] == ["monitoring_lost"]


async def changed_since(all_: Replicas, revision: int) -> None:
    """Wait until the key was written again."""

    async def changed() -> bool:
        last = await all_.nc.jetstream().get_last_msg(f"KV_{BUCKET}", f"$KV.{BUCKET}.{encode(SUBJECT)}")
        return (last.seq or 0) > revision

    await eventually(changed, "the key to be written again")
