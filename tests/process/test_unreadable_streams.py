"""On a real server a stream that cannot be read makes only its own subjects stale."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from itertools import groupby
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client

from tests.conftest import StartServer
from tests.support.router import CONSUMER, prepare, publish
from tests.support.servers import NatsServer
from tests.support.sidecar import QUICK, SUBJECT, Sidecar, Wire, eventually

DENIED = "$JS.API.CONSUMER.LIST.DARK", "$JS.API.CONSUMER.INFO.DARK.*"
SEEN_SOON = {"observe": QUICK["observe"] | {"max_interval_ms": 500}}
"""Looks alone prove an idle consumer for three of these intervals at most."""


def accounts(*denied: str) -> str:
    deny = json.dumps(list(denied))
    return f"""accounts {{ A {{ jetstream: enabled, users: [
      {{user: admin, password: a}}, {{user: sidecar, password: s, permissions: {{publish: {{deny: {deny}}}}}}}]}} }}"""


@pytest.fixture
async def server(start_server: StartServer) -> NatsServer:
    return await start_server(accounts(*DENIED))


@pytest.fixture
async def nc(server: NatsServer) -> AsyncIterator[Client]:
    client = await nats.connect(server.url, user="admin", password="a", reconnect_time_wait=0.1)
    js = client.jetstream()
    await prepare(lambda: js.add_stream(name="ROUTER", subjects=[SUBJECT]))
    await prepare(lambda: js.add_consumer("ROUTER", CONSUMER))
    yield client
    await client.close()


async def add_dark(nc: Client) -> None:
    js = nc.jetstream()
    await prepare(lambda: js.add_stream(name="DARK", subjects=["dark.>"]))
    await prepare(lambda: js.add_consumer("DARK", CONSUMER))


def beside(where: Path, server: NatsServer, config: dict[str, Any] = SEEN_SOON) -> Sidecar:
    return Sidecar(where, server.url.replace("://", "://sidecar:s@"), config)


async def heartbeat(nc: Client) -> dict[str, Any]:
    kv = await nc.jetstream().key_value("backpressure_state")
    document: dict[str, Any] = json.loads((await kv.get("=heartbeat")).value or b"")
    return document


async def test_a_sidecar_that_starts_with_an_unreadable_stream_answers_for_the_others(
    nc: Client, server: NatsServer, tmp_path: Path
) -> None:
    await add_dark(nc)
    wire = await Wire(nc).listen()
    async with beside(tmp_path, server) as process:
        await process.observing()
        assert (await wire.ask(f"decide.gateway.{SUBJECT}"))["freshness"] == "known"
        assert await wire.refused("decide.gateway.dark.x") == "503"  # a consumer of the unread stream may have it
        assert await wire.refused("decide.gateway.light.x") == "404"
        assert (await heartbeat(nc))["sampled_at"] is not None


async def test_a_later_unreadable_stream_does_not_stop_the_heartbeat(
    nc: Client, server: NatsServer, tmp_path: Path
) -> None:
    async with beside(tmp_path, server, QUICK | {"publish": {"heartbeat_seconds": 0.2}}) as process:
        await process.observing()
        await add_dark(nc)

        async def tried() -> bool:
            return "consumers.unavailable" in process.log

        await eventually(tried, "the stream to be tried")
        first = (await heartbeat(nc))["sampled_at"]

        async def moved() -> bool:
            return bool((await heartbeat(nc))["sampled_at"] > first)

        await eventually(moved, "the heartbeat to go on")

        async def recent() -> bool:
            return bool((await process.ready(observing=True))["last_sweep_age_ms"] < 1000)

        await eventually(recent, "readings of the other streams to continue")


async def test_only_the_subjects_of_an_unreadable_stream_age_until_it_is_readable_again(
    nc: Client, server: NatsServer, tmp_path: Path
) -> None:
    server.reload(accounts())
    await add_dark(nc)
    wire = await Wire(nc).listen()
    seen: list[tuple[str, str, int | None]] = []
    js = nc.jetstream()
    kv = await prepare(lambda: js.create_key_value(bucket="backpressure_state"))
    watcher = await kv.watch("dark.=3E")

    async def written(freshness: str) -> dict[str, Any]:
        async def look() -> dict[str, Any] | None:
            entry = await watcher.updates(timeout=0.5)
            if entry is None or not entry.value:
                return None
            state = json.loads(entry.value)
            seen.append((state["freshness"], state["status"], state["proof_age_ms"]))
            return state if state["freshness"] == freshness else None

        async def look_again() -> dict[str, Any] | None:
            try:
                return await look()
            except nats.errors.TimeoutError:
                return None

        state: dict[str, Any] = await eventually(look_again, f"a state written {freshness}; seen {seen}")
        return state

    async with beside(tmp_path, server) as process:
        await process.observing()
        await publish(nc, 1)
        await nc.jetstream().publish("dark.x", b"")
        state = await written("known")
        assert state["proof_age_ms"] is None
        server.reload(accounts(*DENIED))
        state = await written("stale")
        assert (state["stale_reason"], state["status"]) == ("age", "inactive")
        assert state["proof_age_ms"] >= 1000
        state = await written("unknown")
        assert state["proof_age_ms"] >= 2000

        async def other_is_known() -> bool:
            answers = await wire.ask(f"decide.gateway.{SUBJECT}"), await wire.state(SUBJECT)
            return [answer["freshness"] for answer in answers] == ["known", "known"]

        await eventually(other_is_known, "the subject of the other stream to be known")
        server.reload(accounts())
        await written("known")
        assert [word for word, _ in groupby(one[0] for one in seen)] == ["known", "stale", "unknown", "known"], seen
