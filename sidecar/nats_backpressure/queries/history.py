"""Answers requests about the past (events, changes, metrics, recoveries, alerts); caches the events of all replicas.

Recent events come from memory, older ones from the stream, for a few requests at a time and with limited reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import structlog
from msgspec import Raw
from msgspec.structs import asdict, replace

from nats_backpressure.core.subject.record import Record, Totals
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.core.time_windows import WindowSummary
from nats_backpressure.protocol import history as wire
from nats_backpressure.protocol import metrics_windows
from nats_backpressure.protocol.requests import EventsRequest, HistoryRequest, RequestRefused
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import STATUS_EVENTS, Status
from nats_backpressure.queries import serialize
from nats_backpressure.queries.decisions import DecisionService
from nats_backpressure.queries.event_cache import EVENTS, EventCache, parse_event
from nats_backpressure.runtime.failures import Failures
from nats_backpressure.runtime.ports import Clock, EventReader, Unavailable
from nats_backpressure.runtime.stored_events import CachedEvent, EventPage, EventQuery
from nats_backpressure.runtime.tasks import backoff
from nats_backpressure.runtime.view import ServiceView

log = structlog.get_logger()

CONCURRENT_READS = 4
"""Requests that read the stream at a time; further ones get 429. Requests answered from memory do not count."""
DAY = 86_400_000
"""Milliseconds before now from which events are returned without `since`, and loaded into memory at the start."""
FIRST_RETRY, LAST_RETRY = 0.1, 10.0
"""Seconds between two attempts to load them."""
FEWEST_LOADED = 1000
"""Events that an attempt loads at least; after one that fails half-way the next loads half as many."""
ALERT_ORDER = ("firing", "pending", "resolved")


class HistoryQueries:
    """Answers for the subject that `DecisionService.shown` chooses. Raises RequestRefused.

    `follow_events` must run as a task from the start.
    """

    def __init__(
        self,
        decisions: DecisionService,
        service: ServiceView,
        cache: EventCache,
        reader: EventReader,
        clock: Clock,
        failures: Failures | None = None,
        on_event: Callable[[CachedEvent], object] = lambda event: None,
    ) -> None:
        """`on_event` gets each new event of any replica."""
        self._on_event = on_event
        self._decisions, self._service, self._cache, self._reader, self._clock = (
            decisions,
            service,
            cache,
            reader,
            clock,
        )
        self._failures, self._reads = failures or Failures(clock), 0

    async def follow_events(self) -> None:
        """Cache the events of the last day, then each new one of any replica."""
        await self.load_recent_events()
        await self._reader.follow(self._take)

    def _take(self, event: CachedEvent) -> None:
        self._cache.add(event)
        self._on_event(event)

    def take_published(self, body: bytes) -> None:
        """This process has published an event."""
        if (event := parse_event(body)) is not None:
            self._cache.add_published(event)

    async def load_recent_events(self) -> None:
        """Load the events of the last day into memory; tries until it succeeds. Until then requests read the stream."""
        most = EVENTS
        for delay in backoff(self._clock, FIRST_RETRY, LAST_RETRY):
            older = EventCache(0)
            try:
                since = _ms(self._clock.now().wall) - DAY
                with self._failures.stage("events"):
                    older.set_complete_since(await self._reader.recall(since, most, older.add))
            except Unavailable as error:
                log.debug("history.unavailable", error=str(error))
                most = max(most // 2, FEWEST_LOADED) if len(older) else most
                await self._clock.sleep(delay)
            else:
                self._cache.merge_older(older)
                log.info("history.loaded", events=len(self._cache))
                return

    async def events(self, subject: str, request: EventsRequest, now: Now) -> wire.Events:
        state = self._shown(subject, now)
        query = EventQuery(
            state.subject,
            request.limit + 1,  # one more shows whether there are more
            frozenset({request.type.value} if request.type else ()),
            _ms(now.wall) - DAY if request.since is None else _ms(request.since.timestamp()),
            None if request.until is None else _ms(request.until.timestamp()),
        )
        events, whole = await self._matching_events(query, state)
        shown = tuple(Raw(event.body) for event in events[: request.limit])
        return wire.Events((state.subject,), shown, truncated=not whole or len(events) > request.limit)

    async def history(self, subject: str, request: HistoryRequest, now: Now) -> wire.Transitions:
        state = self._shown(subject, now)
        query = EventQuery(state.subject, request.limit + 1, frozenset(STATUS_EVENTS))
        events, whole = await self._matching_events(query, state)
        transitions = tuple(_transitions(events))[: request.limit]
        return wire.Transitions((state.subject,), transitions, truncated=not whole or len(events) > request.limit)

    def recovery(self, subject: str, now: Now) -> wire.Recovered:
        state = self._shown(subject, now)
        return wire.Recovered(**asdict(serialize.recovery_message(state.record)), matched=(state.subject,))

    def alerts(self, subject: str, now: Now) -> wire.Alerts:
        state = self._shown(subject, now)
        return wire.Alerts((state.subject,), tuple(sorted(_alerts(state), key=_urgency)))

    def alerts_list(self, now: Now) -> wire.Alerts:
        self._decisions.require_observed()
        alerts = [alert for state in tuple(self._service.subjects.values()) for alert in _alerts(state)]
        return wire.Alerts(None, tuple(sorted(alerts, key=_urgency)))

    def metrics(self, subject: str, request: metrics_windows.MetricsRequest, now: Now) -> metrics_windows.Windows:
        """Events in a window are counted as far as they are in memory; the totals come from the stored state."""
        lengths = {window: metrics_windows.seconds(window) for window in request.windows}
        state = self._shown(subject, now)
        name, total = state.subject, state.record.totals if state.record else Totals()
        changes = [event for event in self._cache.events_of(name) if event.type in STATUS_EVENTS]
        return metrics_windows.Windows(
            subject=subject,
            matched=(name,),
            total_events=total.active + total.warning + total.recovery,
            active_events=total.active,
            warning_events=total.warning,
            recovery_events=total.recovery,
            last_event_time=serialize.format_time(total.last),
            windows={
                window: _window(
                    self._service.window(name, now, seconds),
                    Counter(event.type for event in changes if event.at > 1000 * (now.wall - seconds)),
                )
                for window, seconds in lengths.items()
            },
        )

    def _shown(self, subject: str, now: Now) -> SubjectState:
        return self._decisions.shown(subject, now).state

    async def _matching_events(self, query: EventQuery, state: SubjectState) -> tuple[list[CachedEvent], bool]:
        """The newest events that match, and whether they are all."""
        recent = self._cache.events_of(query.subject)
        complete_since = self._cache.complete_since(query.subject)
        current = _has_newest(recent, state.record, complete_since)
        if not current:
            recent = ()
        events = [event for event in reversed(recent) if query.has(event)][: query.limit]
        known = query.since >= complete_since or (recent and recent[0].seq == 1)
        if (current and known) or len(events) == query.limit:
            return events, True
        before = recent[0].seq if recent else None
        try:
            page = await self._older(replace(query, limit=query.limit - len(events), before=before))
        except Unavailable:
            if not events:
                raise RequestRefused(503, "the events stream cannot be read now; try again") from None
            return events, False
        return [*events, *page.events], page.whole

    async def _older(self, query: EventQuery) -> EventPage:
        if self._reads >= CONCURRENT_READS:
            raise RequestRefused(429, f"{CONCURRENT_READS} other requests are reading the events stream; try again")
        self._reads += 1
        try:
            return await self._reader.older(query)
        finally:
            self._reads -= 1


def _has_newest(recent: Sequence[CachedEvent], record: Record | None, complete_since: int) -> bool:
    """Whether the newest published event is in memory: another replica may have published it, as its record shows."""
    published = record.seq - len(record.unsent) if record else 0
    if recent:
        return recent[-1].seq >= published
    return record is None or published == 0 or _ms(record.since) < complete_since


def _ms(unix: float) -> int:
    return round(1000 * unix)


def _transitions(cached: Sequence[CachedEvent]) -> Iterator[wire.Transition]:
    """One for each event, the newest first, with the time in the previous status if the previous event is known."""
    events = [event.event() for event in cached]
    for n, event in enumerate(events):
        previous = n + 1
        known = previous < len(events) and events[previous].to == event.from_
        duration = max(0, cached[n].at - cached[previous].at) if known else None
        yield wire.Transition(event.from_, event.to, event.timestamp, event.reasons, duration)


def _alerts(state: SubjectState) -> Iterator[wire.Alert]:
    for alert in state.record.alerts if state.record else ():
        yield wire.Alert(**asdict(serialize.alert_message(alert)), subject=state.subject)


def _urgency(alert: wire.Alert) -> tuple[int, str, str]:
    return ALERT_ORDER.index(alert.state), alert.subject, alert.name


def _window(summary: WindowSummary | None, events: Mapping[str, int]) -> metrics_windows.Window:
    def milliseconds_in(status: Status) -> int:
        return _ms(summary.seconds.get(status, 0.0)) if summary else 0

    def value_range(name: str) -> metrics_windows.Range:
        measure = summary.measures.get(name) if summary else None
        if measure is None or measure.mean is None:
            return metrics_windows.Range(None, None, None)
        return metrics_windows.Range(
            *(serialize.round_finite(value) for value in (measure.low, measure.mean, measure.high))
        )

    return metrics_windows.Window(
        coverage=round(summary.coverage, 4) if summary else 0.0,
        events=metrics_windows.EventCounts(
            *(events.get(kind, 0) for kind in metrics_windows.EventCounts.__struct_fields__)
        ),
        time_in=metrics_windows.TimeIn(
            *(milliseconds_in(s) for s in (Status.ACTIVE, Status.WARNING, Status.INACTIVE, Status.UNKNOWN))
        ),
        pending=value_range("pending"),
        inflight=value_range("inflight"),
        latency_p95_ms=value_range("p95"),
        arrival_rate=value_range("arrival_rate"),
        ack_rate=value_range("ack_rate"),
    )
