"""The events stream as a list, and events as they are published."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.subject.record_builder import event_id
from nats_backpressure.protocol import messages, timestamps
from nats_backpressure.queries.event_cache import parse_event
from nats_backpressure.runtime.ports import Unavailable
from nats_backpressure.runtime.stored_events import CachedEvent, EventPage, EventQuery

SUBJECT = "orders.*.created"
T0 = 1_767_225_600_000
"""New Year's midnight of 2026 in Unix milliseconds."""
TYPES = {"active": "backpressure_active", "warning": "backpressure_warning", "inactive": "recovery"}


def encoded_event(
    seq: int, at: int = T0, to: str = "active", subject: str = SUBJECT, epoch: str = "e", **more: Any
) -> bytes:
    """An event as it is stored in the stream."""
    event = messages.Event(
        id=event_id(subject, epoch, seq),
        type=more.pop("type", TYPES[to]),
        subject=subject,
        timestamp=timestamps.format_rfc3339(at / 1000),
        epoch=epoch,
        seq=seq,
        incident=None,
        from_=more.pop("was", "inactive"),
        to=to,
        reasons=("pending",),
        diagnosis=None,
        pressure=1.5,
        metrics=messages.Metrics(),
        thresholds=None,
        retry_after_seconds=30,
        admit_ratio=0.0,
        instance="here",
        version="1",
        **more,
    )
    return msgspec.json.encode(event)


def event(*given: Any, **more: Any) -> CachedEvent:
    event = parse_event(encoded_event(*given, **more))
    assert event is not None
    return event


class FakeEventLog:
    """The published events in order; `stored` may be set before it is read. Each was stored when it was computed."""

    def __init__(self, stored: Iterable[bytes] = ()) -> None:
        self.stored = [event for payload in stored if (event := parse_event(payload)) is not None]
        self.asked: list[EventQuery] = []
        self._followers: list[Callable[[CachedEvent], object]] = []
        self.failing = 0
        """How many of the next questions are not answered."""
        self.longest = 1_000_000
        """Events in a pass beyond which it does not end in time."""

    async def older(self, wanted: EventQuery) -> EventPage:
        self.asked.append(wanted)
        self._strike()
        matches = [e for e in reversed(self.stored) if e.subject == wanted.subject and wanted.has(e)]
        return EventPage(tuple(matches[: wanted.limit]), whole=len(matches) <= wanted.limit)

    async def recall(self, since: int, most: int, take: Callable[[CachedEvent], object]) -> int:
        self._strike()
        matches = [e for e in self.stored if e.at >= since]
        for each in matches[-most:][: self.longest]:
            take(each)
        if min(most, len(matches)) > self.longest:
            raise Unavailable("it took too long")
        return since if len(matches) <= most else matches[-most].at

    def take_looks(self, looks: Sequence[StreamLook], asked_at: float) -> None: ...

    async def follow(self, take: Callable[[CachedEvent], object]) -> None:
        self._followers.append(take)
        await asyncio.Event().wait()

    def publish(self, payload: bytes) -> None:
        """Anybody publishes an event."""
        event = parse_event(payload)
        assert event is not None
        self.stored.append(event)
        for take in self._followers:
            take(event)

    def _strike(self) -> None:
        if self.failing:
            self.failing -= 1
            raise Unavailable("the test set the fake to fail")
