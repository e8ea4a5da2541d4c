"""Random traffic on a real server: each crossing of a mark becomes an event, and what is idle is never stale."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from nats.aio.client import Client

from tests.support.servers import NatsServer
from tests.support.sidecar import Sidecar, Wire, eventually

STREAMS, MARK = 4, 1000
"""Streams with one consumer each, and the backlog above which a subject is overloaded by default."""
BOUND = 10.0
"""Seconds from a crossing to its event: a look, a reading, a write and a publish; much less on a machine at rest."""
POLICY = {
    "subjects": [">"],
    "drain_seconds": {"overload": 1e6},
    "latency_p95": {"overload": 1e6},
    "stall_seconds": 3600,
}
"""A backlog alone overloads a subject, however slow this machine is."""
SETTINGS = {"observe": {"max_interval_ms": 30_000}, "policies": [POLICY]}
"""What is read only once in the longest interval is read too late for BOUND."""


@pytest.mark.parametrize("seed", [1, 2])
async def test_each_crossing_is_an_event_and_what_is_idle_stays_known(
    nc: Client, server: NatsServer, tmp_path: Path, seed: int
) -> None:
    chance, js, wire = random.Random(seed), nc.jetstream(), await Wire(nc).listen()
    for n in range(STREAMS + 1):  # nothing happens to the last one
        await js.add_stream(name=f"S{n}", subjects=[f"s{n}"])
        await js.add_consumer(f"S{n}", durable_name="c", ack_policy="explicit")
    pulls = [await js.pull_subscribe_bind("c", f"S{n}") for n in range(STREAMS)]
    over: set[int] = set()
    async with Sidecar(tmp_path, server.url, SETTINGS) as process:
        await process.observing()
        for n in range(STREAMS + 1):
            await wire.status(f"s{n}", status="inactive")
        for _ in range(40):
            n = chance.randrange(STREAMS)
            match chance.choice(("publish", "publish", "fetch", "purge")):
                case "publish":
                    for _ in range(chance.choice((1, 20, 600))):
                        await nc.publish(f"s{n}", b"x")
                case "fetch" if (await js.consumer_info(f"S{n}", "c")).num_pending:
                    for message in await pulls[n].fetch(20, timeout=1):
                        await (message.ack() if chance.random() < 0.8 else message.nak())
                case "purge" if chance.random() < 0.3:
                    await js.purge_stream(f"S{n}")
            await nc.flush()
            if n not in over and (await js.consumer_info(f"S{n}", "c")).num_pending > MARK:
                over.add(n)

                async def published(subject: str = f"s{n}") -> bool:
                    return any(e["subject"] == subject and e["type"].endswith("warning") for e in wire.live)

                await eventually(published, f"the event of s{n}", BOUND)
            idle = await wire.ask(f"get.status.s{STREAMS}")
            assert (idle["status"], idle["freshness"]) == ("inactive", "known")
        assert over and {e["subject"] for e in wire.live} <= {f"s{n}" for n in over}
        assert not [e for e in wire.live if e["type"].startswith("monitoring")]
