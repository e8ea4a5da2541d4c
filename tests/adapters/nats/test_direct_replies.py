"""Replies from the read loop, on a real server: the same as in the ordinary way, counted, bounded, and in turns."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from nats_backpressure.adapters.nats import direct_replies
from nats_backpressure.adapters.nats.bounded_client import WAITING
from nats_backpressure.adapters.nats.direct_replies import AT_ONCE
from nats_backpressure.adapters.nats.endpoints import LARGEST_REQUEST, ServiceEndpoints
from nats_backpressure.adapters.nats.patched_client import PatchedClient, settled
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.queries.decision_tally import DecisionTally
from nats_backpressure.queries.dispatch import answers
from nats_backpressure.queries.encoded_decisions import LARGEST_ANSWER
from nats_backpressure.queries.encoded_replies import ConsumerDecisions, GatewayDecisions
from nats_backpressure.runtime.clock import SystemClock
from tests.adapters.nats.test_endpoints import Clock, Counts, P
from tests.fakes.view import OVERLOADED, SUBJECT, FakeServiceView, decision_service, member, subject
from tests.support.background import meanwhile
from tests.support.connected import options
from tests.support.servers import NatsServer
from tests.support.sidecar import eventually


class Metrics(Counts):
    def decisions(self, subject: str, role: str, action: str, would: str | None, n: int) -> None:
        self.decided += [(subject, role, action)] * n

    def durations(self, n: int, seconds: float) -> None:
        assert n > 0 and seconds > 0


class Service:
    """The endpoints on a client with our patches; `direct` counts what did not take the ordinary way."""

    def __init__(self, *, direct: bool = True, values: dict[str, Any] = OVERLOADED) -> None:
        self.notes = Counter[str]()
        self.view = FakeServiceView(subject(member(**values)))
        self.metrics = Metrics()
        self.tally = DecisionTally(self.metrics)
        decisions, clock = decision_service(self.view), SystemClock()
        more: tuple[Any, ...] = (decisions, self.view, Clock().now, clock.mono, self.tally)
        self.gateway = GatewayDecisions(f"{P}.decide.gateway.", *more)
        self.consumer = ConsumerDecisions(f"{P}.decide.consumer.", *more)
        history: Any = None  # nobody asks it
        self.endpoints = ServiceEndpoints(
            answers(decisions, history, self.metrics, self.view),
            decisions.alias,
            Clock(),
            Names(),
            self.metrics.dropped,
            direct={"decide-gateway": self.gateway, "decide-consumer": self.consumer} if direct else {},
        )
        self.client = PatchedClient(self.endpoints.may_reply, lambda kind, text: self.notes.update([kind]))

    @asynccontextmanager
    async def on(self, server: NatsServer) -> AsyncIterator[Service]:
        await self.client.open(options(server), "test", 2.0)
        await self.endpoints.serve(self.client)
        try:
            yield self
        finally:
            await self.client.close()


REQUESTS = {
    "nothing": (f"decide.gateway.{SUBJECT}", b""),
    "an attempt": (f"decide.gateway.{SUBJECT}", b'{"attempt": 2, "priority": "low"}'),
    "a whole float": (f"decide.gateway.{SUBJECT}", b'{"attempt": 2.0}'),
    "a number out of range": (f"decide.gateway.{SUBJECT}", b'{"attempt": 0}'),
    "no JSON": (f"decide.gateway.{SUBJECT}", b"{"),
    "too large": (f"decide.gateway.{SUBJECT}", b" " * (LARGEST_REQUEST + 1)),
    "large": (f"decide.gateway.{SUBJECT}", b" " * 5000),
    "unwatched": ("decide.gateway.nobody", b""),
    "a bad tail": ("decide.gateway.a.=2", b""),
    "bytes that are not text": ("decide.gateway.\xff", b""),
    "a vertical tab": ("decide.gateway.a\x0bb", b""),
    "a form feed": ("decide.gateway.\x0c", b""),
    "too large for a bad tail": ("decide.gateway.a.=2", b" " * (LARGEST_REQUEST + 1)),
    "a pull": (f"decide.consumer.{SUBJECT}", b'{"max_messages": 3}'),
    "a pull of another": (f"decide.consumer.{SUBJECT}", b'{"consumer": "x"}'),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS.keys())
async def test_a_reply_is_that_of_the_ordinary_way(server: NatsServer, nc: Client, request_: tuple[str, bytes]) -> None:
    replies = []
    for direct in (False, True):
        async with Service(direct=direct).on(server):
            one = await nc.request(f"{P}.{request_[0]}", request_[1], timeout=5)
            two = await nc.request(f"{P}.{request_[0]}", request_[1], timeout=5)
            assert (one.headers, one.data) == (two.headers, two.data)
            body = json.loads(one.data) if one.data else {}
            body.pop("valid_for_ms", None)
            replies.append((one.headers, body))
    assert replies[0] == replies[1]


async def test_what_is_answered_at_once_is_in_the_stats_and_the_metrics(server: NatsServer, nc: Client) -> None:
    async with Service().on(server) as service:
        for _ in range(5):
            await nc.request(f"{P}.decide.gateway.{SUBJECT}", timeout=5)
        await nc.request(f"{P}.decide.gateway.nobody", timeout=5)
        await nc.request(f"{P}.decide.consumer.{SUBJECT}", timeout=5)
        stats = {e["name"]: e for e in json.loads((await nc.request("$SRV.STATS", timeout=5)).data)["endpoints"]}
        gateway, consumer = stats["decide-gateway"], stats["decide-consumer"]
        assert (service.gateway.answered, service.consumer.answered) == (5, 1)
        assert (gateway["num_requests"], gateway["num_errors"], consumer["num_requests"]) == (6, 1, 1)
        assert gateway["average_processing_time"] == gateway["processing_time"] // 6 > 0
        service.tally.pass_on()
        assert Counter(service.metrics.decided) == {
            (SUBJECT, "gateway", "reject"): 5,
            (SUBJECT, "consumer", "continue"): 1,
        }
        assert service.client.stats["out_msgs"] >= 8


async def test_a_new_service_counts_from_nothing(server: NatsServer, nc: Client) -> None:
    service = Service()
    for _ in range(2):
        async with service.on(server):
            await nc.request(f"{P}.decide.gateway.{SUBJECT}", timeout=5)
            stats = json.loads((await nc.request("$SRV.STATS", timeout=5)).data)["endpoints"]
            assert [e["num_requests"] for e in stats if e["name"] == "decide-gateway"] == [1]
        service.client = PatchedClient(service.endpoints.may_reply, lambda kind, text: None)


async def test_a_reply_subject_that_is_no_inbox_gets_nothing(server: NatsServer, nc: Client) -> None:
    stolen: list[Msg] = []

    async def take(message: Msg) -> None:
        stolen.append(message)

    await nc.subscribe("orders.>", cb=take)
    async with Service().on(server) as service:
        for reply in ("orders.new", ""):
            await nc.publish(f"{P}.decide.gateway.{SUBJECT}", b"", reply=reply)
            await nc.publish(f"{P}.decide.consumer.{SUBJECT}", b"", reply=reply)
        await nc.request(f"{P}.decide.gateway.{SUBJECT}", timeout=5)
        await settled(nc)
        assert not stolen and service.metrics.what["reply_subject"] == 4
        assert (service.gateway.answered, service.consumer.answered) == (1, 0)


async def test_other_tasks_get_their_turns_in_a_flood(server: NatsServer, nc: Client) -> None:
    async with Service().on(server) as service:
        most = 0

        async def turn() -> None:
            """The most requests that were answered between two turns of another task."""
            nonlocal most
            while True:
                before = service.gateway.answered
                await asyncio.sleep(0)
                most = max(most, service.gateway.answered - before)

        inbox, sent = nc.new_inbox(), 0
        replies = await nc.subscribe(inbox + ".*")
        async with meanwhile(turn()):
            for _ in range(20):  # in parts, of which not so much waits unsent that the next take the ordinary way
                for _ in range(WAITING):
                    await nc.publish(f"{P}.decide.gateway.{SUBJECT}", b"", reply=f"{inbox}.{sent}")
                    sent += 1

                async def all_answered(n: int = sent) -> bool:
                    return replies.pending_msgs == n

                await eventually(all_answered, "a reply to each")
        assert service.gateway.answered == sent and 0 < most <= AT_ONCE


async def test_replies_that_are_not_read_are_bounded_and_nothing_is_granted_for_them(
    server: NatsServer, nc: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_replies, "UNSENT_REPLIES", -1)
    async with Service(values={"inflight": 450}).on(server) as service:
        reply = await nc.request(f"{P}.decide.consumer.{SUBJECT}", b'{"max_messages": 50}', timeout=5)
        assert json.loads(reply.data)["pull"]["max_messages"] == 50
        assert service.consumer.answered == 0, "it took the ordinary way"


async def test_a_client_that_is_not_connected_or_cannot_send_takes_the_ordinary_way(server: NatsServer) -> None:
    async with Service().on(server) as service:
        direct, request = service.client.direct, (f"{P}.decide.gateway.{SUBJECT}".encode(), b"_INBOX.a.1", b"")
        number = next(n for n, answer in direct._answers.items() if answer(*request) is not None)
        assert direct.reply(number, *request)
        assert not direct.reply(number, request[0], b"_INBOX." + b"a" * 2000, b"")
        await settled(service.client)
        assert service.client._flusher_task is not None
        service.client._flusher_task.cancel()
        await asyncio.wait({service.client._flusher_task})
        assert not direct.reply(number, *request)
        await service.client.close()
        assert not direct.reply(number, *request)
    assert not PatchedClient(None, lambda kind, text: None).direct.reply(1, *request)


async def test_a_server_with_small_messages_is_answered_in_the_ordinary_way(server: NatsServer) -> None:
    service = Service()
    await service.client.open(options(server), "test", 2.0)
    service.client._max_payload = LARGEST_ANSWER
    await service.endpoints.serve(service.client)
    assert not service.client.direct._answers
    await service.client.close()
