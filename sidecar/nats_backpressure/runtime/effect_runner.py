"""Performs the effects that `step` returns, retrying until the outcome is certain, which it feeds back as an input."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

import structlog
from msgspec import structs

from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.core.subject.inputs import (
    Effect,
    EventConflict,
    EventDropped,
    EventSent,
    KeyRemoved,
    LoadRecord,
    PublishEvent,
    RecordCreated,
    RecordLoaded,
    RemoveKey,
    ReportDifference,
    WriteConflict,
    WriteDone,
    WriteFailing,
    WriteRecord,
)
from nats_backpressure.core.subject.state import Record, SubjectState, Writing
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.runtime.failures import Failures
from nats_backpressure.runtime.ports import (
    Clock,
    Conflict,
    EventPublisher,
    PublishConflict,
    ServiceCounts,
    StateStore,
    Stored,
    Unavailable,
    Unpublishable,
)
from nats_backpressure.runtime.subject_registry import SubjectRegistry
from nats_backpressure.runtime.tasks import Once, backoff, cancel_and_wait, within
from nats_backpressure.runtime.view import ServiceView

log = structlog.get_logger()

AT_ONCE = 48
"""Loads performed at a time, and as many writes and publishes; the others wait their turn. Fewer than a JetStreamApi
has under way, so that the heartbeat finds a place beside writes that hang."""
LOAD_TRIES = 4
"""Readings of a record at most, while events about its subject are published."""
ARRIVES_WITHIN = 2.0
"""Seconds, from its turn, within which an effect ends where this replica can write; a reply that is slow, or gets lost
once, is no reason that another one writes."""
AT_ONCE_WITHIN = 0.02
"""Seconds after its conclusion within which the first try of a write begins; no second one does."""
DROPPED = "no client receives it; the next event has its number, in a new epoch"
FIRST_RETRY, LAST_RETRY = 0.1, 5.0
"""Seconds between two tries, doubling, with jitter."""

VERBS: Final[dict[type[Effect], str]] = {
    LoadRecord: "load",
    WriteRecord: "write",
    PublishEvent: "publish",
    RemoveKey: "forget",
}
"""What an effect is called in logs and metrics."""


class EffectRunner:
    """Performs the effects of every step as tasks of their own, and feeds their outcomes to the registry."""

    def __init__(
        self,
        store: StateStore,
        publisher: EventPublisher,
        clock: Clock,
        render_state: Callable[[SubjectState, Writing, ServiceView, Now], bytes],
        counts: ServiceCounts,
        failures: Failures | None = None,
    ) -> None:
        self._store, self._publisher, self._clock = store, publisher, clock
        self._failures = failures or Failures(clock)
        self._render_state, self._counts = render_state, counts
        # One store or stream that hangs does not delay the other.
        loads, writes, publishes = (asyncio.Semaphore(AT_ONCE) for _ in range(3))
        self._turns: dict[type[Effect], asyncio.Semaphore] = {
            LoadRecord: loads,
            WriteRecord: writes,
            RemoveKey: writes,
            PublishEvent: publishes,
        }
        self._registry: SubjectRegistry
        self._tasks: asyncio.TaskGroup
        self._retry_due = asyncio.Event()
        """Replaced by another one once it is set."""
        self._running: set[asyncio.Task[None]] = set()
        self._abandoned = False
        self._tried_since: OrderedDict[asyncio.Task[Any], float] = OrderedDict()
        """Of those, the ones that had their turn, with the monotonic time since when; the oldest first."""
        self._differing = Once()
        """Marks of other policies that differ from ours, and subjects that are judged otherwise under our own."""

    @property
    def writes(self) -> bool:
        """Whether what is loaded and written to the state bucket arrives: false while any of it has failed, or hung,
        for ARRIVES_WITHIN. An event that cannot be published is published by any other replica, and where none can
        publish it, one of them is to write all the same."""
        oldest = next(iter(self._tried_since.values()), math.inf)
        return self._clock.now().mono - oldest < ARRIVES_WITHIN

    def delay(self, now: float) -> float:
        """Seconds since the oldest of these had its first turn, at a monotonic time; 0 where there is none. May be
        called on another thread."""
        return max(0.0, now - min(tuple(self._tried_since.values()), default=now))

    def start(self, registry: SubjectRegistry, tasks: asyncio.TaskGroup) -> None:
        """Feed outcomes to `registry`, and run as tasks of `tasks`; to be called before `perform`."""
        self._registry, self._tasks = registry, tasks

    def perform(self, effects: Iterable[Effect]) -> None:
        """Begin each of them; a subject never has more than one write and one publish under way."""
        for effect in effects:
            if isinstance(effect, ReportDifference):
                self._report_difference(effect)
                continue
            if self._abandoned:
                return
            task = self._tasks.create_task(self._retry(effect), name=f"{VERBS[type(effect)]} {effect.subject}")
            self._running.add(task)
            task.add_done_callback(self._discard)

    def _discard(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._tried_since.pop(task, None)

    def _report_difference(self, effect: ReportDifference) -> None:
        self._counts.dropped("judged_otherwise")
        if effect.stored.policy_mark == self._registry.policies.mark:
            if self._differing.first(effect.subject):
                log.info(
                    "replicas.differ",
                    subject=effect.subject,
                    stored=shown_status(effect.stored),
                    ours=shown_status(effect.ours),
                    hint="normal for a minute after a start; what the reader of its streams has stored holds",
                )
        elif self._differing.first(effect.stored.policy_mark):
            log.warning(
                "policies.differ",
                subject=effect.subject,
                stored=shown_status(effect.stored),
                ours=shown_status(effect.ours),
                policies_of_stored=effect.stored.policy_mark,
                hint="replicas have different settings files; what is stored holds until those that wrote it are gone",
            )

    async def finish(self, seconds: float) -> None:
        """Let running effects end, for `seconds` at most."""
        if pending := tuple(self._running):
            with suppress(TimeoutError):
                await within(self._clock, seconds, asyncio.wait(pending))

    async def abandon(self) -> None:
        """Cancel running effects, and begin no other: each is stored as unfinished or was not started; the next process
        continues with it."""
        self._abandoned = True
        await cancel_and_wait(self._running)

    async def _retry(self, effect: Effect) -> None:
        """Try until the outcome is certain. NATS may be away for long: that is fed to the subject."""
        act, began = VERBS[type(effect)], self._clock.now().mono
        for delay in backoff(self._clock, FIRST_RETRY, LAST_RETRY):
            try:
                async with self._turns[type(effect)]:
                    if not isinstance(effect, PublishEvent):
                        self._note_turn()
                    await self._attempt(effect)
                self._failures.works(act, effect.subject)
                return
            except Unavailable as error:
                self._counts.dropped(f"{VERBS[type(effect)]}_retry")
                self._failures.failed(act, error, effect.subject, began)
                log.debug("effect.failed", act=act, subject=effect.subject, error=str(error))
            if isinstance(effect, WriteRecord):
                self._registry.feed(effect.subject, WriteFailing(effect.writing.nonce))
            await self._clock.wait(self._retry_due, delay)

    def retry_now(self) -> None:
        """A connection was made: what failed is tried again at once."""
        before, self._retry_due = self._retry_due, asyncio.Event()
        before.set()

    def _note_turn(self) -> None:
        """The task that runs now has a turn; from its first one on, the time counts until it ends."""
        if (task := asyncio.current_task()) is not None:
            self._tried_since.setdefault(task, self._clock.now().mono)

    async def _attempt(self, effect: Effect) -> None:
        match effect:
            case LoadRecord():
                await self._load(effect)
            case WriteRecord(subject, writing):
                await self._write(subject, writing)
            case PublishEvent(subject, event):
                await self._publish(subject, event)
            case RemoveKey(subject, revision):
                await self._remove(subject, revision)

    async def _load(self, effect: LoadRecord) -> None:
        subject, instead = effect.subject, None
        if effect.doubted:
            stored, instead = await self._stored_and_published(subject)
        else:
            stored = await self._store.load(subject) or Stored(None, 0)
        replaced = stored.record is None or (stored.newer and stored.revision == effect.replacing)
        if instead is None and replaced:
            instead = await self._created(subject)
        if instead is not None:
            instead = structs.replace(instead, revision=stored.revision)
        if stored.record is not None and not replaced:
            absent = self._registry.streams.absent_members(subject)
            unwatched = self._registry.unwatched_members(stored.record)
            loaded = RecordLoaded(stored.record, stored.revision, stored.newer, absent, unwatched, instead)
            self._registry.feed(subject, loaded)
        elif instead is not None:
            self._registry.feed(subject, instead)

    async def _stored_and_published(self, subject: str) -> tuple[Stored, RecordCreated]:
        """What is stored and what was published, both of one moment: an event that is published and removed from the
        record between the two readings would make the record look like none of ours."""
        created = await self._created(subject)
        for _ in range(LOAD_TRIES):
            stored = await self._store.load(subject) or Stored(None, 0)
            before, created = created, await self._created(subject)
            if created.seq == before.seq:
                return stored, before
        raise Unavailable(f"events about {subject[:80]} are published all the time")

    async def _created(self, subject: str) -> RecordCreated:
        """What holds if no record is stored."""
        last = await self._publisher.last(subject)
        if last is None:
            return RecordCreated(new_epoch())
        return RecordCreated(
            new_epoch(), seq=last.seq, status=last.status, incident=last.incident, lost=last.lost, moved=last.moved
        )

    async def _write(self, subject: str, writing: Writing) -> None:
        state = self._registry.subjects.get(subject)
        if state is None or state.writing is None or state.writing.nonce != writing.nonce:
            return  # what is stored is another record now
        self._require_current()
        late = self._clock.now().mono - writing.started_at >= AT_ONCE_WITHIN
        if late and writing.record.unknown and self._registry.contexts.others.are_cut_off():  # it may be known by now
            self._registry.feed(subject, WriteConflict(writing.nonce))
            return
        value = self._render_state(state, writing, self._registry, self._clock.now())
        try:
            revision = await self._store.write(subject, value, writing.expected, writing.nonce)
        except Conflict:
            self._counts.dropped("state_conflict")
            log.info(
                "state.conflict",
                subject=subject,
                hint="normal with several replicas; with one, look for who else writes the bucket",
            )
            self._registry.feed(subject, WriteConflict(writing.nonce))
            return
        self._report_written(writing.record)
        self._registry.feed(subject, WriteDone(writing.nonce, revision))

    def _require_current(self) -> None:
        """Raise Unavailable between a reconnect and the reading of what is stored: the store may have gone back."""
        if not self._store.is_current:
            raise Unavailable("what is stored is read again since the connection was made")

    def _report_written(self, record: Record) -> None:
        state = self._registry.subjects.get(record.subject)
        old = state.record if state and not state.unstored else None
        was, now = shown_status(old), shown_status(record)
        if was != now:
            self._counts.transition(record.subject, was, now)
            # Of each subject that is calm at the first start there would be a line; `watching` counts them.
            report = log.debug if old is None and now == "inactive" else log.info
            report("status.changed", subject=record.subject, was=was, now=now, reasons=list(record.reasons))

    async def _publish(self, subject: str, event: SubjectEvent) -> None:
        state = self._registry.subjects.get(subject)
        if state is not None and state.publishing != event.id:
            return  # it has another number now, or another replica has published it
        self._require_current()
        if state is not None and state.doubted:
            raise Unavailable("what is stored is read again")
        try:
            await self._publisher.publish(event)
        except PublishConflict as conflict:
            self._counts.dropped("event_conflict")
            log.warning("event.conflict", subject=subject, id=event.id, newest=conflict.seq)
            self._registry.feed(subject, EventConflict(event.id, conflict.seq, new_epoch()))
            return
        except Unpublishable as error:
            self._counts.dropped("event_unpublishable")
            log.error("event.dropped", type=event.type.value, subject=subject, error=str(error), hint=DROPPED)
            self._registry.feed(subject, EventDropped(event.id, new_epoch()))
            return
        self._counts.event(subject, event.type.value)
        log.info("event.sent", type=event.type.value, subject=subject, seq=event.seq)
        self._registry.feed(subject, EventSent(event.id))

    async def _remove(self, subject: str, revision: int) -> None:
        if (state := self._registry.subjects.get(subject)) is None or not state.removing:
            return
        conflict = False
        try:
            if revision:  # else nothing is stored: removing it would leave a mark of a deletion for ever
                await self._store.remove(subject, revision)
        except Conflict:
            conflict = True
            self._counts.dropped("state_conflict")
        self._registry.feed(subject, KeyRemoved(conflict))


def shown_status(record: Record | None) -> str:
    """The status of a record in logs and metrics."""
    return "unknown" if record is None or record.unknown else record.status.word


def new_epoch() -> str:
    """A short random name for the numbering of a subject's events that begins now."""
    return secrets.token_hex(4)
