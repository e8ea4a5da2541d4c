"""The states of all watched subjects, and the streams they are read from: each input moves a state through `step`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from nats_backpressure.config.settings import Settings
from nats_backpressure.core.model.member import Carried
from nats_backpressure.core.model.proofs import Proofs
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.model.samples import Sample, StreamLook
from nats_backpressure.core.model.worker_reports import NO_REPORTS, WorkerReports
from nats_backpressure.core.reading.headroom import headroom
from nats_backpressure.core.status.freshness import Limits, status_proof
from nats_backpressure.core.subject.inputs import (
    ConsumerJoined,
    ConsumersRead,
    Dismissed,
    DropSubject,
    Effect,
    Input,
    NewerHeartbeat,
    PolicyChanged,
    RecordFollowed,
    RecordLoaded,
    Tick,
)
from nats_backpressure.core.subject.plan_writes import StepContext
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.core.subject.step import step
from nats_backpressure.core.time_windows import WindowSummary
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.protocol.patterns import PatternIndex
from nats_backpressure.protocol.subjects import is_literal
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.calm_subjects import CalmSubjects
from nats_backpressure.runtime.followed_streams import FollowedStreams
from nats_backpressure.runtime.member_index import MemberIndex
from nats_backpressure.runtime.ports import TimeSource
from nats_backpressure.runtime.step_context import StepContexts
from nats_backpressure.runtime.time_in_status import TimeInStatus

TICK = 0.5
"""Seconds between two calls of `tick`: what time alone changes (freshness, holds, openings) is found by then."""

CHECK, SLICE = 50, 500
"""What it takes to check a subject (10 µs, ten times as much where it changes), by what it takes to pass one by; and a
slice of both."""


class SubjectRegistry:
    """Every watched subject, and the streams they are read from. It is the ServiceView of those that answer.

    States are frozen and replaced: a reader on another thread copies `subjects` and sees one moment. `perform` gets the
    effects of each step, and feeds their outcomes back.
    """

    def __init__(
        self,
        settings: Settings,
        clock: TimeSource,
        policies: ActivePolicies,
        writer: str,
        perform: Callable[[Sequence[Effect]], None],
    ) -> None:
        self.settings, self.policies = settings, policies
        self.subjects: dict[str, SubjectState] = {}
        self.watched_changes = 0
        """How often a subject was added or dropped."""
        self._patterns: PatternIndex[str] = PatternIndex()
        """Watched subjects that are patterns."""
        self.observing = False
        """Whether there is something to answer: each stream was read or tried, and the first states are stored."""
        self.on_attention: Callable[[Iterable[ConsumerKey]], None] = lambda keys: None
        """Is called with members that something else than a reading may have moved above a mark."""
        self.on_published: Callable[[bytes], None] = lambda body: None
        """Is called with each event of a subject that this process has published, as it is encoded."""
        self.worker_reports: Callable[[ConsumerKey, float], WorkerReports] = lambda key, now: NO_REPORTS
        """What the workers of a consumer have said until then."""
        self._clock, self._observe, self._perform = clock, settings.observe, perform
        self._times: dict[str, TimeInStatus] = {}
        self._calm = CalmSubjects(self._observe.stale_after_seconds)
        self.members = MemberIndex()
        """The members of all subjects, those that are only remembered among them."""
        self.streams = FollowedStreams(self.members, clock, settings.observe)
        self.contexts = StepContexts(policies, self.streams, self.members, settings.observe, writer)

    @property
    def looks(self) -> Mapping[str, StreamLook]:
        """The newest look at each followed stream."""
        return self.streams.looks()

    @property
    def stretch(self) -> float:
        return self.streams.load.stretch

    @property
    def reads(self) -> Callable[[str], bool]:
        return self.streams.reads

    @property
    def newest_read_at(self) -> float | None:
        """Monotonic time of the newest reading of any stream; None while there is nothing to answer."""
        return self.streams.newest_reading if self.observing else None

    def interval(self, subject: str) -> float:
        """Seconds between two readings of the subject's streams, as planned now."""
        interval, state = self.streams.interval(subject, without_members=TICK), self.subjects.get(subject)
        # What is stored does not name each consumer, so any stream may be the one whose turn it waits for.
        waits = state is not None and state.newest_proof is None
        return max(interval, self.streams.first_readings) if waits else interval

    def longest_interval(self) -> float:
        """The longest `interval` of all subjects; the shortest that may be if there is none."""
        if not self.subjects:
            return self._observe.min_interval_ms / 1000
        longest = self.streams.longest_interval()
        if len(self.subjects) > self.members.subjects:  # some have no members
            longest = max(longest, TICK)
        return longest

    def proofs(self, subject: str) -> Proofs:
        return self.streams.proofs(subject)

    def unread(self, subject: str) -> bool:
        return self.streams.may_hold_unread(subject)

    def headroom(self, sample: Sample, subjects: Iterable[str]) -> float:
        """How many messages must arrive before a consumer can be above a mark under any of these subjects, given its
        newest sample; 0 where that was set aside, so that it is soon confirmed."""
        room = math.inf
        for subject in subjects:
            state = self.subjects.get(subject)
            if state is None or (member := state.members.get(sample.key)) is None or member.reading is None:
                return 0.0
            reading, shedding = member.reading, state.shedding
            if reading.pending != sample.pending or reading.inflight not in (None, sample.inflight):
                return 0.0
            room = min(room, headroom(member, shedding.shedding or shedding.ratio < 1))
        return room

    def next_reading(self, subject: str) -> float:
        """Monotonic time of the next planned reading of any of the subject's streams."""
        planned = self.streams.next_reading(subject)
        return self._clock.now().mono + self.interval(subject) if planned is None else planned

    def limits(self, subject: str) -> Limits:
        """The freshness limits in force for a subject, given how often it is read now."""
        return self.contexts.limits(self.interval(subject))

    def get_or_create(self, subject: str) -> SubjectState:
        """The subject's state; a new one where there was none."""
        if (state := self.subjects.get(subject)) is None:
            now = self._clock.now()
            policy = self.policies.effective(subject).policy
            state = SubjectState(subject=subject, policy=policy, unread_since=now.mono)
            self.subjects[subject] = state
            self.watched_changes += 1
            self._times[subject] = TimeInStatus(now.mono)
            if not is_literal(subject):
                self._patterns.add(subject, subject)
        return state

    def join(self, subject: str, key: ConsumerKey) -> None:
        """A consumer counts under a subject, from now on or under another policy."""
        self.get_or_create(subject)
        self.feed(subject, ConsumerJoined(key, self.policies.effective(subject, key).policy))

    def apply_policies(self, subject: str) -> None:
        """Evaluate a subject again under the policies that are in force now."""
        if (state := self.subjects.get(subject)) is None:
            return
        if (policy := self.policies.effective(subject).policy) != state.policy:
            self.feed(subject, PolicyChanged(policy))
        for key, member in state.members.items():
            if (policy := self.policies.effective(subject, key).policy) != member.policy:
                self.feed(subject, ConsumerJoined(key, policy))
                self.on_attention([key])

    def feed(self, subject: str, input_: Input) -> None:
        """One thing happened to a subject: move its state, and have the effects performed."""
        if (state := self.subjects.get(subject)) is None:
            return
        now = self._clock.now()
        self.subjects[subject], effects = step(state, input_, now, self._context(state, now))
        self.members.follow(subject, input_, self.subjects[subject].members)
        self._times[subject].account(self.subjects[subject], now.mono)
        if isinstance(input_, ConsumerJoined | RecordLoaded | RecordFollowed) and (
            keys := _with_latches(self.subjects[subject])
        ):
            self.on_attention(keys)
        if any(isinstance(effect, DropSubject) for effect in effects):
            self.forget(subject)
        if wanted := [effect for effect in effects if not isinstance(effect, DropSubject)]:
            self._perform(wanted)

    def feed_readings(self, subject: str, readings: Sequence[tuple[Reading | None, Reading]]) -> None:
        """Members of a subject were read; each with the reading before it, where it says the same but for its time."""
        state, after = self.subjects.get(subject), None
        repeated = [(before, reading) for before, reading in readings if before is not None]
        if state is not None and len(repeated) == len(readings):
            after = self._calm.repeat(state, repeated, self._clock.now(), self.newest_read_at or 0.0)
        if after is not None:
            self.subjects[subject] = after
        else:
            self.feed(subject, ConsumersRead(tuple(reading for _, reading in readings)))

    def is_unchanged_by_time(self, subject: str, at: Now) -> bool:
        """Whether a look at the time, `at` that moment, would leave the subject as it is."""
        state = self.subjects[subject]
        after, effects = step(state, Tick(), at, self._context(state, at))
        return not effects and (after is state or after == state)

    def _context(self, state: SubjectState, now: Now) -> StepContext:
        return self.contexts.of(state, self.interval(state.subject), self.newest_read_at, now)

    def is_proved_elsewhere(self, subject: str) -> bool:
        return self.contexts.reported_at(self.subjects[subject]) > -math.inf

    def is_gone(self, subject: str) -> bool:
        state = self.subjects.get(subject)
        if state is None or state.record is None or state.members:
            return False
        if self.contexts.unwatched_members(state.record):
            return False  # another replica watches it
        # A consumer that was there and could not be read since a restart is no member yet.
        is_empty = self.streams.are_read_whole(subject) or state.unread_since == -math.inf
        return is_empty and not self.is_proved_elsewhere(subject)

    def dismiss(self, subject: str) -> bool:
        """Remove what is stored of a subject that is gone, now and not after an hour; returns whether it is gone."""
        if gone := self.is_gone(subject):
            self.feed(subject, Dismissed())
        return gone

    def tick(self) -> None:
        """Apply to every subject what time alone changes, where it may change anything."""
        for _ in self.tick_in_slices():
            pass

    def tick_in_slices(self) -> Iterator[None]:
        """The same in short pieces of work, between which other tasks may have a turn."""
        at, work = self._clock.now().mono, 0
        for subject in tuple(self.subjects):
            state = self.subjects.get(subject)
            if state is None or self._calm.is_calm(state, at):
                work += 1
            else:
                self._tick(subject, state)
                work += CHECK
            if work >= SLICE:
                work = 0
                yield

    def _tick(self, subject: str, state: SubjectState) -> None:
        now, newest = self._clock.now(), status_proof(state.members.values(), self.proofs(subject))
        mark = self.contexts.is_to_be_marked(state, self.interval(subject), now)
        if mark or not self._calm.check(state, newest, now):
            reported_at = self.contexts.reported_at(state) if state.newest_proof is None else -math.inf
            self.feed(subject, Tick(reported_at))

    def feed_newer_heartbeat(self) -> None:
        """A replica of a newer version is there: the states that it stores stay its own."""
        for subject, state in tuple(self.subjects.items()):
            if state.newer_seen_at is not None:
                self.feed(subject, NewerHeartbeat())

    def forget(self, subject: str) -> None:
        """Drop a subject and all that is known of it."""
        if (state := self.subjects.pop(subject, None)) is not None:
            self.watched_changes += 1
            self.members.remove_all(subject, state.members)
            if not is_literal(subject):
                self._patterns.remove(subject, subject)
        self._times.pop(subject, None)
        self._calm.forget(subject)

    def covering(self, subject: str) -> Iterator[str]:
        """The watched patterns that cover a literal subject."""
        return self._patterns.covering(subject)

    def reading_of(self, key: ConsumerKey) -> Reading | None:
        """The newest reading of a member of any subject; None where there is none."""
        subjects = self.members.of_stream(key.stream).get(key, ())
        member = self.subjects[subjects[0]].members.get(key) if subjects else None
        return member.reading if member else None

    def carried(self, key: ConsumerKey, subjects: Iterable[str]) -> Carried:
        """What was stored of a consumer under these subjects before this process began to read it."""
        stored = (self.subjects[subject].carried.get(key) for subject in subjects if subject in self.subjects)
        return next((carried for carried in stored if carried is not None), Carried())

    def time_in(self, subject: str, now: Now) -> Mapping[str, float]:
        """Seconds spent in each status since this process first knew the subject."""
        times = self._times.get(subject)
        return times.seconds(now.mono) if times else {}

    def window(self, subject: str, now: Now, seconds: float) -> WindowSummary | None:
        """What the subject was like over the last `seconds`; None if this process does not know it."""
        times = self._times.get(subject)
        return times.window(now.mono, seconds) if times else None


def _with_latches(state: SubjectState) -> list[ConsumerKey]:
    """The members with a latch: only reading them soon shows when it can be released."""
    return [key for key, member in state.members.items() if member.latches.names]
