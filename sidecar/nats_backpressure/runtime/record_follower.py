"""Feeds the registry with what other replicas stored and published, and with what became of a stored record behind our
back."""

from __future__ import annotations

from collections.abc import Callable

from nats_backpressure.core.subject.inputs import EventSeen, EventSent, RecordFollowed, RecordLoaded, RecordMissing
from nats_backpressure.core.subject.left_epochs import is_news
from nats_backpressure.core.subject.record import Record
from nats_backpressure.runtime.ports import Stored
from nats_backpressure.runtime.stored_events import CachedEvent
from nats_backpressure.runtime.subject_registry import SubjectRegistry


class RecordFollower:
    """Takes what the store holds of a subject."""

    def __init__(self, registry: SubjectRegistry, on_followed: Callable[[Record], None] = lambda record: None) -> None:
        """`on_followed` is called with each record of another replica."""
        self._registry, self._on_followed = registry, on_followed

    def take(self, subject: str, stored: Stored) -> None:
        """A write was seen, or everything was read again."""
        state, record = self._registry.subjects.get(subject), stored.record
        unwatched = self._registry.contexts.unwatched_members(record)
        if state is None:
            if record is not None:
                self._registry.get_or_create(subject)
                loaded = RecordLoaded(record, stored.revision, stored.newer, unwatched=unwatched)
                self._registry.feed(subject, loaded)
        elif record is not None and stored.revision > state.revision:
            absent = self._registry.streams.absent_members(subject)
            followed = RecordFollowed(record, stored.revision, stored.nonce, stored.newer, absent, unwatched)
            self._registry.feed(subject, followed)
            self._on_followed(record)
        elif state.record is not None and (record, stored.revision) != (state.record, state.revision):
            self._registry.feed(subject, RecordMissing())

    def take_event(self, event: CachedEvent) -> None:
        """An event is in the stream. Where this replica cannot publish it, another one did: the next one can follow.
        Where its record was not seen, it is read: the bucket may be read again just now, or be an older one."""
        state = self._registry.subjects.get(event.subject)
        if state is None or state.record is None:
            return
        if is_news(state, event.epoch, event.seq):
            self._registry.feed(event.subject, EventSeen(event.epoch, event.seq))
            return
        ours = next((one for one in state.record.unsent if one.id == state.publishing), None)
        # One with the same id and another time is another change.
        if ours is not None and (ours.epoch, ours.seq, round(1000 * ours.at)) == (event.epoch, event.seq, event.at):
            self._registry.feed(event.subject, EventSent(ours.id))
