"""Mistakes one after the other under one key of the policy bucket, seen only over the wire."""

from __future__ import annotations

from pathlib import Path

import pytest
from nats.aio.client import Client

from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, UNHURRIED, Sidecar, Wire, eventually

ABOVE_GUARD = b'{"pending": {"overload": 6000}}'
BROKEN = b'{"pending": '
GOOD = b'{"retry_after_seconds": 7}'
GUARD = UNHURRIED | {"policy_guard": {"max_pending_overload": 5000}}


@pytest.mark.parametrize(("key", "subject"), [(SUBJECT, SUBJECT), ("no.=3E", "no.>")], ids=["watched", "unwatched"])
async def test_each_mistake_under_one_key_is_reported_once_also_by_two_replicas(
    nc: Client, server: NatsServer, router: None, tmp_path: Path, key: str, subject: str
) -> None:
    wire = await Wire(nc).listen()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with Sidecar(tmp_path / "a", server.url, GUARD) as one, Sidecar(tmp_path / "b", server.url, GUARD) as two:
        await one.observing()
        await two.observing()
        bucket = await nc.jetstream().key_value("backpressure_policy")
        revisions = []
        for value in (ABOVE_GUARD, BROKEN, BROKEN, GOOD, BROKEN, ABOVE_GUARD):
            revision = await bucket.put(key, value)
            if value is GOOD:
                continue
            revisions.append(revision)

            async def reported(revision: int = revision) -> bool:
                return any((e.get("policy_revision") or "").endswith(f":{revision}") for e in wire.live)

            await eventually(reported, f"policy_rejected of revision {revision}")
        events = [e for e in await wire.stored() if e["type"] == "policy_rejected"]
        assert [int(e["policy_revision"].rpartition(":")[2]) for e in events] == revisions
        assert {e["subject"] for e in events} == {subject}
        assert len({e["id"] for e in events}) == len(events)
