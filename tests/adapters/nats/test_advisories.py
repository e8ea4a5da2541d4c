"""Advisories: those of a real server become hints, anything else is counted."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import nats
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from nats_backpressure.adapters.nats.advisories import SIZE_LIMIT, AdvisoryListener
from nats_backpressure.adapters.nats.hint_subscriptions import ANY_STREAM, WAKING, counted
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.observations import (
    AckSeen,
    ApiLimited,
    ConsumerChanged,
    Hint,
    MaxDeliveries,
    Nak,
    StreamChanged,
    Terminated,
)
from tests.fakes.clock import FakeClock
from tests.simulations.both_servers import RealWorld
from tests.support.servers import NatsServer

C = ConsumerKey("S", "c")
SUBJECTS = (*WAKING, *counted(ANY_STREAM))
CONSUMER, STREAM = "$JS.EVENT.ADVISORY.CONSUMER", "$JS.EVENT.ADVISORY.STREAM"
METRIC = "$JS.EVENT.METRIC.CONSUMER.ACK.S.c"


class Recorder:
    """Advisories with their sink and count, both of which can be waited for."""

    def __init__(self) -> None:
        self.received: list[Hint] = []
        self.counted: list[str] = []
        self._news = asyncio.Event()
        self.advisories = AdvisoryListener(FakeClock(), self._sink, self._count)

    def _sink(self, hint: Hint) -> None:
        self.received.append(hint)
        self._news.set()

    def _count(self, what: str) -> None:
        self.counted.append(what)
        self._news.set()

    async def until(self, received: int = 0, counted: int = 0) -> None:
        async with asyncio.timeout(5):
            while len(self.received) < received or len(self.counted) < counted:
                self._news.clear()
                await self._news.wait()


def payload(kind: str, **fields: Any) -> bytes:
    known = {"type": f"io.nats.jetstream.{kind}", "id": "x", "timestamp": "2026-01-01T00:00:00Z", "stream": "S"}
    return json.dumps(known | {"consumer": "c"} | fields).encode()


ACK = {"consumer_seq": 4, "stream_seq": 2, "ack_time": 151_095_943, "deliveries": 2}


@pytest.mark.parametrize(
    ("subject", "data", "hint"),
    [
        (METRIC, payload("metric.v1.consumer_ack", **ACK), AckSeen(C, 0.151095943, 2, FakeClock().now())),
        (f"{CONSUMER}.MSG_NAKED.S.c", payload("advisory.v1.nak"), Nak(C)),
        (f"{CONSUMER}.MAX_DELIVERIES.S.c", payload("advisory.v1.max_deliver"), MaxDeliveries(C)),
        (f"{CONSUMER}.MSG_TERMINATED.S.c", payload("advisory.v1.terminated"), Terminated(C)),
        (f"{CONSUMER}.CREATED.S.c", payload("advisory.v1.consumer_action"), ConsumerChanged(C, "created")),
        (f"{CONSUMER}.DELETED.S.c", payload("advisory.v1.consumer_action"), ConsumerChanged(C, "deleted")),
        (f"{STREAM}.UPDATED.S", payload("advisory.v1.stream_action"), StreamChanged("S", "updated")),
        (
            "$JS.EVENT.ADVISORY.API.LIMIT_REACHED",
            b'{"type":"io.nats.jetstream.advisory.v1.api_limit_reached","server":"a","dropped":2}',
            ApiLimited(),
        ),
    ],
    ids=["ack", "nak", "max deliveries", "term", "created", "deleted", "stream", "limit"],
)
def test_an_advisory_becomes_a_hint(subject: str, data: bytes, hint: Hint) -> None:
    assert Recorder().advisories.read(subject, data) == hint


@pytest.mark.parametrize(
    ("subject", "data"),
    [
        (METRIC, b""),
        (METRIC, b"\xff\xfe"),
        (METRIC, b"null"),
        (METRIC, b"[" * 16_000),
        (METRIC, b'{"type":"' * 1_600),
        (METRIC, payload("metric.v1.consumer_ack", **ACK, more="x" * SIZE_LIMIT)),
        (METRIC, payload("metric.v1.consumer_ack")),
        (METRIC, payload("metric.v1.consumer_ack", **ACK | {"ack_time": -1})),
        (METRIC, payload("metric.v1.consumer_ack", **ACK | {"ack_time": 2**63})),
        (METRIC, payload("metric.v1.consumer_ack", **ACK | {"ack_time": 1.5})),
        (METRIC, payload("metric.v1.consumer_ack", **ACK | {"ack_time": True})),
        (METRIC, payload("metric.v1.consumer_ack", **ACK | {"deliveries": 0})),
        (METRIC, payload("metric.v2.consumer_ack", **ACK)),
        (METRIC, payload("metric.v1.consumer_ack", **ACK, stream="T")),
        (METRIC, payload("metric.v1.consumer_ack", **ACK, consumer="d")),
        (METRIC, payload("metric.v1.consumer_ack", **ACK, consumer=7)),
        (f"{METRIC}.more", payload("metric.v1.consumer_ack", **ACK)),
        (f"{CONSUMER}.MSG_NAKED.S.c", payload("advisory.v1.max_deliver")),
        (f"{CONSUMER}.MSG_NAKED.S.c", payload("advisory.v1.nak", consumer="d")),
        (f"{CONSUMER}.MSG_NAKED.S", payload("advisory.v1.nak")),
        (f"{CONSUMER}.PAUSE.S.c", payload("advisory.v1.consumer_pause")),
        (f"{STREAM}.CREATED.S", payload("advisory.v1.stream_action", stream="T")),
        (f"{STREAM}.QUORUM_LOST.S", payload("advisory.v1.stream_action")),
        ("$JS.EVENT.ADVISORY.API", payload("advisory.v1.api_audit")),
        ("$JS.EVENT.ADVISORY.API.LIMIT_REACHED", payload("advisory.v1.api_audit")),
    ],
)
def test_a_malformed_advisory_is_no_hint(subject: str, data: bytes) -> None:
    assert Recorder().advisories.read(subject, data) is None


@given(st.sampled_from([s.replace("*", "S") for s in SUBJECTS]) | st.text(max_size=60), st.binary(max_size=300))
def test_nothing_that_is_published_raises(subject: str, data: bytes) -> None:
    Recorder().advisories.read(subject, data)


def test_the_audits_of_our_own_requests_are_not_listened_to() -> None:
    assert "$JS.EVENT.ADVISORY.API" not in SUBJECTS
    assert not any(">" in subject for subject in SUBJECTS)


async def listening(server: NatsServer, recorder: Recorder) -> Client:
    listener = await nats.connect(server.url)
    await recorder.advisories.listen(listener)
    await listener.request("$JS.API.INFO", timeout=10)  # a flush would not do: its PING overtakes the subscriptions
    return listener


async def test_a_real_server_publishes_every_advisory(server: NatsServer, nc: Client) -> None:
    recorder = Recorder()
    listener = await listening(server, recorder)
    world = RealWorld(nc, server.version)
    await world.add_stream("S", "s.>")
    await world.add_consumer(C, max_deliver=2, sample="100")
    await world.publish("S", "s.a", 4)
    await world.pull(C, 4)
    await world.ack(C, 1)
    await world.term(C, 2)
    await world.nak(C, 3)
    assert await world.pull(C, 1) == [3]
    await world.nak(C, 3)
    await world.publish("S", "s.a")
    assert await world.pull(C, 1) == [5]
    await recorder.until(received=7)
    await world.delete_consumer(C)
    await world.delete_stream("S")
    await recorder.until(received=9)
    acks = [hint for hint in recorder.received if isinstance(hint, AckSeen)]
    assert [(hint.key, hint.deliveries) for hint in acks] == [(C, 1)] and 0 < acks[0].seconds < 30
    others = [hint for hint in recorder.received if not isinstance(hint, AckSeen)]
    assert sorted(map(repr, others)) == sorted(
        map(
            repr,
            [
                StreamChanged("S", "created"),
                ConsumerChanged(C, "created"),
                Terminated(C),
                Nak(C),
                Nak(C),
                MaxDeliveries(C),
                ConsumerChanged(C, "deleted"),
                StreamChanged("S", "deleted"),
            ],
        )
    )
    assert recorder.counted == []
    await listener.close()


async def test_a_forged_advisory_is_counted_and_the_next_is_read(server: NatsServer, nc: Client) -> None:
    recorder = Recorder()
    listener = await listening(server, recorder)
    for data in (b"", b"\x00" * 100, payload("advisory.v1.nak", consumer="d"), payload("advisory.v1.nak")):
        await nc.publish(f"{CONSUMER}.MSG_NAKED.S.c", data)
    await recorder.until(received=1)
    assert recorder.received == [Nak(C)]
    assert recorder.counted == ["advisory_malformed"] * 3
    await listener.close()
