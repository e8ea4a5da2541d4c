"""What a sidecar's user can have copied by a stream that it creates: docs/operations.md says so, and how to end it."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from nats.aio.client import Client
from nats.errors import TimeoutError as NatsTimeoutError

from nats_backpressure.adapters.nats.patched_client import settled
from nats_backpressure.cli import main
from nats_backpressure.client import BackpressureClient
from tests.deploy.roles import API, STREAM, login, settings
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, Sidecar, eventually

EVENTS, STATES = "BACKPRESSURE_EVENTS", "KV_backpressure_state"
SECRET = b"of a watched stream"


async def ask(nc: Client, request: str, body: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(
        (await nc.request(f"{API}.{request}", json.dumps(body).encode(), timeout=5)).data
    )
    return result


def create(nc: Client, stream: str, **config: Any) -> Awaitable[dict[str, Any]]:
    return ask(nc, f"STREAM.CREATE.{stream}", {"name": stream, **config})


async def pull(server: NatsServer) -> None:
    worker = await login(server, "consumer")
    (message,) = await (await worker.jetstream().pull_subscribe_bind("router", STREAM)).fetch(1)
    assert message.data == SECRET
    await worker.close()


COPIES = {
    "sources": {"sources": [{"name": STREAM}]},
    "mirror": {"mirror": {"name": STREAM}},
    "the inboxes of workers": {"subjects": ["_INBOX_consumer.>"]},
}


@pytest.mark.parametrize("config", COPIES.values(), ids=COPIES)
async def test_while_a_stream_of_ours_is_missing_it_can_be_made_a_copy(guarded: NatsServer, config: Any) -> None:
    """Where this fails, that part of the page can go."""
    sidecar, gateway = await login(guarded, "sidecar"), await login(guarded, "gateway")
    assert "error" not in await create(sidecar, EVENTS, **config)
    await gateway.jetstream().publish(SUBJECT, SECRET)
    await pull(guarded)

    async def copied() -> bool:
        info = await ask(sidecar, f"STREAM.INFO.{EVENTS}", {})
        return bool(info["state"]["messages"])

    await eventually(copied, "the copy")
    assert "message" in await ask(sidecar, f"STREAM.MSG.GET.{EVENTS}", {"seq": 1})
    assert "Violation" not in guarded.log
    await sidecar.close()
    await gateway.close()


async def test_while_it_is_missing_it_can_be_made_to_write_into_a_watched_stream(guarded: NatsServer) -> None:
    sidecar = await login(guarded, "sidecar")
    key = "$KV.backpressure_state.x"
    made = await create(sidecar, STATES, subjects=[key], republish={"src": key, "dest": SUBJECT})
    assert "error" not in made
    await sidecar.publish(key, b"of my choice")

    async def written() -> bool:
        return bool((await ask(sidecar, f"STREAM.INFO.{STREAM}", {}))["state"]["messages"])

    await eventually(written, "the message in the watched stream")
    await sidecar.close()


async def test_once_ours_exist_nothing_can_be_made_a_copy(guarded: NatsServer, replicas: list[Sidecar]) -> None:
    nc = await login(guarded, "sidecar")
    for stream in (EVENTS, STATES, "KV_backpressure_policy"):
        for config in (*COPIES.values(), {"republish": {"src": ">", "dest": "x.>"}}):
            refused = await create(nc, stream, **config)
            assert refused["error"]["description"] == "stream name already in use with a different configuration"
    await nc.close()


async def test_the_right_to_create_is_one_to_the_exact_names(guarded: NatsServer) -> None:
    nc = await login(guarded, "sidecar")
    other = await ask(nc, f"STREAM.CREATE.{EVENTS}", {"name": "COPY", "sources": [{"name": STREAM}]})
    assert other["error"]["err_code"] == 10056, "stream name in subject does not match request"
    consumer = {"stream_name": STREAM, "config": {"name": "x", "ack_policy": "none", "deliver_subject": "x"}}
    assert "error" in await ask(nc, f"CONSUMER.CREATE.{EVENTS}.x", consumer)
    for request in (
        *("STREAM.CREATE.COPY", f"STREAM.CREATE.{EVENTS}_2", f"STREAM.UPDATE.{EVENTS}", f"STREAM.DELETE.{EVENTS}"),
        *(
            f"STREAM.PURGE.{EVENTS}",
            f"STREAM.RESTORE.{EVENTS}",
            f"STREAM.SNAPSHOT.{STREAM}",
            f"STREAM.SNAPSHOT.{EVENTS}",
        ),
    ):
        await nc.publish(f"{API}.{request}", b"{}")
        await settled(nc)
        denied = f'Publish Violation - .*Subject "{re.escape(f"{API}.{request}")}"'
        assert re.search(denied, guarded.log), f"{request} was not denied"
    await nc.close()


async def test_without_the_right_to_create_it_does_its_work_on_what_others_created(
    guarded: NatsServer, replicas: list[Sidecar], tmp_path: Path
) -> None:
    """The three exist; then the rights are those that are printed for `manage_resources: false`."""
    for each in replicas:
        assert (await each.end())[0] == 0
    file = tmp_path / "config.yaml"
    file.write_text("publish: {manage_resources: false}")
    printed = CliRunner().invoke(main, ["permissions", "--config", str(file)]).stdout
    assert ".STREAM.CREATE." not in printed
    guarded.config = printed
    await guarded.restart()
    before = guarded.log.count("Violation")
    config = settings(tmp_path, "three") | {"publish": {"manage_resources": False}}
    gateway = await login(guarded, "gateway")
    async with Sidecar(tmp_path, guarded.url, config) as sidecar:
        await sidecar.observing()
        for _ in range(1500):
            await gateway.publish(SUBJECT, b"x")

        async def refused() -> bool:
            reply = await gateway.request(f"backpressure.v1.decide.gateway.{SUBJECT}", timeout=5)
            return bool(json.loads(reply.data).get("status") in ("warning", "active"))

        await eventually(refused, "a rise")
        assert (await sidecar.end())[0] == 0
    assert guarded.log.count("Violation") == before
    nc = await login(guarded, "sidecar")
    with pytest.raises(NatsTimeoutError):
        await nc.request(f"{API}.STREAM.CREATE.{EVENTS}", b"{}", timeout=0.5)
    await nc.close()
    await gateway.close()


async def test_what_a_worker_has_delivered_elsewhere_is_taken_for_no_event_and_no_message_of_a_replica(
    guarded: NatsServer, replicas: list[Sidecar]
) -> None:
    """That the server delivers it is what the page says; where this fails, that part of it can go."""
    gateway, worker, operator = [await login(guarded, role) for role in ("gateway", "consumer", "operator")]
    forged = json.dumps({"type": "recovery", "subject": SUBJECT, "epoch": "e", "seq": 1}).encode()
    events: list[Any] = []
    client = BackpressureClient(gateway, report_every=None)
    await client.on_event(events.append)
    for _ in range(2):
        await gateway.jetstream().publish(SUBJECT, forged)
    for reply in (f"backpressure.v1.event.recovery.{SUBJECT}", "backpressure.v1.internal.presence"):
        await worker.publish(f"{API}.CONSUMER.MSG.NEXT.{STREAM}.router", b"", reply=reply)

    async def dropped() -> bool:
        pages = [(await each.get("/metrics"))[1] for each in replicas]
        counted = [line for page in pages for line in page.splitlines() if 'what="replica_message_unread"' in line]
        return client.stats.events_dropped == 1 and [line.endswith(" 1.0") for line in counted] == [True, True]

    await eventually(dropped, "the two messages to be dropped")
    assert events == [] and "Violation" not in guarded.log
    await client.close()
    for each in (gateway, worker, operator):
        await each.close()
