"""The newest events of all subjects, in memory, without a gap since a known time; and the parser of stored events."""

from __future__ import annotations

import sys
from collections import OrderedDict, deque

import msgspec

from nats_backpressure.core.subject.record_builder import event_id
from nats_backpressure.protocol import messages, timestamps
from nats_backpressure.protocol.decoding import read_message
from nats_backpressure.protocol.values import LARGEST_EVENT, LEAST_TOO_HIGH
from nats_backpressure.runtime.stored_events import CachedEvent

PER_SUBJECT = 256
"""Most events of one subject; beyond, its oldest is dropped."""
EVENTS, BYTES = 100_000, 64 * 1024 * 1024
"""Most events of all subjects, and most encoded bytes (about 1.2 KB each); beyond either, the oldest is dropped."""
NEVER = 2**62
"""Unix milliseconds since which a cache is complete that was not loaded yet."""


def parse_event(payload: bytes) -> CachedEvent | None:
    """The event in a message; None if it is not one of ours: anyone may publish on these subjects."""
    if len(payload) > LARGEST_EVENT:
        return None
    if (event := read_message(payload, messages.Event)) is None:
        return None
    at = timestamps.parse_rfc3339(event.timestamp)
    if at is None or not 0 < event.seq < LEAST_TOO_HIGH or event.id != event_id(event.subject, event.epoch, event.seq):
        return None
    # Encoded again: unknown fields were skipped unread, and may not even be UTF-8.
    body = msgspec.json.encode(event)
    return CachedEvent(
        sys.intern(event.subject), sys.intern(event.type), event.epoch, event.seq, round(1000 * at), body
    )


class EventCache:
    """Complete since `since` (Unix ms): at first never, after loading older events for long.

    A purge of the stream removes nothing here. After a restart only what the stream still has is loaded.
    """

    def __init__(
        self, since: int = NEVER, per_subject: int = PER_SUBJECT, events: int = EVENTS, size: int = BYTES
    ) -> None:
        self._since, self._limits = since, (per_subject, events, size)
        self._all: OrderedDict[tuple[str, str, int], CachedEvent] = OrderedDict()
        self._of: dict[str, deque[CachedEvent]] = {}
        self._floors: dict[str, int] = {}
        """Later times of completeness, for subjects that reached their own limit; the others share `since`."""
        self._size = 0

    def __len__(self) -> int:
        return len(self._all)

    def add(self, event: CachedEvent) -> None:
        """Events come in the order of their `seq`; one that was added before, or is older, changes nothing. After the
        stream went back the first one is of a new epoch, and none of the one before follows."""
        own = self._of.get(event.subject)
        if own and _is_older(event, own):
            self._put_stored(event, own)
            return
        if own and event.seq != own[-1].seq + 1:
            self._remove_unconnected(event, own)
        own = self._of.setdefault(event.subject, deque())
        own.append(event)
        self._all[(event.subject, event.epoch, event.seq)] = event
        self._size += len(event.body)
        self._trim(own)

    def add_published(self, event: CachedEvent) -> None:
        """One that this process has published, before it comes from the stream, which may be deleted first. Only one
        that follows what is here: another replica's may be on its way between them."""
        own = self._of.get(event.subject)
        if event.seq == (own[-1].seq + 1 if own else 1):
            self.add(event)

    def events_of(self, subject: str) -> tuple[CachedEvent, ...]:
        """The events of a subject, the oldest first, without a gap."""
        return tuple(self._of.get(subject, ()))

    def complete_since(self, subject: str) -> int:
        """Unix milliseconds since which every event of the subject is here."""
        return max(self._since, self._floors.get(subject, 0))

    def set_complete_since(self, since: int) -> None:
        """Every event since then was added, even if some were dropped at a limit."""
        self._since = max(since, self._since)

    def merge_older(self, older: EventCache) -> None:
        """Put the events that were read from the stream before those that were added here since: of one that is in both
        what was read counts, since what is here may only have been published."""
        for key, event in self._all.items():
            if key not in older._all:
                older.add(event)
        self._since, self._size = older._since, older._size
        self._all, self._of, self._floors = older._all, older._of, older._floors

    def _put_stored(self, event: CachedEvent, own: deque[CachedEvent]) -> None:
        """What is stored counts, in place of what was published here: an earlier try may have stored it otherwise."""
        key = event.subject, event.epoch, event.seq
        if (known := self._all.get(key)) is not None and known != event:
            self._all[key] = own[own.index(known)] = event
            self._size += len(event.body) - len(known.body)

    def _trim(self, own: deque[CachedEvent]) -> None:
        per_subject, events, size = self._limits
        if len(own) > per_subject:
            oldest = own[0]
            self._floors[oldest.subject] = oldest.at + 1
            self._remove(own.popleft())
        while len(self._all) > events or self._size > size:
            oldest = next(iter(self._all.values()))
            # For all subjects, so that a subject without events needs no entry.
            self._since = max(self._since, oldest.at + 1)
            self._remove(self._of[oldest.subject].popleft())

    def _remove_unconnected(self, event: CachedEvent, own: deque[CachedEvent]) -> None:
        """Remove what an event does not connect to."""
        went_back = event.seq <= own[-1].seq
        # A stream that went back, and goes on in a new epoch, lost the events from this number on, and has the others.
        # Otherwise one in between is missing here: none of the earlier ones connects.
        while own and (not went_back or own[-1].seq >= event.seq):
            self._remove(own.pop())
        if not own:
            self._floors[event.subject] = event.at + 1

    def _remove(self, event: CachedEvent) -> None:
        """Remove an event that was taken from those of its subject."""
        self._all.pop((event.subject, event.epoch, event.seq))
        self._size -= len(event.body)
        if not self._of[event.subject]:
            del self._of[event.subject]
            self._floors.pop(event.subject, None)


def _is_older(event: CachedEvent, own: deque[CachedEvent]) -> bool:
    """Whether it is there already, or an epoch that followed it is: no epoch goes on after another one."""
    if event.epoch == own[-1].epoch:
        return event.seq <= own[-1].seq
    return any(event.epoch == one.epoch for one in own)
