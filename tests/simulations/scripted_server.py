"""A server whose replies about streams and consumers a test writes, and an observer that reads them."""

from __future__ import annotations

import json
from typing import Any

from msgspec import Struct

from nats_backpressure.adapters.nats.observer import JetStreamObserver
from nats_backpressure.adapters.nats.observer_requests import ObserverRequests
from nats_backpressure.runtime.observations import ConsumersReading
from tests.fakes.clock import FakeClock

TS = "2026-01-01T00:01:00.5Z"


def consumer(name: str = "good", /, **changes: Any) -> dict[str, Any]:
    """As a server reports it; `changes` remove fields (None) or set them, `config__x` inside the configuration."""
    info: dict[str, Any] = {
        "stream_name": "S",
        "name": name,
        "created": "2026-01-01T00:00:00Z",
        "config": {"durable_name": name, "ack_policy": "explicit", "ack_wait": 30_000_000_000, "max_ack_pending": 1000},
        "delivered": {"consumer_seq": 3, "stream_seq": 3, "last_active": "2026-01-01T00:00:30Z"},
        "ack_floor": {"consumer_seq": 1, "stream_seq": 1, "last_active": "0001-01-01T00:00:00Z"},
        "num_ack_pending": 2,
        "num_pending": 7,
        "ts": TS,
    }
    for name_, value in changes.items():
        outer, _, inner = name_.partition("__")
        place, field = (info[outer], inner) if inner else (info, outer)
        if value is None:
            place.pop(field)
        else:
            place[field] = value
    return info


def stream(name: str = "S", config: dict[str, Any] | None = None, **state: Any) -> dict[str, Any]:
    numbers = {"messages": 10, "bytes": 100, "first_seq": 1, "last_seq": 10, **state}
    return {"config": {"name": name, "subjects": ["s.>"], **(config or {})}, "created": "then", "state": numbers}


class Message(Struct):
    data: bytes


class Scripted:
    """A server whose reply the test sets: bytes, anything as JSON, an exception, or a function of the request."""

    def __init__(self, **answers: Any) -> None:
        self.epoch, self.round_trip = 1, 0.0
        self.asked: list[tuple[str, bytes]] = []
        self._answers = {"STREAM_INFO": stream(), **answers}

    async def request(self, subject: str, payload: bytes, seconds: float) -> Message:
        op = "_".join(subject.removeprefix("$JS.API.").split(".")[:2])
        self.asked.append((subject, payload))
        answer = self._answers[op]
        if callable(answer):
            answer = answer(json.loads(payload).get("offset", 0))
        if isinstance(answer, Exception):
            raise answer
        return Message(answer if isinstance(answer, bytes) else json.dumps(answer, separators=(",", ":")).encode())


class Reader(JetStreamObserver):
    def __init__(self, script: Scripted) -> None:
        self.counted: list[str] = []
        self.outcomes: list[str] = []

        def count_request(op: str, outcome: str, seconds: float) -> None:
            self.outcomes.append(f"{op} {outcome}")

        clock = FakeClock()
        requests = ObserverRequests(script, clock, count=self.counted.append, count_request=count_request)
        super().__init__(requests)


def page(*consumers: Any, **more: Any) -> dict[str, Any]:
    return {"total": len(consumers), "offset": 0, "limit": 256, "consumers": list(consumers), **more}


async def read(*consumers: Any, **more: Any) -> tuple[ConsumersReading, Reader]:
    reader = Reader(Scripted(CONSUMER_LIST=page(*consumers, **more)))
    return await reader.consumers("S"), reader


def names(reading: ConsumersReading) -> list[str]:
    return [sample.key.consumer for sample in reading.samples]
