"""EventComparison: finds the states that the newest events contradict, where the events stream is another than before.

Their records are read again beside their events, which decides; of all other subjects nothing is held up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping

import structlog
from msgspec.structs import replace

from nats_backpressure.core.subject.inputs import RecordCreated, RecordMissing
from nats_backpressure.core.subject.newest_record import is_contradicted
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.protocol.values import STATUS_EVENTS
from nats_backpressure.runtime.ports import Clock, Unavailable
from nats_backpressure.runtime.slices import Slices
from nats_backpressure.runtime.stored_events import CachedEvent, status_after
from nats_backpressure.runtime.subject_registry import SubjectRegistry

log = structlog.get_logger()

AT_A_TIME = 16
"""Subjects that are read again at a time: fewer than an EffectRunner loads, so that others find a turn; nothing is
written of a subject before it was read."""
FIRST_LOOK, LAST_LOOK = 0.02, 1.0
"""Seconds between two looks at whether they were, doubling while none is."""
TRIES = 3
"""Failed readings of the newest events, each with another list of streams, after which all subjects are read again: a
right may be missing."""

ReadEvents = Callable[[Callable[[CachedEvent], object]], Awaitable[None]]
"""Calls its argument with the newest event of each type about each subject, in the order of the stream. Raises
Unavailable."""


class EventComparison:
    """`run` must run as a task. One comparison at a time."""

    def __init__(self, stream: str, registry: SubjectRegistry, clock: Clock) -> None:
        self._stream, self._registry, self._clock = stream, registry, clock
        self._read: ReadEvents | None = None
        """What reads the events, while a comparison is due."""
        self._older = False
        """Whether they surely are those of an older copy."""
        self._failed = 0
        self._due = asyncio.Event()

    def other_events(self, older: bool, read: ReadEvents) -> None:
        """The stream is another one, with events; whether it surely is an older copy."""
        self._older, self._read, self._failed = older or (self._older and self._read is not None), read, 0

    def listed(self) -> None:
        """A list of streams was read: what runs is known as it is now."""
        if self._read is not None:
            self._due.set()

    async def run(self) -> None:
        """Compare whenever that is due, until cancelled."""
        while True:
            await self._due.wait()
            self._due.clear()
            if (read := self._read) is not None:
                self._read = None
                await self._compare(read, self._older)

    async def _compare(self, read: ReadEvents, older: bool) -> None:
        before = dict(self._registry.subjects)
        try:
            newest = await self._newest(read, before)
        except Unavailable as error:
            log.debug("events.unread", error=str(error))
            self._failed += 1
            if self._failed < TRIES:
                self._read = self._read or read
                return
            contradicted = [subject for subject, state in before.items() if state.record is not None]
        else:
            contradicted = await self._contradicted(newest, before)
            older |= any(newest[each].seq <= _seq(before[each]) for each in contradicted)
        log.debug("events.compared", contradicted=len(contradicted))
        if older:
            self._report()
        await self._load(contradicted)

    async def _newest(self, read: ReadEvents, subjects: Mapping[str, SubjectState]) -> dict[str, RecordCreated]:
        """What the newest events of each of these subjects show."""
        newest: dict[str, RecordCreated] = {}

        def take(event: CachedEvent) -> None:
            if event.subject in subjects:
                newest[event.subject] = _shown(newest.get(event.subject), event)

        await read(take)
        return newest

    async def _contradicted(self, newest: Mapping[str, RecordCreated], before: Mapping[str, SubjectState]) -> list[str]:
        """By the states before the reading: all that was published until then was read."""
        contradicted, slices = list[str](), Slices(self._clock)
        for subject, published in newest.items():
            if is_contradicted(before[subject], published):
                contradicted.append(subject)
            await slices.pause()
        return contradicted

    def _report(self) -> None:
        log.warning(
            "events.went_back",
            stream=self._stream,
            cost="later events are gone; a subject whose last event is not its status has that change published again, "
            "and counts its totals and alerts from there",
            hint="find out who restored it; deleted in place of that, it is made again empty",
        )

    async def _load(self, subjects: Iterable[str]) -> None:
        waiting, loading, slices = deque(subjects), set[str](), Slices(self._clock)
        pause = FIRST_LOOK
        while waiting or loading:
            left = self._unread(loading)
            if len(left) < len(loading):
                pause = FIRST_LOOK
            while waiting and len(left) < AT_A_TIME:
                self._registry.feed(waiting[0], RecordMissing())
                left.add(waiting.popleft())
                await slices.pause()
            loading = left
            await self._clock.sleep(pause)
            pause = min(2 * pause, LAST_LOOK)

    def _unread(self, subjects: Iterable[str]) -> set[str]:
        known = self._registry.subjects
        return {each for each in subjects if each in known and known[each].must_reload}


def _shown(before: RecordCreated | None, event: CachedEvent) -> RecordCreated:
    """What the newest events of a subject show, with the next one."""
    shown = before or RecordCreated("")
    shown = replace(shown, seq=max(shown.seq, event.seq))
    if event.type not in STATUS_EVENTS:
        return shown
    body = event.event()
    status = status_after(body.to)
    return replace(shown, status=status, incident=body.incident if status > 0 else None, moved=True)


def _seq(state: SubjectState) -> int:
    return state.record.seq if state.record else 0
