"""The service: what was observed goes through the ledger, what follows is performed, and all of it can be read.

One task group holds every loop: a crash in any of them ends the process, for its supervisor to restart it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import structlog

from nats_backpressure.config.settings import Settings
from nats_backpressure.core.model import Event, StreamLook
from nats_backpressure.core.read_plan import Budget
from nats_backpressure.core.subject.inputs import Effect, GatewayReported, PolicyRefused, RecordLoaded, RecordMissing
from nats_backpressure.core.subject.state import Record, SubjectState, Writing
from nats_backpressure.core.time_windows import WindowSummary
from nats_backpressure.core.watch_filter import WatchEntry
from nats_backpressure.policy.active import ActivePolicies, PolicySnapshot, Refusal
from nats_backpressure.policy.precedence import Sources
from nats_backpressure.policy.schema import Rejection
from nats_backpressure.policy.validation import Problem, shorten
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.runtime.effects import DROPPED, FIRST_RETRY, LAST_RETRY, EffectRunner
from nats_backpressure.runtime.observations import StreamsReading
from nats_backpressure.runtime.poller import ROUND_WITHIN, WITHOUT_PAUSE, Poller
from nats_backpressure.runtime.ports import (
    Clock,
    EventPublisher,
    Observer,
    PolicyStore,
    StateStore,
    Unavailable,
    Unpublishable,
)
from nats_backpressure.runtime.subjects import SubjectRegistry
from nats_backpressure.runtime.tasks import backoff, cancel_and_wait, sleep_until, within
from nats_backpressure.runtime.view import ServiceView

log = structlog.get_logger()

THE_FILE = "_file"
"""What `policy_rejected` calls the settings file, which stands under no key."""
POLICIES_WITHIN = 5.0
"""Seconds for reading the policy bucket, before we judge without what it says."""
ALONE_AFTER = 3
"""Heartbeats in a row with none of another replica in between, after which we take ourselves for the last one."""
LEAVE_WITHIN = 1.0
"""Seconds for telling the watchers that the last replica leaves."""
TICK = 0.5
"""Seconds between two looks at what time alone changes: freshness, holds, openings."""


class ServiceCounts(Protocol):
    """What the service reports to whoever keeps the metrics."""

    def dropped(self, what: str, n: int = 1) -> None: ...
    def event(self, subject: str, type: str) -> None: ...
    def transition(self, subject: str, was: str, now: str) -> None: ...
    def observed(self, seconds: float) -> None: ...


class Service(ServiceView):
    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        observer: Observer,
        store: StateStore,
        announcer: EventPublisher,
        policies: PolicyStore,
        ensure: Callable[[], Awaitable[None]],
        counts: ServiceCounts,
        writer: str,
        render_state: Callable[[SubjectState, Writing, ServiceView, Now], bytes],
        render_beat: Callable[[ServiceView, Now, bool], bytes],
        on_looks: Callable[[Sequence[StreamLook]], None],
        on_rules: Callable[[Sources], None] = lambda sources: None,
    ) -> None:
        self._settings, self._clock, self._counts = settings, clock, counts
        self._store, self._announcer, self._policies, self._ensure = store, announcer, policies, ensure
        self._render_beat, self._on_looks, self._on_rules = render_beat, on_looks, on_rules
        self._names = Names(settings.name)
        self._created: dict[str, str] = {}
        self._ruled = asyncio.Event()
        self._refused: dict[str, Refusal] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._ensuring: asyncio.Task[None] | None = None
        self._alone = ALONE_AFTER - 1
        """Heartbeats in a row with none of another replica in between."""
        self.known = asyncio.Event()
        """Set once every stream was read or tried and the first states are stored, ROUND_WITHIN after the first list of
        streams at most: from then on there is something to answer."""
        self._rules = ActivePolicies(settings.policies, settings.policy_guard, settings.trust_consumer_metadata)
        on_rules(self._rules.sources)
        self._ledger = SubjectRegistry(
            clock,
            settings.observe,
            self._rules,
            writer,
            self._perform,
            self.interval,
            lambda: self.swept_at,
            settings.publish.heartbeat_seconds,
        )
        self._performer = EffectRunner(
            store,
            announcer,
            self._ledger.feed,
            self._ledger.states.get,
            lambda state, writing: render_state(state, writing, self, clock.now()),
            clock,
            on_written=self._written,
            on_sent=self._sent,
            count=counts.dropped,
        )
        observe = settings.observe
        self.sweep = Poller(
            observer,
            clock,
            self._ledger,
            self._rules,
            Budget(
                observe.min_interval_ms / 1000,
                observe.max_interval_ms / 1000,
                observe.api_requests_per_second,
                observe.server_share,
            ),
            [WatchEntry(entry.stream, entry.consumers) for entry in settings.watch],
            self._names.ours,
            stale_after=observe.stale_after_seconds,
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
    def rules(self) -> ActivePolicies:
        return self._rules

    @property
    def swept_at(self) -> float | None:
        return self.sweep.swept_at if self.known.is_set() else None

    @property
    def observing(self) -> bool:
        return self.known.is_set()

    def unread(self, subject: str) -> bool:
        return self.sweep.unread(subject)

    def interval(self, subject: str) -> float:
        return max((self.sweep.interval(stream) for stream in self._streams_of(subject)), default=TICK)

    def next_reading(self, subject: str) -> float:
        lanes = [self.sweep.lanes[s] for s in self._streams_of(subject) if s in self.sweep.lanes]
        return min((lane.next for lane in lanes), default=self._clock.now().mono + self.interval(subject))

    def window(self, subject: str, now: Now, seconds: float) -> WindowSummary | None:
        return self._ledger.window(subject, now, seconds)

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
                tasks.create_task(self._policies.follow(self._policies_changed), name="follow policies"),
                tasks.create_task(self._rule(), name="rule"),
                tasks.create_task(self._tick(), name="tick"),
                tasks.create_task(self._beat(), name="beat"),
            ]
            await stop.wait()
            await cancel_and_wait(loops)
            await self._performer.finish(finish_within)
            await self._performer.abandon()
            await self._leave()

    async def _observe(self) -> None:
        await self._remember()
        # Not before the policies are known: a verdict under another policy would be told, and taken back.
        await sleep_until(self._ruled, self._clock, POLICIES_WITHIN)
        await self.sweep.run()

    async def _remember(self) -> None:
        """Start from what is stored: without it a restart would tell everything anew."""
        for delay in backoff(self._clock, FIRST_RETRY, LAST_RETRY):
            try:
                await self._ensure()
                stored = await self._store.load_all()
                break
            except Unavailable as error:
                log.debug("state.unavailable", error=str(error))
                await self._clock.sleep(delay)
        for subject, entry in stored.items():
            if entry.record is not None:
                self._ledger.open(subject)
                self._ledger.feed(subject, RecordLoaded(entry.record, entry.revision))
        log.info("state.loaded", subjects=len(stored))

    async def _become_known(self) -> None:
        await self.sweep.complete.wait()
        took = self._clock.now().mono - (self.sweep.began_at or 0.0)
        await self._performer.finish(max(0.0, ROUND_WITHIN - took))
        self.known.set()

    def reload(self, settings: Settings) -> None:
        """Put the policies of a file that was read again in force; what else it says takes a restart."""
        self._refuse(self._rules.set_file(settings.policies, settings.policy_guard))
        self._on_rules(self._rules.sources)
        self._ruled.set()

    def reported(self, subject: str, offered: int, admitted: int, seconds: float) -> None:
        """A gateway told what it was offered and let through under a watched subject."""
        self._ledger.feed(subject, GatewayReported(offered, admitted, seconds))

    def refuse_file(self, problems: Sequence[Problem]) -> None:
        """A file that was read again cannot be used: the last good policies stay in force."""
        errors = tuple((problem.path, problem.message) for problem in problems)
        mark = hashlib.sha256(repr(errors).encode()).hexdigest()[:16]
        self._refuse([Refusal(THE_FILE, Rejection(mark, errors))])
        self._ruled.set()

    def _policies_changed(self, snapshot: PolicySnapshot) -> None:
        self._refuse(self._rules.set_bucket(snapshot))
        self._on_rules(self._rules.sources)
        self._ruled.set()

    def _refuse(self, refused: Sequence[Refusal]) -> None:
        for refusal in refused:
            self._counts.dropped("policy_rejected")
            log.warning("policy.rejected", subject=refusal.subject, errors=refusal.rejection.errors)
            self._refused[refusal.subject] = refusal

    async def _rule(self) -> None:
        """After every change of the policies: judge all subjects anew, and report those that were refused."""
        await self.sweep.complete.wait()
        delays = backoff(self._clock, FIRST_RETRY, LAST_RETRY)
        while True:
            # What could not be reported is tried again by itself: no policy changed by that.
            if self._refused:
                await sleep_until(self._ruled, self._clock, next(delays))
            else:
                delays = backoff(self._clock, FIRST_RETRY, LAST_RETRY)
                await self._ruled.wait()
            if self._ruled.is_set():
                self._ruled.clear()
                for n, subject in enumerate(tuple(self._ledger.states)):
                    self._ledger.rule(subject)
                    if n % WITHOUT_PAUSE == 0:
                        await self._clock.sleep(0)
            await self._tell_refused()

    async def _tell_refused(self) -> None:
        """Report each that can be; one that cannot keeps no other back. A subject's own state numbers what is reported
        of it; under a key nobody watches it follows what was reported there."""
        for subject, refusal in tuple(self._refused.items()):
            try:
                if subject in self._ledger.states:
                    self._ledger.feed(subject, PolicyRefused(refusal.rejection))
                else:
                    await self._announcer.refuse(subject, refusal.rejection, self._clock.now().wall)
            except Unavailable as error:
                log.debug("policy.untold", subject=shorten(subject), error=str(error))
                continue
            except Unpublishable as error:
                self._counts.dropped("event_unpublishable")
                log.error(
                    "event.dropped", type="policy_rejected", subject=shorten(subject), error=str(error), hint=DROPPED
                )
            if self._refused.get(subject) is refusal:
                del self._refused[subject]

    async def _tick(self) -> None:
        while True:
            await self._clock.sleep(TICK)
            if self._rules.expire(self._clock.now().wall):
                self._ruled.set()
            self._ledger.tick()

    async def _beat(self) -> None:
        """Tell watchers of the state bucket that what it says is still so, while readings come."""
        await self.known.wait()
        while True:
            try:
                alone = await self._store.beat(self._render_beat(self, self._clock.now(), False))
                if alone is not None:
                    self._alone = self._alone + 1 if alone else 0
            except Unavailable as error:
                self._counts.dropped("heartbeat")
                log.debug("heartbeat.unavailable", error=str(error))
            await self._clock.sleep(self._settings.publish.heartbeat_seconds)

    async def _leave(self) -> None:
        """As the last replica tell the watchers that nobody looks any more for the end of a refusal."""
        if self._alone < ALONE_AFTER:
            return
        try:
            leaving = self._store.leave(self._render_beat(self, self._clock.now(), True))
            if await within(self._clock, LEAVE_WITHIN, leaving):
                log.info("heartbeat.leaving", hint="watchers open what is refused within four seconds")
        except (Unavailable, TimeoutError) as error:
            log.warning(
                "heartbeat.not_left",
                error=str(error) or "no answer",
                hint="watchers open what is refused by themselves, once they miss the heartbeats",
            )

    def _perform(self, act: Effect) -> None:
        self._performer.perform(act)

    def _written(self, subject: str, record: Record) -> None:
        state = self._ledger.states.get(subject)
        old = state.record if state else None
        was = "unknown" if old is None or old.unknown or (state and state.unstored) else old.status.word
        now = "unknown" if record.unknown else record.status.word
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
        policies = f"KV_{self._names.policy_bucket}"
        now = {name: created.get(name, "") for name in (state, events, policies)}
        if self._created and now[state] != self._created[state]:
            log.warning("state.recreated", bucket=self._names.state_bucket)
            for subject in tuple(self._ledger.states):
                self._ledger.feed(subject, RecordMissing())
        self._created = now
        idle = self._ensuring is None or self._ensuring.done()
        if not all(now.values()) and idle and self._tasks is not None:
            self._ensuring = self._tasks.create_task(self._mend(), name="ensure resources")

    async def _mend(self) -> None:
        try:
            await self._ensure()
        except Unavailable as error:
            log.debug("resources.unavailable", error=str(error))
