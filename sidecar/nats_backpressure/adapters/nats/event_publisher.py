"""Publishes events to the events stream: each exactly once, however often it is tried."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec
import structlog
from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.adapters.nats.api import NO_STREAM, WRONG_SEQUENCE, ApiError, JetStreamApi, Message
from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.core.subject import publish_check
from nats_backpressure.core.subject.publish_check import OwnEvent, PublishStep, StoredPosition
from nats_backpressure.core.subject.record_builder import NO_EPOCH, event_id, rejection_event
from nats_backpressure.policy.rejection_marks import is_replaced
from nats_backpressure.policy.schema import Rejection
from nats_backpressure.policy.validation import shorten
from nats_backpressure.protocol import messages
from nats_backpressure.protocol.subjects import Names, encode
from nats_backpressure.protocol.values import (
    LARGEST_EVENT,
    LEAST_TOO_HIGH,
    MONITORING_EVENTS,
    STATUS_EVENTS,
    EventType,
    Status,
)
from nats_backpressure.runtime.ports import PublishConflict, TooLarge, Unavailable, Unpublishable
from nats_backpressure.runtime.stored_events import LastEvent, status_after
from nats_backpressure.runtime.tasks import Bounded, Once

log = structlog.get_logger()

TRIES = 4
"""Publishes within one call; the caller retries later."""
REMEMBERED = 4096
"""Ids of events that were tried without an answer; beyond, the oldest is dropped."""
MESSAGE_TOO_LARGE = 10054
"""The stream takes no message of this size."""
ERRORS_SHOWN, REASONS_SHOWN, SHOWN = 10, 16, 120
"""Of an event that is too large: errors, reasons, and characters of each that are published."""
TRANSIENT = {10008, 10158}
"""Errors of a cluster that end by themselves: no leader now; the same id is being stored at this moment."""
STEPS = 256
"""Messages of others in a row, and halvings, when an event is searched for."""


class _StoredEvent(Struct, frozen=True):
    """What is read back of an event."""

    id: str = ""
    seq: int = 0
    epoch: str = ""
    timestamp: str = ""
    to: str = ""
    incident: str | None = None
    policy_revision: str = ""


class JetStreamEventPublisher:
    """The EventPublisher of a JetStream stream: expected sequences and message ids keep out what is there already."""

    def __init__(self, js: JetStreamApi, names: Names, render: Callable[[SubjectEvent], messages.Event]) -> None:
        self._js, self._names, self._render = js, names, render
        self._attempted: Bounded[str, None] = Bounded(REMEMBERED)
        self._logged = Once()

    async def last(self, subject: str) -> LastEvent | None:
        """None without a stream too: then there was no event, and nobody is left unjudged for lack of one."""
        try:
            return await self._last_settled(subject)
        except ApiError as error:
            if error.err_code != NO_STREAM:
                raise
            return None

    async def _last_settled(self, subject: str) -> LastEvent | None:
        """Read again where an event was published meanwhile: an old status beside a new `seq` would be believed."""
        newest = await self._newest(self._names.event("*", subject))
        for _ in range(TRIES):
            before = newest
            last = None if before is None else await self._last(subject)
            newest = await self._newest(self._names.event("*", subject))
            if (before.seq if before else 0) == (newest.seq if newest else 0):
                return last
        raise Unavailable(f"events about {subject[:80]} are published all the time")

    async def _last(self, subject: str) -> LastEvent:
        moved = await self._newest_of(subject, STATUS_EVENTS)
        lost = await self._newest_of(subject, MONITORING_EVENTS)
        top = await self._top(subject)
        unknown = lost is not None and lost.subject == self._names.event(EventType.MONITORING_LOST.value, subject)
        if moved is None:
            return LastEvent(top, Status.INACTIVE, None, unknown)
        event = _read(moved, subject)
        status = status_after(event.to)
        return LastEvent(top, status, event.incident if status > Status.INACTIVE else None, unknown, moved=True)

    async def _newest_of(self, subject: str, kinds: Iterable[EventType]) -> Message | None:
        """The newest of our events of these types."""
        newest: Message | None = None
        for kind in kinds:
            last = await self._newest(self._names.event(kind.value, subject))
            if last is not None and _read(last, subject).id and (newest is None or last.seq > newest.seq):
                newest = last
        return newest

    async def publish(self, event: SubjectEvent) -> bytes:
        rendered = self._render(event)
        mine, body = OwnEvent(event.id, event.seq, rendered.timestamp), msgspec.json.encode(rendered)
        for _ in range(TRIES):
            step, newest = await self._look(event, mine)
            if step is PublishStep.PUBLISH:
                step, body = await self._publish_at(newest.stream_seq, event, rendered)
            if step is PublishStep.SEARCH:
                step = publish_check.step_after_duplicate((await self._look(event, mine))[0])
            if step is PublishStep.STORED:
                self._attempted.pop(event.id, None)
                return body
            if step is PublishStep.CONFLICT:
                raise PublishConflict(publish_check.next_base(mine, await self._top(event.subject)))
        raise Unavailable(f"{event.id}: other programs publish on its subject all the time")

    async def publish_rejection(self, subject: str, rejection: Rejection, at: float) -> None:
        """No state numbers the events of such a key: it gets the number after what was last published there."""
        newest = await self._newest(self._names.event("*", subject))
        epoch = (_read(newest, subject).epoch if newest else "") or NO_EPOCH
        seq = await self._seq_at(newest, subject) + 1
        # After the number: what another replica publishes from now on has that too, and is a conflict.
        last = await self._newest(self._names.event(EventType.POLICY_REJECTED.value, subject))
        if last is not None and is_replaced(rejection.mark, _read(last, subject).policy_revision):
            return
        try:
            await self.publish(rejection_event(subject, rejection, at, seq, epoch))
        except PublishConflict:
            raise Unavailable(f"{subject[:80]}: another program published there meanwhile; retry") from None

    async def _look(self, event: SubjectEvent, mine: OwnEvent) -> tuple[PublishStep, StoredPosition]:
        """The next step for an event by what the stream holds, and the newest message on its subject."""
        subject = self._names.event(event.type.value, event.subject)
        newest = await self._newest(self._names.event("*", event.subject))
        top = await self._seq_at(newest, event.subject)
        if newest is not None and newest.subject != subject:
            newest = await self._newest(subject)
        if newest is None:
            return publish_check.step_before_publish(mine, StoredPosition(), top), StoredPosition()
        stored = _stored(newest, event.subject)
        step = publish_check.step_before_publish(mine, stored, top)
        if step is PublishStep.SEARCH:
            step = publish_check.step_after_search(mine, await self._search(subject, event, stored.stream_seq), top)
        return step, stored

    async def _search(self, subject: str, event: SubjectEvent, place: int) -> StoredPosition | None:
        """The first event on this subject whose `seq` is not below ours, by halving: `seq` rises with the sequence of
        the stream, which can only be read forwards. `place`: that of the newest message. Most are near it."""
        low, high, back = 1, place + 1, 8
        first: StoredPosition | None = None
        for _ in range(STEPS):
            if low >= high:
                return first
            middle = max(low, place - back) if back else (low + high) // 2
            stored = await self._first_of_ours(subject, event, middle)
            if stored is not None and stored.seq < event.seq:
                low, back = stored.stream_seq + 1, 0
            else:
                first, high = stored or first, middle
                back *= 2
        raise Unavailable(f"{event.id}: not found in {STEPS} steps")

    async def _first_of_ours(self, subject: str, event: SubjectEvent, start: int) -> StoredPosition | None:
        """The first of our events from this sequence on: any program may publish there."""
        for _ in range(STEPS):
            message = await self._next(subject, start)
            if message is None or (stored := _stored(message, event.subject)).seq > 0:
                return None if message is None else stored
            start = stored.stream_seq + 1
        raise Unavailable(f"{event.id}: {STEPS} messages of another program are beside it")

    async def _publish_at(self, place: int, event: SubjectEvent, rendered: messages.Event) -> tuple[PublishStep, bytes]:
        """Publish behind `place`, cut to what fits; returns what to do next (PUBLISH, after another look, if the place
        was taken meanwhile) and the body that was published."""
        headers = self._headers(event, rendered, place)
        block = sum(len(k) + len(v) + 4 for k, v in headers.items())
        too_large: Unavailable | None = None
        for shorter in _shorter(rendered):
            body = msgspec.json.encode(shorter)
            if len(body) + block > LARGEST_EVENT:
                continue
            try:
                return await self._request(event, body, headers), body
            except (ApiError, TooLarge) as error:
                if isinstance(error, ApiError) and error.err_code != MESSAGE_TOO_LARGE:
                    raise
                too_large = error
        if isinstance(too_large, ApiError):  # the stream's limit may be raised
            self._log_once(too_large)
            raise too_large
        raise Unpublishable(f"{event.id[:200]}: {too_large or f'more than {LARGEST_EVENT} bytes, however short'}")

    async def _request(self, event: SubjectEvent, body: bytes, headers: dict[str, str]) -> PublishStep:
        attempted = event.id in self._attempted
        self._attempted[event.id] = None
        try:
            ack = await self._js.publish(self._names.event(event.type.value, event.subject), body, headers)
        except (ApiError, TooLarge) as error:
            if not attempted:  # refused for certain, so a duplicate seen later is not ours
                self._attempted.pop(event.id, None)
            if isinstance(error, ApiError) and error.err_code in WRONG_SEQUENCE:
                return PublishStep.PUBLISH
            if isinstance(error, ApiError) and error.err_code != MESSAGE_TOO_LARGE:
                self._log_once(error)
            raise
        return publish_check.step_after_ack(ack.duplicate, attempted)

    def _log_once(self, error: ApiError) -> None:
        """A server that refuses an event goes on refusing it until an operator changes something."""
        if error.err_code not in TRANSIENT and self._logged.first(error.err_code):
            log.warning("event.refused", stream=self._names.events_stream, error=str(error), hint="it keeps trying")

    def _headers(self, event: SubjectEvent, rendered: messages.Event, place: int) -> dict[str, str]:
        return {
            "Nats-Msg-Id": event.id,
            "Nats-Expected-Stream": self._names.events_stream,
            "Nats-Expected-Last-Subject-Sequence": str(place),
            "ce-specversion": "1.0",
            "ce-id": event.id,
            "ce-source": f"/{self._names.name}",
            "ce-type": f"{self._names.prefix}.{event.type.value}",
            "ce-subject": encode(event.subject),
            "ce-time": rendered.timestamp,
        }

    async def _newest(self, subject: str) -> Message | None:
        return await self._js.last(self._names.events_stream, subject)

    async def _next(self, subject: str, place: int) -> Message | None:
        return await self._js.next(self._names.events_stream, subject, place)

    async def _top(self, subject: str) -> int:
        """The highest `seq` published of a subject; one message that is not ours does not hide it."""
        return await self._seq_at(await self._newest(self._names.event("*", subject)), subject)

    async def _seq_at(self, newest: Message | None, subject: str) -> int:
        """The highest `seq` published up to the newest message of any type."""
        if newest is None:
            return 0
        if (seq := _read(newest, subject).seq) > 0:
            return seq
        each = [await self._newest(self._names.event(kind.value, subject)) for kind in EventType]
        return max((_read(message, subject).seq for message in each if message is not None), default=0)


def _shorter(whole: messages.Event) -> Iterator[messages.Event]:
    """The event, and what may be published of it where it is too large."""
    yield whole
    errors = whole.errors if isinstance(whole.errors, tuple) else ()
    if errors:
        cut = [messages.Problem(shorten(one.path, SHOWN), shorten(one.message, SHOWN)) for one in errors[:ERRORS_SHOWN]]
        more = len(errors) - len(cut)
        left_out = [messages.Problem("", f"and {more} more problems")] if more else []
        yield (whole := replace(whole, errors=(*cut, *left_out)))
    reasons = tuple(shorten(reason, SHOWN) for reason in whole.reasons[:REASONS_SHOWN])
    yield replace(whole, reasons=reasons, metrics=messages.Metrics(), thresholds=None)


def _stored(message: Message, subject: str) -> StoredPosition:
    event = _read(message, subject)
    return StoredPosition(message.seq, event.id, event.seq, event.timestamp)


def _read(message: Message, subject: str) -> _StoredEvent:
    """An event without id and `seq` where the message is none of ours: any program may publish there."""
    try:
        event = msgspec.json.decode(message.data, type=_StoredEvent)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _StoredEvent()
    ours = 0 < event.seq < LEAST_TOO_HIGH and event.id == event_id(subject, event.epoch, event.seq)
    return event if ours else _StoredEvent()
