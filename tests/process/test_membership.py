"""On a real server a consumer that no longer counts holds no status, whatever is stored about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from tests.support.router import CONSUMER, publish
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, UNHURRIED, Sidecar, Wire, eventually

AUDIT = ConsumerConfig(
    durable_name="audit", ack_policy=AckPolicy.EXPLICIT, max_ack_pending=20_000, filter_subject=SUBJECT
)
ROUTER = CONSUMER.evolve(filter_subject=SUBJECT, deliver_policy=DeliverPolicy.NEW)
LOAD = 10_001
"""Messages that wait: enough to be active by themselves."""


@pytest.fixture
async def overloaded(nc: Client) -> None:
    """A router without a backlog, and an audit durable beside it that nobody pulls from."""
    js = nc.jetstream()
    await js.add_stream(name="ROUTER", subjects=["beamline.router.v1.>"])
    await js.add_consumer("ROUTER", AUDIT)
    await publish(nc, LOAD)
    await js.add_consumer("ROUTER", ROUTER)


async def calm(wire: Wire) -> dict[str, Any]:
    """Wait until the router alone speaks for the subject, and nothing is refused."""

    async def look() -> dict[str, Any] | None:
        result = await wire.ask(f"get.status.{SUBJECT}")
        consumers = [one[0][1] for state in [await wire.state(SUBJECT)] for one in state["record"].get("latched", ())]
        decision = await wire.ask(f"decide.gateway.{SUBJECT}")
        done = (result["status"], result["freshness"], decision["action"]) == ("inactive", "known", "continue")
        return result if done and not consumers else None

    result: dict[str, Any] = await eventually(look, "the router alone to speak")
    return result


async def active(wire: Wire) -> None:
    async def look() -> bool:
        return (await wire.state(SUBJECT))["status"] == "active"

    await eventually(look, "the audit durable to hold the subject active")


class TestConsumersThatNoLongerCount:
    async def test_a_consumer_that_is_no_longer_watched_after_a_restart(
        self, nc: Client, server: NatsServer, overloaded: None, tmp_path: Path
    ) -> None:
        wire = await Wire(nc).listen()
        async with Sidecar(tmp_path, server.url, UNHURRIED) as process:
            await process.observing()
            await active(wire)
            await process.kill()
            process.configure(UNHURRIED | {"watch": [{"stream": "*", "consumers": ["router*"]}]})
            await process.start()
            await process.observing()
            await calm(wire)
            assert (await wire.event("recovery"))["reasons"] == []  # it was not deleted

    async def test_a_consumer_whose_filter_changed_while_no_sidecar_ran(
        self, nc: Client, server: NatsServer, overloaded: None, tmp_path: Path
    ) -> None:
        wire = await Wire(nc).listen()
        async with Sidecar(tmp_path, server.url, UNHURRIED) as process:
            await process.observing()
            await active(wire)
            await process.kill()
            moved = AUDIT.evolve(filter_subject="beamline.router.v1.other")
            await nc.jetstream().add_consumer("ROUTER", moved)
            await process.start()
            await process.observing()
            await calm(wire)
            assert (await wire.status("beamline.router.v1.other"))["status"] == "inactive"

    @pytest.mark.parametrize("kind", ["ack none", "ephemeral"])
    async def test_a_consumer_that_was_recreated_as_one_that_never_counts(
        self, nc: Client, server: NatsServer, overloaded: None, tmp_path: Path, kind: str
    ) -> None:
        wire, js = await Wire(nc).listen(), nc.jetstream()
        config = {"name": "audit", "ack_policy": "none", "filter_subject": SUBJECT, "durable_name": "audit"}
        if kind == "ephemeral":
            config |= {"ack_policy": "explicit", "inactive_threshold": 60_000_000_000}
            del config["durable_name"]
        async with Sidecar(tmp_path, server.url, UNHURRIED) as process:
            await process.observing()
            await active(wire)
            await js.delete_consumer("ROUTER", "audit")
            body = {"stream_name": "ROUTER", "config": config}
            reply = await nc.request("$JS.API.CONSUMER.CREATE.ROUTER.audit", json.dumps(body).encode(), timeout=5)
            assert b'"error"' not in reply.data, reply.data
            await calm(wire)

    async def test_a_consumer_of_a_stream_that_is_no_longer_watched(
        self, nc: Client, server: NatsServer, overloaded: None, tmp_path: Path
    ) -> None:
        """Its stream is read once more, only to learn that it does not count."""
        wire, js = await Wire(nc).listen(), nc.jetstream()
        await js.add_stream(name="COPY", mirror={"name": "ROUTER"})  # type: ignore[arg-type]
        await js.add_consumer("COPY", AUDIT)
        await js.delete_consumer("ROUTER", "audit")
        async with Sidecar(tmp_path, server.url, UNHURRIED) as process:
            await process.observing()
            await active(wire)
            await process.kill()
            process.configure(UNHURRIED | {"watch": [{"stream": "ROUTER", "consumers": ["*"]}]})
            await process.start()
            await process.observing()
            await calm(wire)
