"""The state bucket and the events stream in memory, with faults a real server does not produce on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.subject.record_builder import rejection_event
from nats_backpressure.core.subject.stored_state import newer_record, record_of
from nats_backpressure.policy.rejection_marks import is_replaced
from nats_backpressure.policy.schema import Rejection
from nats_backpressure.protocol.messages import Heartbeat
from nats_backpressure.protocol.values import MONITORING_EVENTS, STATUS_EVENTS, EventType, Status
from nats_backpressure.runtime.ports import Conflict, PublishConflict, Stored, Unavailable, Unpublishable
from nats_backpressure.runtime.stored_events import LastEvent


class Faults:
    """`before` and `after` are asked at each write: true means it fails there, unapplied or applied."""

    def __init__(self) -> None:
        self.before: Callable[[], bool] = lambda: False
        self.after: Callable[[], bool] = lambda: False

    def strike(self, when: Callable[[], bool]) -> None:
        if when():
            raise Unavailable("the fake fails here")


class FakeStateStore:
    def __init__(self) -> None:
        self.faults = Faults()
        self.values: dict[str, tuple[bytes, int]] = {}
        self.beats: list[bytes] = []
        self.on_heartbeat: Callable[[Heartbeat], None] = lambda heartbeat: None
        self.on_current: Callable[[], object] = lambda: None
        self._revision = 0
        self._followers: list[Callable[[str, Stored], None]] = []
        self._heartbeats: list[Callable[[bytes], None]] = []

    is_current = True

    def connected(self) -> None: ...

    async def load_all(self) -> dict[str, Stored]:
        self.faults.strike(self.faults.before)
        loaded = {subject: self._stored(subject, *kept) for subject, kept in self.values.items()}
        return {subject: stored for subject, stored in loaded.items() if stored.record is not None}

    async def entries(self) -> dict[str, Stored]:
        """What every key holds, what is not ours too."""
        return {subject: self._stored(subject, *kept) for subject, kept in self.values.items()}

    async def load(self, subject: str) -> Stored | None:
        self.faults.strike(self.faults.before)
        return self._stored(subject, *self.values[subject]) if subject in self.values else None

    async def write(self, subject: str, value: bytes, expected: int, nonce: str) -> int:
        self.faults.strike(self.faults.before)
        now = self.values.get(subject)
        if (now[1] if now else 0) != expected:
            if now is not None and self._stored(subject, *now).nonce == nonce:
                return now[1]
            raise Conflict(subject)
        self.put(subject, value)
        self.faults.strike(self.faults.after)
        return self._revision

    def put(self, subject: str, value: bytes) -> None:
        """Anybody stores a value, whatever is there; an empty one deletes the key."""
        self._revision += 1
        self.values[subject] = (value, self._revision)
        self._show(subject)

    def remove_unseen(self, subject: str) -> None:
        """The key is gone without a trace."""
        del self.values[subject]
        self._show(subject)

    def take_looks(self, looks: Sequence[StreamLook], asked_at: float) -> None: ...

    async def follow(self, take: Callable[[str, Stored], None]) -> None:
        with self.followed(take):
            await asyncio.Event().wait()

    @contextmanager
    def followed(
        self, take: Callable[[str, Stored], None], take_heartbeat: Callable[[bytes], None] = lambda value: None
    ) -> Iterator[None]:
        """Every write is shown to `take` meanwhile, and every heartbeat, of whichever replica, to `take_heartbeat`."""
        self._followers.append(take)
        self._heartbeats.append(take_heartbeat)
        try:
            yield
        finally:
            self._followers.remove(take)
            self._heartbeats.remove(take_heartbeat)

    def _show(self, subject: str) -> None:
        """To all followers, those that wrote it too."""
        stored = self._stored(subject, *self.values[subject]) if subject in self.values else Stored(None, 0)
        for take in tuple(self._followers):
            take(subject, stored)

    async def remove(self, subject: str, expected: int) -> None:
        self.faults.strike(self.faults.before)
        now = self.values.get(subject)
        if now is not None and now[1] != expected:
            raise Conflict(subject)
        self.values.pop(subject, None)
        self.faults.strike(self.faults.after)

    def recreate(self) -> None:
        """The bucket was deleted and made again: it is empty, and revisions begin again."""
        self.values.clear()
        self._revision = 0

    async def write_heartbeat(self, value: bytes) -> bool:
        self.faults.strike(self.faults.before)
        self.beats.append(value)
        for take_heartbeat in tuple(self._heartbeats):
            take_heartbeat(value)
        return True

    async def write_last_heartbeat(self, value: bytes, instances: Collection[str]) -> bool:
        return await self.write_heartbeat(value)

    @staticmethod
    def _stored(subject: str, value: bytes, revision: int) -> Stored:
        if (newer := newer_record(value, subject)) is not None:
            return Stored(newer, revision, newer=True)
        stored = record_of(value)
        ours = stored is not None and stored[0].subject == subject
        return Stored(stored[0], revision, stored[1]) if stored and ours else Stored(None, revision)


class FakeEventPublisher:
    """The events stream in memory; `render` gives the bodies of events."""

    def __init__(self, render: Callable[[SubjectEvent], bytes] = lambda event: event.id.encode()) -> None:
        self.faults = Faults()
        self._render = render
        self.events: list[SubjectEvent] = []
        self.impossible: Callable[[str, EventType], bool] = lambda subject, kind: False
        """Of which subjects and types no event can ever be published."""
        self.refusing: set[str] = set()
        """Subjects under which no refusal can be published now."""
        self._followers: list[Callable[[], None]] = []

    @contextmanager
    def followed(self, arrive: Callable[[], None]) -> Iterator[None]:
        """`arrive` is called meanwhile whenever an event is published."""
        self._followers.append(arrive)
        try:
            yield
        finally:
            self._followers.remove(arrive)

    async def last(self, subject: str) -> LastEvent | None:
        self.faults.strike(self.faults.before)
        events = [event for event in self.events if event.subject == subject]
        if not events:
            return None
        moves = [event for event in events if event.type in STATUS_EVENTS]
        status = moves[-1].now if moves else Status.INACTIVE
        incident = moves[-1].incident if status > Status.INACTIVE else None
        monitoring = [event.type for event in events if event.type in MONITORING_EVENTS]
        lost = monitoring[-1:] == [EventType.MONITORING_LOST]
        return LastEvent(max(event.seq for event in events), status, incident, lost, moved=bool(moves))

    async def publish(self, event: SubjectEvent) -> bytes:
        self.faults.strike(self.faults.before)
        if self.impossible(event.subject, event.type):
            raise Unpublishable(event.id)
        published = [e for e in self.events if e.subject == event.subject]
        same = next((e for e in published if e.id == event.id), None)
        if same is not None and (same.type, same.at) == (event.type, event.at):
            return self._render(event)
        top = max((e.seq for e in published), default=0)
        if same is not None or top >= event.seq:
            raise PublishConflict(max(top, event.seq - 1))
        self.events.append(event)
        for arrive in tuple(self._followers):
            arrive()
        self.faults.strike(self.faults.after)
        return self._render(event)

    async def publish_rejection(self, subject: str, refused: Rejection, at: float) -> None:
        self.faults.strike(self.faults.before)
        if self.impossible(subject, EventType.POLICY_REJECTED):
            raise Unpublishable(subject)
        if subject in self.refusing:
            raise Unavailable("the fake does not publish there now")
        published = [event for event in self.events if event.subject == subject]
        newest = [event.policy_revision for event in published if event.policy_revision][-1:]
        if not newest or not is_replaced(refused.mark, newest[0]):
            self.events.append(
                rejection_event(subject, refused, at, max((event.seq for event in published), default=0) + 1)
            )
        self.faults.strike(self.faults.after)

    def recreate(self) -> None:
        """The stream was deleted and made again."""
        self.events.clear()
