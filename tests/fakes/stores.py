"""The state bucket and the events stream in memory, with faults a real server does not produce on demand."""

from __future__ import annotations

from collections.abc import Callable

from sidecar.core.model import Event, EventType, Status
from sidecar.ports import Conflict, SendConflict, Stored, Told, Unavailable
from sidecar.wire.stored import record_of

STATUS_EVENTS = (EventType.ACTIVE, EventType.WARNING, EventType.RECOVERY)


class Faults:
    """`before` and `after` are asked at each write: true means it fails there, unapplied or applied."""

    def __init__(self) -> None:
        self.before: Callable[[], bool] = lambda: False
        self.after: Callable[[], bool] = lambda: False

    def strike(self, when: Callable[[], bool]) -> None:
        if when():
            raise Unavailable("the fake was told to fail")


class FakeStateStore:
    def __init__(self) -> None:
        self.faults = Faults()
        self.values: dict[str, tuple[bytes, int]] = {}
        self.beats: list[bytes] = []
        self._revision = 0

    async def load_all(self) -> dict[str, Stored]:
        self.faults.strike(self.faults.before)
        found = {subject: self._stored(value, revision) for subject, (value, revision) in self.values.items()}
        return {subject: stored for subject, stored in found.items() if stored.record is not None}

    async def load(self, subject: str) -> Stored | None:
        self.faults.strike(self.faults.before)
        return self._stored(*self.values[subject]) if subject in self.values else None

    async def write(self, subject: str, value: bytes, expected: int, nonce: str) -> int:
        self.faults.strike(self.faults.before)
        now = self.values.get(subject)
        if (now[1] if now else 0) != expected:
            if now is not None and self._stored(*now).nonce == nonce:
                return now[1]
            raise Conflict(subject)
        self._revision += 1
        self.values[subject] = (value, self._revision)
        self.faults.strike(self.faults.after)
        return self._revision

    async def remove(self, subject: str, expected: int) -> None:
        self.faults.strike(self.faults.before)
        now = self.values.get(subject)
        if (now[1] if now else 0) != expected:
            raise Conflict(subject)
        self.values.pop(subject, None)

    async def beat(self, value: bytes) -> None:
        self.faults.strike(self.faults.before)
        self.beats.append(value)

    @staticmethod
    def _stored(value: bytes, revision: int) -> Stored:
        found = record_of(value)
        return Stored(None, revision) if found is None else Stored(found[0], revision, found[1])


class FakeAnnouncer:
    def __init__(self) -> None:
        self.faults = Faults()
        self.told: list[Event] = []

    async def last(self, subject: str) -> Told | None:
        self.faults.strike(self.faults.before)
        events = [event for event in self.told if event.subject == subject]
        if not events:
            return None
        moves = [event for event in events if event.type in STATUS_EVENTS]
        status = moves[-1].now if moves else Status.INACTIVE
        incident = moves[-1].incident if status > Status.INACTIVE else None
        return Told(max(event.seq for event in events), status, incident)

    async def send(self, event: Event) -> None:
        self.faults.strike(self.faults.before)
        same = [e for e in self.told if e.subject == event.subject and e.type is event.type]
        if same and same[-1].id == event.id:
            return
        if same and same[-1].seq >= event.seq:
            raise SendConflict(max(e.seq for e in self.told if e.subject == event.subject))
        self.told.append(event)
        self.faults.strike(self.faults.after)
