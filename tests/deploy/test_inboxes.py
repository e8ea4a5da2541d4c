"""Nobody receives what comes to the inboxes of another role: replies, and the messages that a worker pulls."""

from __future__ import annotations

import re

from nats_backpressure.adapters.nats.patched_client import settled
from nats_backpressure.client import BackpressureClient
from tests.deploy.roles import OURS, ROLES, login
from tests.support.command import Command
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, Sidecar

EVERYBODY = ("_INBOX.>", ">", "*.>", "*.*.*", "*.*")
MESSAGES = 10


async def test_nobody_receives_what_comes_to_the_inbox_of_another_role(
    guarded: NatsServer, replicas: list[Sidecar], command: Command
) -> None:
    overheard: list[tuple[str, str]] = []
    spies = []
    for role in ROLES:
        spies.append(spy := await login(guarded, role))

        async def note(message: object, role: str = role) -> None:
            overheard.append((role, str(message)))

        for subject in (*EVERYBODY, *(f"_INBOX_{other}.>" for other in ROLES if other != role)):
            await spy.subscribe(subject, cb=note)
            await spy.subscribe(subject, queue="spies", cb=note)
        await settled(spy)
    gateway, consumer = await login(guarded, "gateway"), await login(guarded, "consumer")
    for _ in range(MESSAGES):
        await gateway.jetstream().publish(SUBJECT, b"for the worker alone")
    assert (await gateway.request(f"{OURS}.decide.gateway.{SUBJECT}", timeout=5)).data
    assert (await BackpressureClient(gateway).decide(SUBJECT)).failed_open is None
    pulling = await consumer.jetstream().pull_subscribe_bind("router", "ROUTER")
    assert (await pulling.consumer_info()).num_pending == MESSAGES
    pulled = await pulling.fetch(MESSAGES)
    assert {message.data for message in pulled} == {b"for the worker alone"}
    assert SUBJECT in await command.good("status")
    for each in (*spies, gateway, consumer):
        await settled(each)
        await each.close()
    came_to = set(re.findall(r"->> \[H?MSG (_INBOX[^.]*)\.", guarded.log))
    assert came_to == {f"_INBOX_{role}" for role in ROLES}, "or there was nothing to overhear"
    assert overheard == []
