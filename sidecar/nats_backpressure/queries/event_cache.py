"""The recent events of all subjects, in memory: the newest ones, without a hole, from a known moment on."""

from __future__ import annotations

import sys
from collections import OrderedDict, deque

import msgspec

from nats_backpressure.core.subject.record_builder import event_id
from nats_backpressure.protocol import messages, timestamps
from nats_backpressure.protocol.decoding import read_message
from nats_backpressure.runtime.ports import CachedEvent

PER_SUBJECT = 256
"""Events kept of one subject; its oldest goes first."""
EVENTS, BYTES = 100_000, 64 * 1024 * 1024
"""Events kept of all subjects, and their encoded bytes (some 1.2 KB each); beyond either the oldest of all goes."""
LARGEST = 64 * 1024
"""Bytes of an event; a larger one was not told by us."""
HIGHEST = 2**53
"""No `seq` is as high: JSON numbers are exact below it."""


def parse_event(payload: bytes) -> CachedEvent | None:
    """The event in a message; None for what is none of ours: anybody may have published it there."""
    if len(payload) > LARGEST:
        return None
    if (event := read_message(payload, messages.Event)) is None:
        return None
    at = timestamps.parse_rfc3339(event.timestamp)
    if at is None or not 0 < event.seq < HIGHEST or event.id != event_id(event.subject, event.epoch, event.seq):
        return None
    # Encoded again: a field that was skipped above was not looked at, and may not even be UTF-8.
    body = msgspec.json.encode(event)
    return CachedEvent(
        sys.intern(event.subject), sys.intern(event.type), event.epoch, event.seq, round(1000 * at), body
    )


class EventCache:
    """Complete from `since` (Unix ms) on: at first from the start of this process, once filled from long before.

    It says what happened: a purge of the stream takes nothing away here. After a restart it is as if it never was.
    """

    def __init__(self, since: int, per_subject: int = PER_SUBJECT, events: int = EVENTS, size: int = BYTES) -> None:
        self._since, self._limits = since, (per_subject, events, size)
        self._all: OrderedDict[tuple[str, str, int], CachedEvent] = OrderedDict()
        self._of: dict[str, deque[CachedEvent]] = {}
        self._floors: dict[str, int] = {}
        """Later beginnings, of subjects that have reached their own bound; others share `since`."""
        self._size = 0

    def __len__(self) -> int:
        return len(self._all)

    def keep(self, event: CachedEvent) -> None:
        """Events come in the order of their `seq`; one that was kept before, or is older, changes nothing."""
        own = self._of.get(event.subject)
        if own and event.seq != own[-1].seq + 1:
            known = (event.subject, event.epoch, event.seq) in self._all
            if event.seq <= own[-1].seq and (known or event.epoch == own[-1].epoch):
                return
            # One in between was not heard here, or the numbering was begun anew: what came before is not joined to it.
            self._drop(event.subject)
            self._floors[event.subject] = event.at + 1
        own = self._of.setdefault(event.subject, deque())
        own.append(event)
        self._all[(event.subject, event.epoch, event.seq)] = event
        self._size += len(event.body)
        self._trim(own)

    def of(self, subject: str) -> tuple[CachedEvent, ...]:
        """What is kept of a subject, the oldest first, without a hole."""
        return tuple(self._of.get(subject, ()))

    def complete_since(self, subject: str) -> int:
        """Unix milliseconds from which on everything told of the subject is here."""
        return max(self._since, self._floors.get(subject, 0))

    def completed(self, since: int) -> None:
        """Everything told since then was kept here, or had to go again for a bound."""
        self._since = max(since, self._since)

    def adopt(self, older: EventCache) -> None:
        """Take over what was read from the stream, and after it what was told here meanwhile."""
        for event in self._all.values():
            older.keep(event)
        self._since, self._size = older._since, older._size
        self._all, self._of, self._floors = older._all, older._of, older._floors

    def _trim(self, own: deque[CachedEvent]) -> None:
        per_subject, events, size = self._limits
        if len(own) > per_subject:
            oldest = own[0]
            self._floors[oldest.subject] = oldest.at + 1
            self._remove(oldest)
        while len(self._all) > events or self._size > size:
            oldest = next(iter(self._all.values()))
            # For all subjects, so that nothing is remembered of those of which nothing is kept.
            self._since = max(self._since, oldest.at + 1)
            self._remove(oldest)

    def _drop(self, subject: str) -> None:
        for event in tuple(self._of.get(subject, ())):
            self._remove(event)

    def _remove(self, oldest: CachedEvent) -> None:
        """The oldest of its subject, and so the first of it in both orders."""
        self._all.pop((oldest.subject, oldest.epoch, oldest.seq))
        self._size -= len(oldest.body)
        own = self._of[oldest.subject]
        own.popleft()
        if not own:
            del self._of[oldest.subject]
            self._floors.pop(oldest.subject, None)
