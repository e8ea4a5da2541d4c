"""The service: what was observed goes through the ledger, what follows is performed, and all of it can be read.

One task group holds every loop: a crash in any of them ends the process, for its supervisor to restart it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import structlog

from sidecar.book import Book
from sidecar.core.model import Event, Now, StreamLook
from sidecar.core.pace import Budget
from sidecar.core.policy import PolicyEntry
from sidecar.core.roster import Watch
from sidecar.core.state import Record, SubjectState, Writing
from sidecar.core.stimuli import Act, Loaded, Unstored
from sidecar.ledger import Ledger
from sidecar.observations import StreamsReading
from sidecar.perform import FIRST_RETRY, LAST_RETRY, Performer
from sidecar.ports import Announcer, Clock, Observer, StateStore, Unavailable
from sidecar.settings import Settings
from sidecar.sweep import Sweep
from sidecar.wire.subjects import Names

log = structlog.get_logger()

FIRST_STATES_WITHIN = 5.0
"""Seconds for storing what the first sweep found, before we answer all the same."""
TICK = 0.5
"""Seconds between two looks at what time alone changes: freshness, holds, openings."""


class Counts(Protocol):
    """What the service reports to whoever keeps the metrics."""

    def dropped(self, what: str, n: int = 1) -> None: ...
    def event(self, subject: str, type: str) -> None: ...
    def transition(self, subject: str, was: str, now: str) -> None: ...
    def observed(self, seconds: float) -> None: ...


class Service(Book):
    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        observer: Observer,
        store: StateStore,
        announcer: Announcer,
        ensure: Callable[[], Awaitable[None]],
        counts: Counts,
        writer: str,
        render_state: Callable[[SubjectState, Writing, Book, Now], bytes],
        render_beat: Callable[[Book, Now], bytes],
        on_looks: Callable[[Sequence[StreamLook]], None],
    ) -> None:
        self._settings, self._clock, self._counts = settings, clock, counts
        self._store, self._ensure = store, ensure
        self._render_beat, self._on_looks = render_beat, on_looks
        self._names = Names(settings.name)
        self._created: dict[str, str] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._ensuring: asyncio.Task[None] | None = None
        self.known = asyncio.Event()
        """Set once every stream was read and the first states are stored: from then on there is something to say."""
        self._layers = {"file": settings.policies}
        self._ledger = Ledger(clock, settings.observe, self._layers, writer, self._perform, self.interval)
        self._performer = Performer(
            store,
            announcer,
            self._ledger.feed,
            self._ledger.forget,
            lambda subject, writing: render_state(self._ledger.states[subject], writing, self, clock.now()),
            on_written=self._written,
            on_sent=self._sent,
            count=counts.dropped,
        )
        observe = settings.observe
        self.sweep = Sweep(
            observer,
            clock,
            self._ledger,
            Budget(
                observe.min_interval_ms / 1000,
                observe.max_interval_ms / 1000,
                observe.api_requests_per_second,
                observe.server_share,
            ),
            [Watch(entry.stream, entry.consumers) for entry in settings.watch],
            self._names.ours,
            count=counts.dropped,
            on_streams=self._streams,
            on_read=counts.observed,
        )

    @property
    def settings(self) -> Settings:
        return self._settings

    @property
    def subjects(self) -> Mapping[str, SubjectState]:
        return self._ledger.states

    @property
    def wildcards(self) -> Sequence[str]:
        return self._ledger.wildcards

    @property
    def looks(self) -> Mapping[str, StreamLook]:
        return {name: lane.look for name, lane in tuple(self.sweep.lanes.items())}

    @property
    def layers(self) -> Mapping[str, Sequence[PolicyEntry]]:
        return self._layers

    @property
    def swept_at(self) -> float | None:
        return self.sweep.swept_at if self.known.is_set() else None

    def interval(self, subject: str) -> float:
        return max((self.sweep.interval(stream) for stream in self._streams_of(subject)), default=TICK)

    def next_reading(self, subject: str) -> float:
        lanes = [self.sweep.lanes[s] for s in self._streams_of(subject) if s in self.sweep.lanes]
        return min((lane.next for lane in lanes), default=self._clock.now().mono + self.interval(subject))

    def time_in(self, subject: str, now: Now) -> Mapping[str, float]:
        return self._ledger.time_in(subject, now)

    def _streams_of(self, subject: str) -> set[str]:
        state = self._ledger.states.get(subject)
        return {key.stream for key in tuple(state.members)} if state else set()

    async def run(self, stop: asyncio.Event, finish_within: float) -> None:
        """Observe until `stop`; then what is being written or published may end, for so long at most."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._performer.start(tasks)
            loops = [
                tasks.create_task(self._become_known(), name="first sweep"),
                tasks.create_task(self._observe(), name="observe"),
                tasks.create_task(self._tick(), name="tick"),
                tasks.create_task(self._beat(), name="beat"),
            ]
            await stop.wait()
            for loop in loops:
                loop.cancel()
            await self._performer.finish(finish_within)
            self._performer.abandon()

    async def _observe(self) -> None:
        await self._remember()
        await self.sweep.run()

    async def _remember(self) -> None:
        """Start from what is stored: without it a restart would tell everything anew."""
        delay = FIRST_RETRY
        while True:
            try:
                await self._ensure()
                stored = await self._store.load_all()
            except Unavailable as error:
                log.debug("state.unavailable", error=str(error))
                await asyncio.sleep(delay)
                delay = min(delay * 2, LAST_RETRY)
            else:
                break
        for subject, entry in stored.items():
            if entry.record is not None:
                self._ledger.open(subject)
                self._ledger.feed(subject, Loaded(entry.record, entry.revision))
        log.info("state.loaded", subjects=len(stored))

    async def _become_known(self) -> None:
        await self.sweep.complete.wait()
        await self._performer.finish(FIRST_STATES_WITHIN)
        self.known.set()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            self._ledger.tick()

    async def _beat(self) -> None:
        """Tell watchers of the state bucket that what it says is still so, while readings come."""
        await self.known.wait()
        while True:
            try:
                await self._store.beat(self._render_beat(self, self._clock.now()))
            except Unavailable as error:
                self._counts.dropped("heartbeat")
                log.debug("heartbeat.unavailable", error=str(error))
            await asyncio.sleep(self._settings.publish.heartbeat_seconds)

    def _perform(self, act: Act) -> None:
        self._performer.perform(act)

    def _written(self, subject: str, record: Record) -> None:
        state = self._ledger.states.get(subject)
        old = state.record if state else None
        was = "unknown" if old is None or old.lost or (state and state.begun) else old.status.word
        now = "unknown" if record.lost else record.status.word
        if was != now:
            self._counts.transition(subject, was, now)
            log.info("status.changed", subject=subject, was=was, now=now, reasons=list(record.reasons))

    def _sent(self, event: Event) -> None:
        self._counts.event(event.subject, event.type.value)
        log.info("event.sent", type=event.type.value, subject=event.subject, seq=event.seq)

    def _streams(self, reading: StreamsReading) -> None:
        """Notice when our own stream or buckets went or are others now; what depends on that is mended."""
        self._on_looks(reading.looks)
        if not reading.complete:
            return
        created = {look.name: look.created for look in reading.looks}
        state, events = f"KV_{self._names.state_bucket}", self._names.events_stream
        now = {name: created.get(name, "") for name in (state, events)}
        if self._created and now[state] != self._created[state]:
            log.warning("state.recreated", bucket=self._names.state_bucket)
            for subject in tuple(self._ledger.states):
                self._ledger.feed(subject, Unstored())
        self._created = now
        idle = self._ensuring is None or self._ensuring.done()
        if not all(now.values()) and idle and self._tasks is not None:
            self._ensuring = self._tasks.create_task(self._mend(), name="ensure resources")

    async def _mend(self) -> None:
        try:
            await self._ensure()
        except Unavailable as error:
            log.debug("resources.unavailable", error=str(error))
