"""Values of other programs in our buckets are skipped, counted and logged once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from nats.aio.client import Client as PlainClient
from structlog.testing import capture_logs

from nats_backpressure.adapters.nats.api import JetStreamApi
from nats_backpressure.adapters.nats.connection import Connection
from nats_backpressure.adapters.nats.patched_client import PatchedClient
from nats_backpressure.adapters.nats.policy_store import POLL_EVERY, JetStreamPolicyStore
from nats_backpressure.adapters.nats.resources import Resources
from nats_backpressure.adapters.nats.state_store import JetStreamStateStore
from nats_backpressure.config.nats import Nats
from nats_backpressure.policy.snapshot import PolicySnapshot
from nats_backpressure.runtime.clock import SystemClock
from tests.fakes.clock import FakeClock, settled
from tests.simulations.stored_samples import NAMES, RECORD, value
from tests.support.background import meanwhile
from tests.support.servers import NatsServer
from tests.support.sidecar import eventually

STATE, POLICY = f"$KV.{NAMES.state_bucket}.".encode(), f"$KV.{NAMES.policy_bucket}.".encode()
POISON = {
    "a subject that is no UTF-8": b"PUB %s\xff\xfe 2\r\nhi\r\n",
    "another such, of several tokens": b"PUB %sa.\xc3.b 2\r\nhi\r\n",
    "headers that are no text": b"HPUB %sx.y 20 22\r\nNATS/1.0 \xff\xff\xff\r\n\r\nxxxxhi\r\n",
    "headers without an end": b"HPUB %sx.z 8 10\r\nNATS/1.0hi\r\n",
    "control characters": b"PUB %sa\x01\x02 2\r\nhi\r\n",
    "a vertical tab": b"PUB %sa\x0bb 2\r\nhi\r\n",
    "a form feed, with headers": b"HPUB %sa\x0cb 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
}


async def raw(server: NatsServer, *commands: bytes) -> None:
    """Sent as they are, and taken by the server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b'CONNECT {"headers": true, "verbose": false}\r\n' + b"".join(commands) + b"PING\r\n")
    async with asyncio.timeout(5):
        while b"PONG" not in await reader.readline():
            pass
    writer.close()


@asynccontextmanager
async def connected(server: NatsServer, counted: list[str]) -> AsyncIterator[Connection]:
    async def set_up(client: PatchedClient) -> None:
        pass

    options = Nats((server.url,))
    connection = Connection("t", options, SystemClock(), set_up=set_up, count=counted.append, on_rebuild=lambda: None)
    async with meanwhile(connection.run()):

        async def up() -> bool:
            return connection.connected

        await eventually(up, "the connection")
        await Resources(JetStreamApi(connection), NAMES, 1, 604_800, True).ensure()
        yield connection


@pytest.mark.parametrize("last", [False, True], ids=["in between", "as the newest"])
@pytest.mark.parametrize("poison", POISON.values(), ids=POISON.keys())
async def test_the_state_bucket_is_read_without_the_foreign_value(
    server: NatsServer, nc: PlainClient, poison: bytes, last: bool
) -> None:
    counted: list[str] = []
    async with connected(server, counted) as connection:
        store = JetStreamStateStore(
            JetStreamApi(connection), NAMES, counted.append, lambda: connection.client, SystemClock()
        )

        async def put(name: str) -> None:
            await store.write(name, value(msgspec.structs.replace(RECORD, subject=name, unsent=()), "n"), 0, "n")

        await put("before")
        if not last:
            await raw(server, poison % STATE)
        await put("after")
        if last:
            await raw(server, poison % STATE)

        async def is_stored() -> bool:
            return (await nc.jetstream().stream_info(f"KV_{NAMES.state_bucket}")).state.messages == 3

        await eventually(is_stored, "the foreign value in the bucket")
        with capture_logs() as lines:
            async with asyncio.timeout(10):  # a poison that is waited for costs 5 s each time
                loaded = [await store.load_all() for _ in range(3)]
        assert [set(one) for one in loaded] == [{"before", "after"}] * 3
        assert counted.count("state_malformed") == 3
        assert [line["event"] for line in lines if "malformed" in line["event"]] == ["state.malformed"]


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON.keys())
async def test_the_policy_bucket_is_read_at_once_without_the_foreign_value(
    server: NatsServer, nc: PlainClient, poison: bytes
) -> None:
    counted: list[str] = []
    snapshots: list[PolicySnapshot] = []
    async with connected(server, counted) as connection:
        js = JetStreamApi(connection)
        clock = FakeClock()
        store = JetStreamPolicyStore(js, NAMES, counted.append, lambda: connection.client, clock)
        kv = await nc.jetstream().key_value(NAMES.policy_bucket)
        await kv.put("a", b"{}")
        await raw(server, poison % POLICY)
        async with meanwhile(store.follow(snapshots.append)):

            async def polled() -> bool:
                return clock.sleeping

            await eventually(polled, "the first poll")
            await kv.put("b", b"{}")
            clock.advance(POLL_EVERY)
            await settled()
            await eventually(polled, "the next poll")
        assert {"a", "b"} <= snapshots[-1].entries.keys()


ABSURD = {
    "a stream that is no name": {"latched": [[["bad name", "c"], ["pending"]]]},
    "a consumer that is no name": {"latched": [[["S", "c.*"], ["pending"]]]},
    "an endless name": {"latched": [[["S", "c" * 300], ["pending"]]]},
    "a latch nobody has": {"latched": [[["S", "c"], ["x" * 5000]]]},
    "more latches than anybody has": {"latched": [[["S", f"c{n}"], ["pending"]] for n in range(10_001)]},
    "latches on more streams than a subject has": {"latched": [[[f"S{n}", "c"], ["pending"]] for n in range(101)]},
    "what was carried of no name": {"carried": [[["S", "a b"], {"diagnosed_for": 1.0}]]},
}


@pytest.mark.parametrize("change", ABSURD.values(), ids=ABSURD.keys())
async def test_a_record_that_we_cannot_have_written_is_ignored(
    server: NatsServer, nc: PlainClient, change: dict[str, object]
) -> None:
    counted: list[str] = []
    async with connected(server, counted) as connection:
        store = JetStreamStateStore(
            JetStreamApi(connection), NAMES, counted.append, lambda: connection.client, SystemClock()
        )
        kv = await nc.jetstream().key_value(NAMES.state_bucket)
        for name in ("bad", "good"):
            good = json.loads(value(msgspec.structs.replace(RECORD, subject=name, unsent=()), "n"))
            good["record"] |= change if name == "bad" else {}
            await kv.put(name, json.dumps(good).encode())
        with capture_logs() as lines:
            assert set(await store.load_all()) == {"good"}
        assert counted == ["state_malformed"]
        assert [(line["event"], line["key"]) for line in lines] == [("state.malformed", "bad")]


async def test_a_value_nested_too_deep_is_ignored(server: NatsServer, nc: PlainClient) -> None:
    counted: list[str] = []
    async with connected(server, counted) as connection:
        store = JetStreamStateStore(
            JetStreamApi(connection), NAMES, counted.append, lambda: connection.client, SystemClock()
        )
        kv = await nc.jetstream().key_value(NAMES.state_bucket)
        await kv.put("deep", b'{"unknown": ' + b"[" * 200_000 + b"]" * 200_000 + b"}")
        assert await store.load_all() == {}
        assert counted == ["state_malformed"]
