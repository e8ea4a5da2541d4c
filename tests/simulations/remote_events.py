"""The events stream as one replica of a simulation follows it, and what it answers about the past."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.queries import serialize
from nats_backpressure.queries.event_cache import parse_event
from nats_backpressure.runtime.ports import Unavailable
from nats_backpressure.runtime.stored_events import CachedEvent, EventPage, EventQuery
from tests.fakes.stores import FakeEventPublisher

BEHIND = 0.3
"""Seconds after which an event that the list of streams shows must have arrived."""


def cached(event: SubjectEvent) -> CachedEvent:
    parsed = parse_event(msgspec.json.encode(serialize.event_message(event, "")))
    assert parsed is not None
    return parsed


class RemoteEvents:
    """The EventReader of a replica. As in the adapter, the list of streams shows what did not arrive, or that the
    stream is another one; then everything is read again."""

    def __init__(self, publisher: FakeEventPublisher, stream: str, link: Any, clock: Any) -> None:
        """`link` and `clock` of the replica, see `replicas`."""
        self._publisher, self._stream, self._link, self._clock = publisher, stream, link, clock
        self._created, self._reached, self._behind_at = "", 0, math.inf
        self._woken = asyncio.Event()
        self._again = True

    async def older(self, wanted: EventQuery) -> EventPage:
        matches = [e for e in reversed(await self._all()) if e.subject == wanted.subject and wanted.has(e)]
        return EventPage(tuple(matches[: wanted.limit]), whole=len(matches) <= wanted.limit)

    async def recall(self, since: int, most: int, take: Callable[[CachedEvent], object]) -> int:
        events = await self._all()
        self._reached = len(events)
        for event in events[-most:]:
            take(event)
        return since

    def take_looks(self, looks: Sequence[StreamLook], asked_at: float) -> None:
        look, now = next(look for look in looks if look.name == self._stream), self._clock.now().mono
        if look.created != self._created or look.last_seq < self._reached:
            self._created, self._reached = look.created, 0
            self._again = True
        self._behind_at = min(self._behind_at, now + BEHIND) if look.last_seq > self._reached else math.inf
        if self._again or now >= self._behind_at:
            self._again = True
            self._woken.set()

    async def follow(self, take: Callable[[CachedEvent], object]) -> None:
        with self._publisher.followed(self._arrive):
            while True:
                if self._again:
                    self._again = not await self._catch_up(take)
                self._woken.clear()
                await self._clock.wait(self._woken, 1.0)
                await self._clock.turn()

    def _arrive(self) -> None:
        if not (self._link.cut or self._link.half_open):
            self._again = True
            self._woken.set()

    async def _catch_up(self, take: Callable[[CachedEvent], object]) -> bool:
        """Whether everything new was read."""
        try:
            events = await self._all()
        except Unavailable:
            return False
        for event in events[self._reached :]:
            take(event)
        self._reached, self._behind_at = len(events), math.inf
        return True

    async def _all(self) -> list[CachedEvent]:
        async def read() -> list[SubjectEvent]:
            return list(self._publisher.events)

        events: list[SubjectEvent] = await self._link.call(read)
        return [cached(event) for event in events]
