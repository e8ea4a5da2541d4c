"""Knows which consumers are members of which subjects, by stream: kept up to date, so that nobody looks through all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from nats_backpressure.core.subject.inputs import ConsumerJoined, ConsumerLeft, Input, RecordFollowed, RecordLoaded
from nats_backpressure.protocol.values import ConsumerKey

NONE: Mapping[ConsumerKey, tuple[str, ...]] = MappingProxyType({})


class MemberIndex:
    """The members of every stream with their subjects, and the streams of every subject."""

    def __init__(self) -> None:
        self._streams: dict[str, dict[ConsumerKey, tuple[str, ...]]] = {}
        self._counts: dict[str, dict[str, int]] = {}
        """By subject: how many of its members each stream has."""

    def add(self, subject: str, key: ConsumerKey) -> None:
        """A consumer is a member of a subject now; nothing changes if it was."""
        members = self._streams.setdefault(key.stream, {})
        if subject not in (subjects := members.get(key, ())):
            members[key] = (*subjects, subject)
            counts = self._counts.setdefault(subject, {})
            counts[key.stream] = counts.get(key.stream, 0) + 1

    def remove(self, subject: str, key: ConsumerKey) -> None:
        """A consumer is no member of a subject any more; nothing changes if it was none."""
        members = self._streams.get(key.stream, {})
        if subject not in (subjects := members.get(key, ())):
            return
        if others := tuple(other for other in subjects if other != subject):
            members[key] = others
        else:
            del members[key]
        if not members:
            del self._streams[key.stream]
        counts = self._counts[subject]
        counts[key.stream] -= 1
        if not counts[key.stream]:
            del counts[key.stream]
        if not counts:
            del self._counts[subject]

    def follow(self, subject: str, input_: Input, members: Iterable[ConsumerKey]) -> None:
        """An input was applied to a subject, which has these members now."""
        match input_:
            case ConsumerJoined(key):
                self.add(subject, key)
            case ConsumerLeft(key):
                self.remove(subject, key)
            case RecordLoaded() | RecordFollowed():
                for key in members:
                    self.add(subject, key)

    def remove_all(self, subject: str, keys: Iterable[ConsumerKey]) -> None:
        """The same for all members of a subject."""
        for key in keys:
            self.remove(subject, key)

    def of_stream(self, stream: str) -> Mapping[ConsumerKey, tuple[str, ...]]:
        """The members of a stream with their subjects. It follows every change: copy it to change members meanwhile."""
        return self._streams.get(stream, NONE)

    def streams(self) -> set[str]:
        """The streams any member belongs to."""
        return set(self._streams)

    @property
    def subjects(self) -> int:
        """How many subjects have members."""
        return len(self._counts)

    def streams_of(self, subject: str) -> Iterable[str]:
        """The streams of the members of a subject."""
        return self._counts.get(subject, {})
