"""The streams that are followed: what the last reading showed of each, and what all of them mean for a subject."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import Struct, field

from nats_backpressure.config.settings import Observe
from nats_backpressure.core.model.proofs import Proofs
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.reading.load import Load
from nats_backpressure.core.reading.stream_plan import StreamPlan
from nats_backpressure.core.signals.message_age import MessageAges
from nats_backpressure.core.watch_filter import subjects_by_stream
from nats_backpressure.protocol.between_replicas import ALL_UNREAD, MOST_UNREAD
from nats_backpressure.protocol.patterns import overlap
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.member_index import MemberIndex
from nats_backpressure.runtime.ports import TimeSource

UNREAD_EVERY = 0.1
"""Seconds for which the unread streams count, so that 10,000 streams cost less than 1 % of a core."""


class WholeList(Struct, frozen=True):
    """A list that showed all consumers of a stream. One that it lacks was created later, and what the stream held then
    is older than the consumer."""

    look: StreamLook
    names: frozenset[str]

    def held_before(self, consumer: str, look: StreamLook) -> int:
        """The last sequence of the stream when the consumer did not exist yet, given a later look; 0 if not known."""
        return 0 if consumer in self.names or look.created != self.look.created else self.look.last_seq


class FollowedStream(Struct, eq=False):
    """One stream that is read: what the last reading showed of it, and when the next one is planned."""

    look: StreamLook
    next: float
    """Monotonic time of the next reading."""
    watched: bool = True
    """False where only the store knows members of it: it is read to find out whether they still count."""
    interval: float = 0.0
    """Seconds between two readings, as planned; an outage does not stretch it."""
    seen: bool = False
    """Whether it was ever read."""
    shown_at: float = -math.inf
    """Monotonic time at which its consumers, or some of them, were read or received last, or it was found gone."""
    whole: WholeList | None = None
    """The last list of its consumers, if that showed every one there is."""
    under: dict[ConsumerKey, tuple[str, ...]] = {}
    """Consumers that were read, with the subjects they count under."""
    left_out: dict[str, int] = {}
    """How many consumers of it count under no subject, by the reason."""
    absent: dict[ConsumerKey, float] = {}
    """Members that the last reading lacked, with the monotonic time since when."""
    ages: MessageAges = field(default_factory=MessageAges)
    plan: StreamPlan | None = None
    """How it is read; None in a replay, where looks prove nothing."""


class FollowedStreams(dict[str, FollowedStream]):
    """By name. A reader on another thread copies the values first."""

    def __init__(self, members: MemberIndex, clock: TimeSource, observe: Observe) -> None:
        self.listed = False
        """Whether all streams there are were seen in one list."""
        self.origins: Mapping[str, tuple[str, ...]] = {}
        """The subjects of every stream: a mirror's are those of its origin."""
        self.newest_reading: float | None = None
        """Monotonic time of the newest reading of any stream, as the poller counts it."""
        self.load = Load()
        """How the readings fit into the budget."""
        self.first_readings = 0.0
        """Seconds until each stream was read once, as planned under the present load; 0 where all were."""
        self.reads: Callable[[str], bool] = lambda stream: True
        """Whether this replica reads a stream itself, and does not receive its readings from another one."""
        self._members, self._clock = members, clock
        self._shortest, self._stale_after = observe.min_interval_ms / 1000, observe.stale_after_seconds
        self._unread: tuple[str, ...] = ()
        self._unread_at = -math.inf

    def looks(self) -> Mapping[str, StreamLook]:
        """The newest look at each stream."""
        return {name: stream.look for name, stream in tuple(self.items())}

    def subjects_of(self, look: StreamLook) -> tuple[str, ...]:
        """The subjects of a stream; a mirror has those of its origin."""
        return look.subjects or self.origins.get(look.origin or "", ())

    def take_subjects(self, looks: Sequence[StreamLook], complete: bool) -> list[FollowedStream]:
        """Take in the subjects of the streams in a list. Returns the mirrors whose subjects change by that: their
        origins were not shown yet, or have others now."""
        before = self.origins
        self.origins = subjects_by_stream(before, looks, complete)
        mirrors = [(stream, stream.look.origin) for stream in self.values() if stream.look.origin]
        return [stream for stream, origin in mirrors if self.origins.get(origin) != before.get(origin)]

    def planned(self, key: ConsumerKey) -> float:
        """Seconds between two readings of a consumer with work, as planned now; the same in each replica, whichever
        reads it."""
        stream = self.get(key.stream)
        return 0.0 if stream is None or stream.plan is None else stream.plan.planned(key, self.load)

    # Of a subject

    def interval(self, subject: str, without_members: float) -> float:
        """Seconds between two readings of all streams of the subject's members, as planned now."""
        streams = self._with_members_of(subject)
        return max([stream.interval if stream else self._shortest for stream in streams], default=without_members)

    def longest_interval(self) -> float:
        """The longest of all subjects that have members; 0 if none has."""
        streams = (self.get(name) for name in self._members.streams())
        return max((stream.interval if stream else self._shortest for stream in streams), default=0.0)

    def next_reading(self, subject: str) -> float | None:
        """Monotonic time of the next planned reading of any stream of the subject's members; None if none is read."""
        names = self._members.streams_of(subject)  # asked for with most decisions: a loop of its own
        return min([stream.next for name in names if (stream := self.get(name))], default=None)

    def proofs(self, subject: str) -> Proofs:
        """What looks at the streams of the subject's members prove."""
        proofs = {}
        for name in self._members.streams_of(subject):
            stream = self.get(name)
            if stream is not None and stream.plan is not None:
                proofs[name] = stream.plan.crossings.proof()
        return proofs

    def absent_members(self, subject: str) -> frozenset[ConsumerKey]:
        """The members of a subject that the newest list of their stream lacks."""
        streams = self._with_members_of(subject)
        return frozenset([key for stream in streams if stream and stream.absent for key in stream.absent])

    def may_hold_unread(self, subject: str) -> bool:
        """Whether a consumer may count under a subject without our knowing it yet: a stream there was never read."""
        return not self.listed or any(
            stream.watched and not stream.seen and self._may_hold(stream.look, subject)
            for stream in tuple(self.values())
        )

    def are_read_whole(self, subject: str) -> bool:
        """Whether the last readings showed every consumer that may count under a subject."""
        return self.listed and all(
            stream.whole is not None or not stream.watched or not self._may_hold(stream.look, subject)
            for stream in tuple(self.values())
        )

    def _with_members_of(self, subject: str) -> Iterable[FollowedStream | None]:
        """None for each that is not followed."""
        return [self.get(name) for name in self._members.streams_of(subject)]

    def _may_hold(self, look: StreamLook, subject: str) -> bool:
        subjects, retention = self.subjects_of(look), look.retention
        unknown = not subjects or (retention is not None and retention.mixed)
        return unknown or any(overlap(pattern, subject) for pattern in subjects)

    # Which are not read

    def unread(self) -> tuple[str, ...]:
        """The watched streams of which this replica has no recent reading and cannot get one, see `Presence.unread`; as
        it was UNREAD_EVERY ago at most, since it may be asked for each input."""
        if not self.listed:
            return ALL_UNREAD
        now = self._clock.now().mono
        if now - self._unread_at >= UNREAD_EVERY:
            self._unread, self._unread_at = self._unread_of(now - self._stale_after), now
        return self._unread

    def _unread_of(self, late: float) -> tuple[str, ...]:
        """The same; a reading before `late` is none."""
        unread = [
            name
            for name, stream in self.items()
            if stream.watched
            and stream.plan is not None
            and (not stream.plan.answered or (stream.plan.retry and stream.shown_at < late))
        ]
        return tuple(sorted(unread)) if len(unread) <= MOST_UNREAD else ALL_UNREAD
