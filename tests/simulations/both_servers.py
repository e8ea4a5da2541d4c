"""The same JetStream twice, in memory and on a real server, with the same methods, for tests that hold on both."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import APIError

from nats_backpressure.adapters.nats.observer import JetStreamObserver
from nats_backpressure.adapters.nats.observer_requests import ObserverRequests, Requester
from nats_backpressure.core.model.samples import ConsumerConfig, Retention
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime import ports
from nats_backpressure.runtime.clock import SystemClock
from nats_backpressure.runtime.ports import Observer
from tests.fakes.observer import FakeJetStream

SETTLES_WITHIN = 15.0


class Direct:
    """Just enough of a connection: the test's own client."""

    epoch, round_trip = 1, 0.0

    def __init__(self, client: Client) -> None:
        self._client = client

    async def request(self, subject: str, payload: bytes, seconds: float) -> Msg:
        try:
            return await self._client.request(subject, payload, timeout=seconds)
        except Exception as error:
            raise ports.Unavailable(str(error)) from error


class FakeWorld:
    tells_time = True

    def __init__(self) -> None:
        self.fake = FakeJetStream()
        self.observer: Observer = self.fake

    async def add_stream(
        self, name: str, *subjects: str, max_msgs: int = 0, retention: Retention | None = None
    ) -> None:
        self.fake.add_stream(name, subjects, max_msgs=max_msgs, retention=retention)

    async def update_stream(self, name: str, retention: Retention) -> None:
        self.fake.update_stream(name, retention)

    async def add_consumer(self, key: ConsumerKey, *filters: str, cap: int = 1000, max_deliver: int = 0) -> None:
        self.fake.add_consumer(key, ConsumerConfig(filters=filters, max_ack_pending=cap), max_deliver=max_deliver)

    async def publish(self, stream: str, subject: str, n: int = 1, rollup: bool = False) -> None:
        self.fake.publish(stream, subject, n, rollup=rollup)

    async def pull(self, key: ConsumerKey, n: int) -> list[int]:
        return self.fake.pull(key, n)

    async def ack(self, key: ConsumerKey, *seqs: int) -> None:
        self.fake.ack(key, *seqs)

    async def nak(self, key: ConsumerKey, *seqs: int) -> None:
        self.fake.nak(key, *seqs)

    async def term(self, key: ConsumerKey, *seqs: int) -> None:
        self.fake.term(key, *seqs)

    async def delete_message(self, stream: str, seq: int) -> None:
        self.fake.delete_message(stream, seq)

    async def purge(self, stream: str, keep: int = 0, subject: str = ">") -> None:
        self.fake.purge(stream, keep, subject)

    async def delete_consumer(self, key: ConsumerKey) -> None:
        self.fake.delete_consumer(key)

    async def delete_stream(self, name: str) -> None:
        self.fake.delete_stream(name)


class RealWorld:
    def __init__(
        self,
        client: Client,
        version: tuple[int, ...],
        *,
        clock: ports.Clock | None = None,
        connection: Requester | None = None,
    ) -> None:
        self.version = version
        self.tells_time = version >= (2, 10)
        self.counted: list[str] = []
        self.requests: list[str] = []
        self._client = client
        self._held: dict[tuple[ConsumerKey, int], str] = {}
        self._subjects: dict[str, tuple[str, ...]] = {}
        self.observer: Observer = JetStreamObserver(
            ObserverRequests(
                connection or Direct(client),
                clock or SystemClock(),
                count=self.counted.append,
                count_request=lambda op, outcome, seconds: self.requests.append(f"{op} {outcome}"),
            )
        )

    async def add_stream(
        self, name: str, *subjects: str, max_msgs: int = 0, retention: Retention | None = None, **more: Any
    ) -> None:
        self._subjects[name] = subjects
        config = _config(retention or Retention(max_msgs=max_msgs))
        await self._api(f"STREAM.CREATE.{name}", name=name, subjects=subjects, **{"storage": "memory"} | config | more)

    async def update_stream(self, name: str, retention: Retention) -> None:
        config = {"name": name, "subjects": self._subjects[name], "storage": "memory", **_config(retention)}
        await self._api(f"STREAM.UPDATE.{name}", **config)

    async def add_consumer(
        self, key: ConsumerKey, *filters: str, cap: int = 1000, max_deliver: int = 0, sample: str = "", **more: Any
    ) -> None:
        config: dict[str, Any] = {"durable_name": key.consumer, "ack_policy": "explicit", "max_ack_pending": cap}
        config |= {"max_deliver": max_deliver or -1, "ack_wait": 3_600_000_000_000, "sample_freq": sample}
        config |= {"filter_subject": filters[0]} if len(filters) == 1 else {"filter_subjects": filters}
        config |= more
        await self._api(f"CONSUMER.DURABLE.CREATE.{key.stream}.{key.consumer}", stream_name=key.stream, config=config)

    async def publish(self, stream: str, subject: str, n: int = 1, rollup: bool = False) -> None:
        headers = {"Nats-Rollup": "sub"} if rollup else None
        for _ in range(n):
            with suppress(APIError):  # a stream that is full and refuses new messages
                await self._client.jetstream().publish(subject, b"x", stream=stream, headers=headers)

    async def pull(self, key: ConsumerKey, n: int) -> list[int]:
        """A pull until the server says that it is over; at the cap it says so only once the pull expires."""
        inbox = self._client.new_inbox()
        answers = await self._client.subscribe(inbox)
        wanted = json.dumps({"batch": n, "no_wait": True, "expires": 50_000_000}).encode()
        await self._client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{key.stream}.{key.consumer}", wanted, reply=inbox)
        given: list[int] = []
        while len(given) < n:
            message = await answers.next_msg(timeout=SETTLES_WITHIN)
            if (message.headers or {}).get("Status"):
                break
            seq = message.metadata.sequence.stream
            given.append(seq)
            self._held[key, seq] = message.reply
        await answers.unsubscribe()
        return given

    async def ack(self, key: ConsumerKey, *seqs: int) -> None:
        await self._answer(key, b"+ACK", seqs)

    async def nak(self, key: ConsumerKey, *seqs: int) -> None:
        await self._answer(key, b"-NAK", seqs)

    async def term(self, key: ConsumerKey, *seqs: int) -> None:
        await self._answer(key, b"+TERM", seqs)

    async def delete_message(self, stream: str, seq: int) -> None:
        await self._api(f"STREAM.MSG.DELETE.{stream}", seq=seq)

    async def purge(self, stream: str, keep: int = 0, subject: str = ">") -> None:
        payload = {"keep": keep} if keep else {}
        await self._api(f"STREAM.PURGE.{stream}", **payload, **({} if subject == ">" else {"filter": subject}))

    async def delete_consumer(self, key: ConsumerKey) -> None:
        await self._api(f"CONSUMER.DELETE.{key.stream}.{key.consumer}")

    async def delete_stream(self, name: str) -> None:
        await self._api(f"STREAM.DELETE.{name}")

    async def reset(self, key: ConsumerKey, seq: int = 0) -> None:
        """On from `seq`, or from its ack floor, its deliveries counted from 0 again (from 2.14 on)."""
        await self._api(f"CONSUMER.RESET.{key.stream}.{key.consumer}", **({"seq": seq} if seq else {}))

    async def ask(self, key: ConsumerKey, n: int, **more: Any) -> None:
        """A pull that stays with the server, which counts it only while somebody listens where it is to be answered."""
        wanted = json.dumps({"batch": n, "expires": 3_600_000_000_000, **more}).encode()
        inbox = self._client.new_inbox()
        await self._client.subscribe(inbox)
        await self._client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{key.stream}.{key.consumer}", wanted, reply=inbox)

    async def _answer(self, key: ConsumerKey, verb: bytes, seqs: tuple[int, ...]) -> None:
        for seq in seqs:  # as requests, so that it is known when the server is done with it
            await self._client.request(self._held[key, seq], verb, timeout=SETTLES_WITHIN)

    async def _api(self, op: str, **payload: Any) -> None:
        answer = await self._client.request(
            f"$JS.API.{op}", json.dumps(payload).encode() if payload else b"", timeout=5
        )
        assert "error" not in (reply := json.loads(answer.data)), reply


def _config(retention: Retention) -> dict[str, Any]:
    return {
        "retention": retention.policy,
        "max_age": round(retention.max_age * 1e9),
        "max_msgs": retention.max_msgs or -1,
        "max_bytes": retention.max_bytes or -1,
        "discard": "old" if retention.discards_old else "new",
        "max_msgs_per_subject": retention.per_subject or -1,
        "allow_rollup_hdrs": retention.rollup,
    }


World = FakeWorld | RealWorld


async def picture(world: World, key: ConsumerKey) -> dict[str, int]:
    """The numbers of one consumer and its stream."""
    reading = await world.observer.consumers(key.stream)
    sample = next(s for s in reading.samples if s.key == key)
    return {
        "first": reading.look.first_seq,
        "last": reading.look.last_seq,
        "messages": reading.look.messages,
        "pending": sample.pending,
        "inflight": sample.inflight,
        "redelivered": sample.redelivered,
        "delivered": sample.delivered_stream,
        "deliveries": sample.delivered_consumer,
        "floor": sample.floor_stream,
        "acked": sample.floor_consumer,
    }


async def shows(world: World, key: ConsumerKey, **expected: int) -> None:
    """Wait until these numbers are shown: the server lets its consumers know of evictions a moment later."""
    deadline = time.monotonic() + SETTLES_WITHIN
    while True:
        seen = {name: value for name, value in (await picture(world, key)).items() if name in expected}
        if seen == expected or isinstance(world, FakeWorld) or time.monotonic() > deadline:
            wrong = {name: (value, expected[name]) for name, value in seen.items() if value != expected[name]}
            assert not wrong, f"{key.consumer} (seen, expected): {wrong}; all: {seen}"
            return
        await asyncio.sleep(0.005)
