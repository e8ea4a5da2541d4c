"""EffectAttempt: performs one effect once, and feeds its outcome to the registry; it raises where that is uncertain."""

from __future__ import annotations

import secrets
from collections.abc import Callable

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
    WriteConflict,
    WriteDone,
    WriteRecord,
)
from nats_backpressure.core.subject.record import Record, Writing
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.protocol.timestamps import Now
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
from nats_backpressure.runtime.view import ServiceView

log = structlog.get_logger()

LOAD_TRIES = 4
"""Readings of a record at most, while events about its subject are published."""
AT_ONCE_WITHIN = 0.02
"""Seconds after its conclusion within which the first try of a write begins; no second one does."""
DROPPED = "no client receives it; the next event has its number, in a new epoch"


class EffectAttempt:
    """`registry` is to be set before the first call."""

    registry: SubjectRegistry

    def __init__(
        self,
        store: StateStore,
        publisher: EventPublisher,
        clock: Clock,
        render_state: Callable[[SubjectState, Writing, ServiceView, Now], bytes],
        counts: ServiceCounts,
    ) -> None:
        self._store, self._publisher, self._clock = store, publisher, clock
        self._render_state, self._counts = render_state, counts

    async def __call__(self, effect: Effect) -> None:
        """Raises Unavailable where the outcome is not certain."""
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
            absent = self.registry.streams.absent_members(subject)
            unwatched = self.registry.contexts.unwatched_members(stored.record)
            loaded = RecordLoaded(stored.record, stored.revision, stored.newer, absent, unwatched, instead)
            self.registry.feed(subject, loaded)
        elif instead is not None:
            self.registry.feed(subject, instead)

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
        state = self.registry.subjects.get(subject)
        if state is None or state.writing is None or state.writing.nonce != writing.nonce:
            return  # what is stored is another record now
        self._require_current()
        late = self._clock.now().mono - writing.started_at >= AT_ONCE_WITHIN
        if late and writing.record.unknown and self.registry.contexts.others.are_cut_off():  # it may be known by now
            self.registry.feed(subject, WriteConflict(writing.nonce))
            return
        value = self._render_state(state, writing, self.registry, self._clock.now())
        try:
            revision = await self._store.write(subject, value, writing.expected, writing.nonce)
        except Conflict:
            self._counts.dropped("state_conflict")
            log.info(
                "state.conflict",
                subject=subject,
                hint="normal with several replicas; with one, look for who else writes the bucket",
            )
            self.registry.feed(subject, WriteConflict(writing.nonce))
            return
        self._report_written(writing.record)
        self.registry.feed(subject, WriteDone(writing.nonce, revision))

    def _require_current(self) -> None:
        """Raise Unavailable where what is stored must be read first: the store may have gone back."""
        if not self._store.is_current:
            raise Unavailable("what is stored is being read again: the connection or the bucket may be another one")

    def _report_written(self, record: Record) -> None:
        state = self.registry.subjects.get(record.subject)
        old = state.record if state and not state.unstored else None
        was, now = shown_status(old), shown_status(record)
        if was != now:
            self._counts.transition(record.subject, was, now)
            # Of each subject that is calm at the first start there would be a line; `watching` counts them.
            report = log.debug if old is None and now == "inactive" else log.info
            report("status.changed", subject=record.subject, was=was, now=now, reasons=list(record.reasons))

    async def _publish(self, subject: str, event: SubjectEvent) -> None:
        state = self.registry.subjects.get(subject)
        if state is not None and state.publishing != event.id:
            return  # it has another number now, or another replica has published it
        self._require_current()
        if state is not None and state.doubted:
            raise Unavailable("what is stored is read again")
        try:
            body = await self._publisher.publish(event)
        except PublishConflict as conflict:
            self._counts.dropped("event_conflict")
            log.warning("event.conflict", subject=subject, id=event.id, newest=conflict.seq)
            self.registry.feed(subject, EventConflict(event.id, conflict.seq, new_epoch()))
            return
        except Unpublishable as error:
            self._counts.dropped("event_unpublishable")
            log.error("event.dropped", type=event.type.value, subject=subject, error=str(error), hint=DROPPED)
            self.registry.feed(subject, EventDropped(event.id, new_epoch()))
            return
        self.registry.on_published(body)
        self._counts.event(subject, event.type.value)
        log.info("event.sent", type=event.type.value, subject=subject, seq=event.seq)
        self.registry.feed(subject, EventSent(event.id))

    async def _remove(self, subject: str, revision: int) -> None:
        if (state := self.registry.subjects.get(subject)) is None or not state.removing:
            return
        conflict = False
        try:
            if revision:  # else nothing is stored: removing it would leave a mark of a deletion for ever
                await self._store.remove(subject, revision)
        except Conflict:
            conflict = True
            self._counts.dropped("state_conflict")
        self.registry.feed(subject, KeyRemoved(conflict))


def shown_status(record: Record | None) -> str:
    """The status of a record in logs and metrics."""
    return "unknown" if record is None or record.unknown else record.status.word


def new_epoch() -> str:
    """A short random name for the numbering of a subject's events that begins now."""
    return secrets.token_hex(4)
