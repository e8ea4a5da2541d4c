"""The events stream: each event told exactly once, however often it is tried."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import msgspec
from msgspec import Struct

from sidecar.core import outbox
from sidecar.core.model import Event, EventType, Status
from sidecar.core.outbox import Newest, Next
from sidecar.edges.jetstream import WRONG_SEQUENCE, ApiError, JetStream, Message
from sidecar.ports import SendConflict, Told, Unavailable
from sidecar.wire import messages
from sidecar.wire.subjects import Names, encode

STATUS_EVENTS = (EventType.ACTIVE, EventType.WARNING, EventType.RECOVERY)
TRIES = 4
"""Publishes within one call; the caller tries again later."""
REMEMBERED = 4096
"""Ids of attempts without an answer; the oldest is forgotten first."""
LARGEST = 64 * 1024
"""Bytes of an event; a larger one is refused (it never is: its parts are bounded)."""


class _Written(Struct, frozen=True):
    """What is read back of an event."""

    id: str = ""
    seq: int = 0
    to: str = ""
    incident: str | None = None


class Announcer:
    def __init__(self, js: JetStream, names: Names, group: str, render: Callable[[Event], messages.Event]) -> None:
        self._js, self._names, self._group, self._render = js, names, group, render
        self._attempted: OrderedDict[str, None] = OrderedDict()

    async def last(self, subject: str) -> Told | None:
        newest = await self._newest(self._names.event("*", subject))
        if newest is None:
            return None
        told: Message | None = None
        for kind in STATUS_EVENTS:
            found = await self._newest(self._names.event(kind.value, subject))
            if found is not None and (told is None or found.seq > told.seq):
                told = found
        seq = _read(newest).seq
        if told is None:
            return Told(seq, Status.INACTIVE, None)
        event = _read(told)
        status = {"active": Status.ACTIVE, "warning": Status.WARNING}.get(event.to, Status.INACTIVE)
        return Told(max(seq, event.seq), status, event.incident if status > Status.INACTIVE else None)

    async def send(self, event: Event) -> None:
        subject = self._names.event(event.type.value, event.subject)
        for _ in range(TRIES):
            newest = await self._newest_of(subject)
            match outbox.before(event.id, event.seq, newest):
                case Next.TOLD:
                    return self._done(event)
                case Next.CONFLICT:
                    raise SendConflict(await self._top(event.subject))
                case Next.PUBLISH:
                    if await self._publish(subject, event, newest.place):
                        return self._done(event)
        raise Unavailable(f"{subject}: others write there all the time")

    async def _publish(self, subject: str, event: Event, place: int) -> bool:
        """Whether it is told now; not if the expected place was taken meanwhile."""
        attempted = event.id in self._attempted
        self._attempted[event.id] = None
        while len(self._attempted) > REMEMBERED:
            self._attempted.popitem(last=False)
        payload = msgspec.json.encode(self._render(event))
        if len(payload) > LARGEST:
            raise Unavailable(f"{subject}: an event of {len(payload)} bytes")
        try:
            ack = await self._js.publish(subject, payload, self._headers(event, place))
        except ApiError as error:
            if error.err_code in WRONG_SEQUENCE:
                return False
            raise
        if outbox.acknowledged(ack.duplicate, attempted) is Next.CONFLICT:
            raise SendConflict(await self._top(event.subject))
        return True

    def _headers(self, event: Event, place: int) -> dict[str, str]:
        rendered = self._render(event)
        return {
            "Nats-Msg-Id": event.id,
            "Nats-Expected-Stream": self._names.events_stream,
            "Nats-Expected-Last-Subject-Sequence": str(place),
            "ce-specversion": "1.0",
            "ce-id": event.id,
            "ce-source": f"/{self._names.name}/{self._group}",
            "ce-type": f"{self._names.prefix}.{event.type.value}",
            "ce-subject": encode(event.subject),
            "ce-time": rendered.timestamp,
        }

    def _done(self, event: Event) -> None:
        self._attempted.pop(event.id, None)

    async def _newest(self, subject: str) -> Message | None:
        return await self._js.last(self._names.events_stream, subject)

    async def _newest_of(self, subject: str) -> Newest:
        message = await self._newest(subject)
        if message is None:
            return Newest()
        event = _read(message)
        return Newest(message.seq, message.headers.get("Nats-Msg-Id", event.id), event.seq)

    async def _top(self, subject: str) -> int:
        message = await self._newest(self._names.event("*", subject))
        return 0 if message is None else _read(message).seq


def _read(message: Message) -> _Written:
    """What another program may have put there instead is an event nobody knows."""
    try:
        return msgspec.json.decode(message.data, type=_Written)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _Written()
