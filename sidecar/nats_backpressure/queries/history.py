"""What is said of what was: events and transitions, windows of time, recoveries and alerts.

Recent events come from memory, older ones from the stream: few such questions at a time, each with bounded reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import structlog
from msgspec import Raw
from msgspec.structs import asdict, replace

from nats_backpressure.core.model import Event
from nats_backpressure.core.subject.state import Record, SubjectState, Totals
from nats_backpressure.core.time_windows import WindowSummary
from nats_backpressure.protocol import history as wire
from nats_backpressure.protocol import windows
from nats_backpressure.protocol.requests import EventsRequest, HistoryRequest, RequestRefused
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import EventType, Status
from nats_backpressure.queries import serialize as render
from nats_backpressure.queries.decisions import DecisionService
from nats_backpressure.queries.event_cache import EVENTS, LARGEST, EventCache
from nats_backpressure.runtime.ports import (
    CachedEvent,
    Clock,
    EventPage,
    EventPublisher,
    EventQuery,
    EventReader,
    Unavailable,
)
from nats_backpressure.runtime.tasks import backoff
from nats_backpressure.runtime.view import ServiceView

log = structlog.get_logger()

AT_ONCE = 4
"""Questions that read the stream at a time; one more is refused with 429. Those answered from memory do not count."""
DAY = 86_400_000
"""Milliseconds that events go back where no `since` is given, and for which memory is filled at the start."""
FIRST_RETRY, LAST_RETRY = 0.1, 60.0
"""Seconds between two tries to fill it."""
LEAST_RECALLED = 1000
"""Events asked for at least; a try that fails half-way is followed by one that asks for half as many."""
MOVES = frozenset({EventType.ACTIVE.value, EventType.WARNING.value, EventType.RECOVERY.value})
"""The events that tell of a change of status."""
ALERT_ORDER = ("firing", "pending", "resolved")


class HistoryQueries:
    """Answers for the watched subject that `Desk.shown` gives; raises Refused. `remember` is to run from the start."""

    def __init__(
        self, desk: DecisionService, book: ServiceView, history: EventCache, stream: EventReader, clock: Clock
    ) -> None:
        self._desk, self._book, self._history, self._stream, self._clock = desk, book, history, stream, clock
        self._reading = 0

    async def remember(self) -> None:
        """Fill the memory with the last day, until that has succeeded once. Until then the stream is asked."""
        most = EVENTS
        for delay in backoff(self._clock, FIRST_RETRY, LAST_RETRY):
            older = EventCache(0)
            try:
                older.completed(await self._stream.recall(_ms(self._clock.now().wall) - DAY, most, older.keep))
            except Unavailable as error:
                log.debug("history.unavailable", error=str(error))
                most = max(most // 2, LEAST_RECALLED) if len(older) else most
                await self._clock.sleep(delay)
            else:
                self._history.adopt(older)
                log.info("history.loaded", events=len(self._history))
                return

    async def events(self, subject: str, request: EventsRequest, now: Now) -> wire.Events:
        state = self._shown(subject, now)
        wanted = EventQuery(
            state.subject,
            request.limit + 1,  # one more tells whether that is all
            frozenset({request.type.value} if request.type else ()),
            _ms(now.wall) - DAY if request.since is None else _ms(request.since.timestamp()),
            None if request.until is None else _ms(request.until.timestamp()),
        )
        found, whole = await self._told(wanted, state)
        shown = tuple(Raw(event.body) for event in found[: request.limit])
        return wire.Events((state.subject,), shown, truncated=not whole or len(found) > request.limit)

    async def history(self, subject: str, request: HistoryRequest, now: Now) -> wire.Transitions:
        state = self._shown(subject, now)
        found, whole = await self._told(EventQuery(state.subject, request.limit + 1, MOVES), state)
        moves = tuple(_transitions(found))[: request.limit]
        return wire.Transitions((state.subject,), moves, truncated=not whole or len(found) > request.limit)

    def recovery(self, subject: str, now: Now) -> wire.Recovered:
        state = self._shown(subject, now)
        return wire.Recovered(**asdict(render.recovery_message(state.record)), matched=(state.subject,))

    def alerts(self, subject: str, now: Now) -> wire.Alerts:
        state = self._shown(subject, now)
        return wire.Alerts((state.subject,), tuple(sorted(_alerts(state), key=_urgency)))

    def alerts_list(self, now: Now) -> wire.Alerts:
        self._desk.require_observed()
        found = [alert for state in tuple(self._book.subjects.values()) for alert in _alerts(state)]
        return wire.Alerts(None, tuple(sorted(found, key=_urgency)))

    def metrics(self, subject: str, request: windows.MetricsRequest, now: Now) -> windows.Windows:
        """Changes in a window are counted as far as they are in memory; in all, as the stored state counts them."""
        lengths = {window: windows.seconds(window) for window in request.windows}
        state = self._shown(subject, now)
        name, total = state.subject, state.record.totals if state.record else Totals()
        moves = [event for event in self._history.of(name) if event.type in MOVES]
        return windows.Windows(
            subject=subject,
            matched=(name,),
            total_events=total.active + total.warning + total.recovery,
            active_events=total.active,
            warning_events=total.warning,
            recovery_events=total.recovery,
            last_event_time=render.format_time(total.last),
            windows={
                window: _window(
                    self._book.window(name, now, seconds),
                    Counter(event.type for event in moves if event.at > 1000 * (now.wall - seconds)),
                )
                for window, seconds in lengths.items()
            },
        )

    def _shown(self, subject: str, now: Now) -> SubjectState:
        return self._desk.shown(subject, now).state

    async def _told(self, wanted: EventQuery, state: SubjectState) -> tuple[list[CachedEvent], bool]:
        """The newest of those wanted, and whether none is left out."""
        recent = self._history.of(wanted.subject)
        complete_since = self._history.complete_since(wanted.subject)
        heard = _heard_all(recent, state.record, complete_since)
        if not heard:
            recent = ()
        found = [event for event in reversed(recent) if wanted.has(event)][: wanted.limit]
        known = wanted.since >= complete_since or (recent and recent[0].seq == 1)
        if (heard and known) or len(found) == wanted.limit:
            return found, True
        before = recent[0].seq if recent else None
        try:
            page = await self._older(replace(wanted, limit=wanted.limit - len(found), before=before))
        except Unavailable:
            if not found:
                raise RequestRefused(503, "the events stream cannot be read now; ask again") from None
            return found, False
        return [*found, *page.events], page.whole

    async def _older(self, wanted: EventQuery) -> EventPage:
        if self._reading >= AT_ONCE:
            raise RequestRefused(429, f"{AT_ONCE} questions that read the stream are under way; ask again")
        self._reading += 1
        try:
            return await self._stream.older(wanted)
        finally:
            self._reading -= 1


class CachingEventPublisher:
    """An EventPublisher that keeps in memory what it has published."""

    def __init__(self, publisher: EventPublisher, cache: EventCache) -> None:
        self._publisher, self._cache = publisher, cache
        self.last, self.publish_rejection = publisher.last, publisher.publish_rejection

    async def publish(self, event: Event) -> bytes:
        body = await self._publisher.publish(event)
        if len(body) <= LARGEST:
            kept = CachedEvent(event.subject, event.type.value, event.epoch, event.seq, _ms(event.at), body)
            self._cache.keep(kept)
        return body


def _heard_all(recent: Sequence[CachedEvent], record: Record | None, complete_since: int) -> bool:
    """Whether the newest that was told is in memory: another replica may have told it, and stored that it did."""
    told = record.seq - len(record.unsent) if record else 0
    if recent:
        return recent[-1].seq >= told
    return record is None or told == 0 or _ms(record.since) < complete_since


def _ms(unix: float) -> int:
    return round(1000 * unix)


def _transitions(found: Sequence[CachedEvent]) -> Iterator[wire.Transition]:
    """Events that tell of a change of status, the newest first, each with the one before it where that fits."""
    events = [event.event() for event in found]
    for n, event in enumerate(events):
        before = n + 1
        known = before < len(events) and events[before].to == event.from_
        held = max(0, found[n].at - found[before].at) if known else None
        yield wire.Transition(event.from_, event.to, event.timestamp, event.reasons, held)


def _alerts(state: SubjectState) -> Iterator[wire.Alert]:
    for alert in state.record.alerts if state.record else ():
        yield wire.Alert(**asdict(render.alert_message(alert)), subject=state.subject)


def _urgency(alert: wire.Alert) -> tuple[int, str, str]:
    return ALERT_ORDER.index(alert.state), alert.subject, alert.name


def _window(view: WindowSummary | None, events: Mapping[str, int]) -> windows.Window:
    def spent(status: Status) -> int:
        return _ms(view.seconds.get(status, 0.0)) if view else 0

    def measured(name: str) -> windows.Range:
        found = view.measures.get(name) if view else None
        if found is None or not found.n:
            return windows.Range(None, None, None)
        return windows.Range(*(render.round_finite(value) for value in (found.low, found.mean, found.high)))

    return windows.Window(
        coverage=round(view.coverage, 4) if view else 0.0,
        events=windows.EventCounts(*(events.get(kind, 0) for kind in windows.EventCounts.__struct_fields__)),
        time_in=windows.TimeIn(*(spent(s) for s in (Status.ACTIVE, Status.WARNING, Status.INACTIVE, Status.UNKNOWN))),
        pending=measured("pending"),
        inflight=measured("inflight"),
        latency_p95_ms=measured("p95"),
        arrival_rate=measured("arrival_rate"),
        ack_rate=measured("ack_rate"),
    )
