"""The rights of a gateway: with those that the documents name it does all its work, and it can do nothing else."""

from __future__ import annotations

from pathlib import Path

import nats
import pytest
from nats.js.errors import APIError

from nats_backpressure.client import BackpressureClient
from tests.conftest import StartServer
from tests.simulations.state_bucket import BUCKET, SUBJECT, States, active, state, wait_for_admission, wait_until

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"
PUBLISH = (f"$JS.API.DIRECT.GET.KV_{BUCKET}", "backpressure.v1.report.gateway.>", "backpressure.v1.decide.gateway.>")
SUBSCRIBE = (f"$KV.{BUCKET}.>", "_INBOX_gateway.>", "backpressure.v1.event.>")


def users(publish: tuple[str, ...] = PUBLISH, subscribe: tuple[str, ...] = SUBSCRIBE) -> str:
    def listed(subjects: tuple[str, ...]) -> str:
        return "[" + ", ".join(f'"{subject}"' for subject in subjects) + "]"

    rights = f"publish: {listed(publish)}, subscribe: {listed(subscribe)}"
    return (
        "authorization { users: [ {user: all, password: all}, "
        f"{{user: gateway, password: gateway, permissions: {{ {rights} }} }} ] }}"
    )


def test_the_rights_are_those_of_the_page() -> None:
    text = PAGE.read_text().split("## A gateway in ten steps")[1].split("\n1. ")[0]
    for right in (*PUBLISH, *SUBSCRIBE):
        assert f"`{right.replace(BUCKET, 'NAME_state').replace('backpressure.v1', 'P')}`" in text


async def test_with_these_rights_it_follows_whatever_happens_and_nothing_is_denied(start_server: StartServer) -> None:
    server = await start_server(users())
    admin = await nats.connect(server.url, user="all", password="all", reconnect_time_wait=0.1)
    nc = await nats.connect(
        server.url,
        user="gateway",
        password="gateway",
        inbox_prefix="_INBOX_gateway",
        reconnect_time_wait=0.1,
        max_reconnect_attempts=-1,
    )
    states = States(admin)
    await states.make()
    await states.put(active(), state("other"))
    async with BackpressureClient(nc, report_every=0.1) as client:
        await client.on_event(print)
        assert await client.watch([SUBJECT])
        assert not client.admit(SUBJECT)
        await wait_until(lambda: client.stats.reports > 0, "a report")
        await states.put(state())
        await wait_for_admission(client, status="inactive")
        await server.restart()
        await wait_until(lambda: admin.is_connected and nc.is_connected, "the reconnect")
        await states.put(active())
        await wait_for_admission(client, status="active")
        await states.remove()
        await states.make()
        await states.put(state())
        await wait_for_admission(client, status="inactive")
        await client.decide(SUBJECT)
        assert "Violation" not in server.log
        with pytest.raises((APIError, nats.errors.TimeoutError)):
            await nc.jetstream(timeout=0.5).add_consumer(f"KV_{BUCKET}", name="x", deliver_subject=SUBJECT)
        assert "Publish Violation" in server.log
    await nc.close()
    await admin.close()
