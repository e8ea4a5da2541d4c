"""Does what `step` asks for, again until it is certain, and feeds the outcome back as a stimulus."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import structlog

from nats_backpressure.core.model import Event
from nats_backpressure.core.subject.inputs import (
    Effect,
    EventConflict,
    EventDropped,
    EventSent,
    Input,
    KeyRemoved,
    LoadRecord,
    PublishEvent,
    RecordCreated,
    RecordLoaded,
    RemoveKey,
    WriteConflict,
    WriteDone,
    WriteFailing,
    WriteRecord,
)
from nats_backpressure.core.subject.state import Record, SubjectState, Writing
from nats_backpressure.runtime.ports import (
    Clock,
    Conflict,
    EventPublisher,
    SendConflict,
    StateStore,
    Unavailable,
    Unpublishable,
)
from nats_backpressure.runtime.tasks import backoff, cancel_and_wait, within

log = structlog.get_logger()

AT_ONCE = 64
"""Acts under way; the others wait their turn (a subject never has more than one write and one publish)."""
SAID_AT = 5
"""The try at which an outage is said, some two seconds into it."""
DROPPED = "nobody is told of it; the next one has its number, in a new epoch"
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
    """Runs acts as tasks of the given group; `idle` is set while none is under way."""

    def __init__(
        self,
        store: StateStore,
        announcer: EventPublisher,
        feed: Callable[[str, Input], None],
        state: Callable[[str], SubjectState | None],
        render: Callable[[SubjectState, Writing], bytes],
        clock: Clock,
        *,
        on_written: Callable[[str, Record], None],
        on_sent: Callable[[Event], None],
        count: Callable[[str], None],
    ) -> None:
        self._store, self._announcer = store, announcer
        self._feed, self._state, self._render = feed, state, render
        self._on_written, self._on_sent, self._count = on_written, on_sent, count
        self._clock = clock
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._tasks: asyncio.TaskGroup | None = None
        self._under_way: set[asyncio.Task[None]] = set()

    def start(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks

    def perform(self, act: Effect) -> None:
        assert self._tasks is not None, "start() comes first"
        task = self._tasks.create_task(self._do(act), name=f"{VERBS[type(act)]} {act.subject}")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def finish(self, seconds: float) -> None:
        """Let what is under way end, for so long at most."""
        if pending := tuple(self._under_way):
            with suppress(TimeoutError):
                await within(self._clock, seconds, asyncio.wait(pending))

    async def abandon(self) -> None:
        """Stop what is still under way; it is stored, or was never begun, so the next start goes on from there."""
        await cancel_and_wait(self._under_way)

    async def _do(self, act: Effect) -> None:
        match act:
            case LoadRecord():
                await self._again(act, lambda: self._load(act.subject))
            case WriteRecord():
                await self._again(act, lambda: self._write(act.subject, act.writing))
            case PublishEvent():
                await self._again(act, lambda: self._send(act.subject, act.event))
            case RemoveKey():
                await self._again(act, lambda: self._remove(act.subject, act.revision))

    async def _again(self, act: Effect, attempt: Callable[[], Awaitable[None]]) -> None:
        """Try until the outcome is certain. The world may be away for long: said once, and told to the core."""
        for tries, delay in enumerate(backoff(self._clock, FIRST_RETRY, LAST_RETRY), start=1):
            try:
                async with self._turn:
                    await attempt()
                return
            except Unavailable as error:
                self._count(f"{VERBS[type(act)]}_retry")
                say = log.warning if tries == SAID_AT else log.debug
                say("act.unavailable", act=VERBS[type(act)], subject=act.subject, error=str(error), tries=tries)
            if isinstance(act, WriteRecord):
                self._feed(act.subject, WriteFailing(act.writing.nonce))
            await self._clock.sleep(delay)

    async def _load(self, subject: str) -> None:
        stored = await self._store.load(subject)
        if stored is not None and stored.record is not None:
            self._feed(subject, RecordLoaded(stored.record, stored.revision))
            return
        told = await self._announcer.last(subject)
        revision, epoch = stored.revision if stored else 0, new_epoch()
        if told is None:
            self._feed(subject, RecordCreated(epoch, revision))
        else:
            self._feed(subject, RecordCreated(epoch, revision, told.seq, told.status, told.incident, told.lost))

    async def _write(self, subject: str, writing: Writing) -> None:
        if (state := self._state(subject)) is None:
            return
        try:
            revision = await self._store.write(subject, self._render(state, writing), writing.expected, writing.nonce)
        except Conflict:
            self._count("state_conflict")
            log.warning("state.conflict", subject=subject, hint="somebody else writes the state bucket")
            self._feed(subject, WriteConflict(writing.nonce))
            return
        self._on_written(subject, writing.record)
        self._feed(subject, WriteDone(writing.nonce, revision))

    async def _send(self, subject: str, event: Event) -> None:
        try:
            await self._announcer.send(event)
        except SendConflict as conflict:
            self._count("event_conflict")
            log.warning("event.conflict", subject=subject, id=event.id, newest=conflict.seq)
            self._feed(subject, EventConflict(event.id, conflict.seq, new_epoch()))
            return
        except Unpublishable as error:
            self._count("event_unpublishable")
            log.error("event.dropped", type=event.type.value, subject=subject, error=str(error), hint=DROPPED)
            self._feed(subject, EventDropped(event.id, new_epoch()))
            return
        self._on_sent(event)
        self._feed(subject, EventSent(event.id))

    async def _remove(self, subject: str, revision: int) -> None:
        if (state := self._state(subject)) is None or not state.removing:
            return
        try:
            await self._store.remove(subject, revision)
        except Conflict:
            self._count("state_conflict")
        self._feed(subject, KeyRemoved())


def new_epoch() -> str:
    """A short name no other beginning of the same subject has."""
    return secrets.token_hex(4)
