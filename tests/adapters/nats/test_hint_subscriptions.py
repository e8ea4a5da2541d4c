"""What is subscribed to of a real server's advisories and ack metrics: those of the streams that are wanted, once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import cast

import nats
from nats.aio.client import Client

from nats_backpressure.adapters.nats.advisories import AdvisoryListener
from nats_backpressure.adapters.nats.hint_subscriptions import ANY_STREAM, CONSUMER, METRIC, WAKING, counted
from nats_backpressure.adapters.nats.patched_client import PatchedClient
from nats_backpressure.config.nats import Nats, Secret
from nats_backpressure.runtime.observations import AckSeen, Hint, Nak
from tests.conftest import StartServer
from tests.fakes.clock import FakeClock
from tests.support.servers import NatsServer
from tests.support.sidecar import eventually


class Listening:
    """A listener, and another client that publishes as the server does."""

    def __init__(self, client: Client, other: Client, counts: Callable[[str], bool] = lambda stream: True) -> None:
        self.client, self.other = client, other
        self.received: list[Hint] = []
        self.advisories = AdvisoryListener(FakeClock(), self.received.append, lambda what: None, counts)

    async def follow(self, *streams: str, all_streams: bool = False) -> None:
        self.advisories.subscriptions.follow(None if all_streams else frozenset(streams))
        wanted = {ANY_STREAM} if all_streams else set(streams)

        async def subscribed() -> bool:
            subjects = {subscription.subject for subscription in self.client._subs.values()}
            return subjects >= {*WAKING, *(subject for name in wanted for subject in counted(name))} and all(
                subject.split(".")[5] in wanted for subject in subjects if subject.startswith(METRIC)
            )

        await eventually(subscribed, f"subscriptions to {wanted}")

    async def publish(self) -> list[tuple[str, str]]:
        """An ack metric and a NAK of each of two streams; returns what of them was received."""
        self.received.clear()
        await self.client.request("$JS.API.INFO", timeout=10)  # the server has what was sent before
        for stream in ("S", "T"):
            ack = {"type": "io.nats.jetstream.metric.v1.consumer_ack", "ack_time": 1, "deliveries": 1}
            nak = {"type": "io.nats.jetstream.advisory.v1.nak"}
            for subject, payload in ((METRIC, ack), (f"{CONSUMER}.MSG_NAKED", nak)):
                body = json.dumps(payload | {"stream": stream, "consumer": "c"}).encode()
                await self.other.publish(f"{subject}.{stream}.c", body)
        created = {"type": "io.nats.jetstream.advisory.v1.stream_action", "stream": "LAST"}
        await self.other.publish("$JS.EVENT.ADVISORY.STREAM.CREATED.LAST", json.dumps(created).encode())

        async def last() -> bool:
            return any(not hasattr(hint, "key") for hint in self.received)

        await eventually(last, "the last one, which wakes and is always received")
        for _ in range(20):  # each subscription has a task of its own
            await asyncio.sleep(0)
        counted_ones = [hint for hint in self.received if isinstance(hint, AckSeen | Nak)]
        return sorted((type(hint).__name__, hint.key.stream) for hint in counted_ones)


async def test_what_is_wanted_while_a_new_client_subscribes_comes_once() -> None:
    """`subscribe` waits where much is to be sent: two changes of what is wanted at once would each subscribe."""

    class Subscribed:
        def __init__(self, subject: str) -> None:
            self.subject = subject

        async def unsubscribe(self) -> None:
            await asyncio.sleep(0)
            open_ones.remove(self.subject)

    class Slow:
        async def subscribe(self, subject: str, **more: object) -> Subscribed:
            await asyncio.sleep(0)
            open_ones.append(subject)
            return Subscribed(subject)

    open_ones = list[str]()
    advisories = AdvisoryListener(FakeClock(), lambda hint: None, lambda what: None, lambda stream: True)
    listening = asyncio.create_task(advisories.listen(cast("Client", Slow())))
    for n in range(60):
        advisories.subscriptions.follow(frozenset("S" if n % 3 else "T"))
        await asyncio.sleep(0)
    advisories.subscriptions.follow(frozenset("S"))
    await listening
    for _ in range(60):
        await asyncio.sleep(0)
    assert sorted(open_ones) == sorted((*WAKING, *counted("S")))


BOTH = [("AckSeen", "S"), ("AckSeen", "T"), ("Nak", "S"), ("Nak", "T")]
ONE = [("AckSeen", "S"), ("Nak", "S")]


async def test_what_is_wanted_comes_once(server: NatsServer) -> None:
    client, other = await nats.connect(server.url), await nats.connect(server.url)
    listening = Listening(client, other)
    await listening.advisories.listen(client)
    assert await listening.publish() == BOTH
    await listening.follow("S")
    assert await listening.publish() == ONE
    await listening.follow()
    assert await listening.publish() == []
    await listening.follow("S", "T")
    assert await listening.publish() == BOTH
    await listening.follow(all_streams=True)
    assert await listening.publish() == BOTH
    await client.close()
    await other.close()


async def test_a_new_client_subscribes_to_what_was_wanted(server: NatsServer) -> None:
    first, second, other = [await nats.connect(server.url) for _ in range(3)]
    listening = Listening(first, other)
    await listening.advisories.listen(first)
    await listening.follow("S")
    await first.close()
    listening.client = second
    await listening.advisories.listen(second)
    assert await listening.publish() == ONE
    await second.close()
    await other.close()


async def test_what_does_not_count_is_not_read(server: NatsServer) -> None:
    client, other = await nats.connect(server.url), await nats.connect(server.url)
    listening = Listening(client, other, lambda stream: stream == "S")
    await listening.advisories.listen(client)
    assert await listening.publish() == ONE
    await client.close()
    await other.close()


async def test_it_shows_whether_it_may_subscribe(start_server: StartServer) -> None:
    server = await start_server(
        """authorization { users: [
          {user: all, password: p},
          {user: blind, password: p, permissions: {subscribe: {deny: "$JS.EVENT.METRIC.>"}}}] }"""
    )
    for user, allowed in (("all", True), ("blind", False)):
        client = PatchedClient(None, lambda kind, text: None)
        await client.open(Nats((server.url,), user=user, password=Secret("p")), "test", 5.0)
        listener = AdvisoryListener(FakeClock(), lambda hint: None, lambda what: None)
        assert listener.subscriptions.allowed(), "as long as it is not known"
        await listener.listen(client)
        await client.flush()

        async def known() -> bool:
            return listener.subscriptions.allowed() is allowed  # noqa: B023

        await eventually(known, f"{user}: {allowed}")
        await client.close()
