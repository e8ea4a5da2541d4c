"""Detects that our stream or a bucket was deleted or replaced, creates what is missing, and writes all states again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from nats_backpressure.core.subject.inputs import RecordMissing
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.runtime.event_comparison import EventComparison, ReadEvents
from nats_backpressure.runtime.failures import Failures
from nats_backpressure.runtime.observations import StreamsReading
from nats_backpressure.runtime.ports import Clock, EventsUnavailable, Unavailable
from nats_backpressure.runtime.slices import Slices
from nats_backpressure.runtime.subject_registry import SubjectRegistry

log = structlog.get_logger()

WHO_DELETED: Final = "find out who deleted it, and put back what is needed of a copy"


class OwnResources:
    """Compares every complete list of streams with the one before. `ensure` creates what is missing."""

    def __init__(
        self,
        names: Names,
        registry: SubjectRegistry,
        clock: Clock,
        ensure: Callable[[], Awaitable[None]],
        failures: Failures | None = None,
    ) -> None:
        self._names, self._registry, self._clock, self._ensure = names, registry, clock, ensure
        self._failures = failures or Failures(clock)
        self._state = f"KV_{names.state_bucket}"
        self._costs = {
            self._state: "none: all states are written again",
            names.events_stream: "the events that were published before are gone",
            f"KV_{names.policy_bucket}": "the policies and overrides that were stored there are gone: those of the "
            "settings file are in force",
        }
        self._needed = self._costs.keys()
        self._reads = self._without_events = False
        self._comparison = EventComparison(names.events_stream, registry, clock)
        self._created: dict[str, str] = {}
        """When each of ours was created that was there last."""
        self._tasks: asyncio.TaskGroup
        self._ensuring: asyncio.Task[None] | None = None

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Create what is missing as a task of `tasks`; to be called before `check`."""
        self._tasks = tasks

    def check(self, reading: StreamsReading) -> None:
        """A list of streams was read. What is another one than before is logged; into a new state bucket every state is
        written again."""
        self._reads = True
        self._comparison.listed()
        if self._without_events:
            self._start_creating()
        if not reading.complete:
            return
        listed = {look.name: look.created for look in reading.looks}
        for name in self._needed & listed.keys():
            if self._created.get(name, listed[name]) != listed[name]:
                log.warning("resources.recreated", stream=name, cost=self._costs[name], hint=WHO_DELETED)
                if name == self._state:
                    again = self._feed_all(RecordMissing(recreated=True))
                    self._tasks.create_task(again, name="write all states again")
            self._created[name] = listed[name]
        if not listed.keys() >= self._needed:
            self._start_creating()
        elif not self._without_events:  # it is not tried again
            self._failures.works("state bucket")

    def take_other_events(self, older: bool, read: ReadEvents) -> None:
        """The events stream is another one than before, with events that `read` reads; whether it surely is an older
        copy. With the next list of streams, states that they contradict are compared with them."""
        self._comparison.other_events(older, read)

    async def compare_events(self) -> None:
        """Compare whenever that is due, until cancelled."""
        await self._comparison.run()

    async def _feed_all(self, input_: RecordMissing) -> None:
        slices = Slices(self._clock)
        for subject in tuple(self._registry.subjects):
            self._registry.feed(subject, input_)
            await slices.pause()

    def _start_creating(self) -> None:
        if self._ensuring is None or self._ensuring.done():
            self._ensuring = self._tasks.create_task(self._create(), name="ensure resources")

    async def _create(self) -> None:
        try:
            await self.ensure()
        except Unavailable as error:
            log.debug("resources.unavailable", error=str(error))

    async def ensure(self) -> None:
        """Create what is missing. Raises Unavailable while there is no state bucket; everything but publishing works
        without an events stream."""
        began = self._clock.now().mono
        with self._failures.stage("state bucket" if self._reads else "resources"):
            try:
                await self._ensure()
            except EventsUnavailable as error:
                self._failures.failed("events stream", error, since=began)
                self._without_events = True
            else:
                self._failures.works("events stream")
                self._without_events = False
