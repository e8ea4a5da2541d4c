"""Evaluates a recording again: what was observed goes through the same intake, registry and `step` as in the service.

Time comes from the recording. Every effect succeeds at once, so events are reported when they were concluded, whatever
kept them from being published then. What callers did because of a decision is in what was observed: another policy
cannot bring callers back.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence

from nats_backpressure.config.settings import Observe, Settings
from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.core.model.samples import Sample
from nats_backpressure.core.subject.inputs import (
    Effect,
    EventSent,
    Input,
    KeyRemoved,
    PublishEvent,
    RecordCreated,
    RemoveKey,
    WriteDone,
    WriteRecord,
)
from nats_backpressure.core.subject.membership import ReadState
from nats_backpressure.core.watch_filter import WatchEntry
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.protocol.patterns import covers
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.recording.decoder import (
    HintsDecoded,
    Observation,
    ReadingDecoded,
    SampleDecoded,
    StreamAbsenceDecoded,
)
from nats_backpressure.recording.policies import PoliciesDecoded
from nats_backpressure.recording.tick_search import TimeGap
from nats_backpressure.runtime.followed_streams import FollowedStream, WholeList
from nats_backpressure.runtime.intake import Intake, Occurrence
from nats_backpressure.runtime.observations import AckSeen, Nak, Terminated
from nats_backpressure.runtime.subject_registry import TICK, SubjectRegistry


class _RecordedTime:
    def __init__(self) -> None:
        self.at = Now(0.0, 0.0)

    def now(self) -> Now:
        return self.at


class Replay:
    """Its memory depends only on what is watched at a time; `on_event` gets every event when it is concluded.

    Without settings it uses the recorded policies; if the recording has none (`has_policies`), the defaults.
    """

    def __init__(
        self, settings: Settings | None, on_event: Callable[[SubjectEvent], None], only: str | None = None
    ) -> None:
        self.has_policies = settings is not None
        """Whether policies were given or recorded."""
        self.samples = 0
        self.implausible = 0
        """Samples that the sample checks rejected."""
        self.first: Now | None = None
        self._longest_interval = 0.0
        self.events: Counter[str] = Counter()
        """Events by type."""
        self.removed_time_in: defaultdict[str, float] = defaultdict(float)
        """Seconds in each status of the subjects that were removed."""
        self._on_event, self._only, self._as_recorded = on_event, only, settings is None
        self._clock = _RecordedTime()
        self._ticked = 0.0
        self._effects: deque[Effect] = deque()
        self._performing = False
        self._set_up(settings or Settings())

    def _set_up(self, settings: Settings) -> None:
        self._settings = settings
        watch = [WatchEntry(entry.stream, entry.consumers) for entry in settings.watch]
        policies = ActivePolicies(settings.policies, settings.policy_guard, settings.trust_consumer_metadata)
        self._registry = SubjectRegistry(settings, self._clock, policies, "replay", self._perform)
        self._intake = Intake(
            self._registry, self._clock, watch, Names(settings.name).ours, self._count, self._is_chosen
        )
        self._read_at: dict[str, float] = {}

    @property
    def now(self) -> Now:
        return self._clock.at

    def time_in(self) -> dict[str, Mapping[str, float]]:
        """Seconds each subject spent in each status."""
        return {subject: self._registry.time_in(subject, self.now) for subject in self._registry.subjects}

    def process(self, observation: Observation, longest_interval: float = 0.0) -> None:
        """Evaluate the next observation, and the time before it. `longest_interval`: seconds that were planned between
        two readings; they make nothing stale."""
        self._longest_interval = max(longest_interval, self._settings.observe.max_interval_ms / 1000)
        if isinstance(observation, PoliciesDecoded):
            if self._as_recorded:
                self._use_policies(observation)
            return
        self._advance(observation.at)
        match observation:
            case ReadingDecoded():
                self._reading(observation)
            case SampleDecoded():
                if stream := self._registry.streams.get(observation.sample.key.stream):
                    self._intake.remove_uncounted_members(
                        stream,
                        ReadState({observation.sample.key: self._sample(stream, observation.sample, early=True)}),
                    )
            case StreamAbsenceDecoded():
                if stream := self._registry.streams.get(observation.stream):
                    self._intake.remove_uncounted_members(stream, ReadState({}, complete=True))
                    if not self._registry.members.of_stream(observation.stream):
                        del self._registry.streams[observation.stream], self._read_at[observation.stream]
            case HintsDecoded():
                self._hint(observation)

    def _use_policies(self, observation: PoliciesDecoded) -> None:
        """Use these policies from this moment on."""
        self.has_policies = True
        if self.first is None:
            observe = Observe(
                stale_after_seconds=observation.scope.stale_after, unknown_after_seconds=observation.scope.unknown_after
            )
            self._set_up(Settings(name=observation.name, observe=observe))
        else:
            self._advance(observation.at)
        self._intake.watch = list(observation.scope.watch)
        self._registry.policies.restore(observation.sources)
        for subject in tuple(self._registry.subjects):
            self._registry.apply_policies(subject)

    def _advance(self, to: Now) -> None:
        """Advance the clock, with a check every TICK."""
        if self.first is None:
            self.first, self._ticked, self._clock.at = to, to.mono, to
        while (left := int((to.mono - self._ticked) / TICK)) > 0:
            gap = TimeGap(self._registry, self._ticked, to)
            step = 1 if left == 1 else gap.uniform_ticks(left)
            change = 1 if left == 1 else gap.first_change(step)
            self._clock.at = gap.at(change or step)
            self._ticked = self.now.mono
            if change:
                self._registry.tick()
        if to.mono > self.now.mono:
            self._clock.at = to

    def _reading(self, observation: ReadingDecoded) -> None:
        """One reading of a stream; what the recording left out may have been read in between."""
        name, at = observation.look.name, observation.at.mono
        if not self._intake.watches(name):
            return
        stream = self._registry.streams.setdefault(name, FollowedStream(observation.look, at))
        stream.look = observation.look
        if not observation.partial:
            stream.interval = min(at - self._read_at.get(name, -math.inf), self._longest_interval)
            self._read_at[name] = at
        under = {sample.key: self._sample(stream, sample) for sample in observation.samples}
        if observation.partial:
            self._intake.remove_uncounted_members(stream, ReadState(under))
            return
        names = frozenset(observation.unread).union(key.consumer for key in under)
        stream.whole = WholeList(observation.look, names) if observation.whole and not observation.hidden else None
        self._intake.remove_uncounted_members(stream, ReadState(under, observation.unread, observation.whole))

    def _sample(self, stream: FollowedStream, sample: Sample, *, early: bool = False) -> tuple[str, ...]:
        members_of = self._registry.members.of_stream(stream.look.name).get(sample.key, ())
        under = self._intake.sample(stream, sample, members_of, early=early)
        self.samples += bool(under)
        return under

    def _is_chosen(self, subject: str) -> bool:
        return self._only is None or covers(self._only, subject)

    def _count(self, what: Occurrence, key: ConsumerKey, why: object) -> None:
        self.implausible += what == "sample.set_aside"

    def _hint(self, hints: HintsDecoded) -> None:
        key, at = hints.key, hints.at
        for seconds, deliveries, times in hints.acks:
            self._intake.hint(AckSeen(key, seconds, deliveries, at, times), at)
        if hints.naks:
            self._intake.hint(Nak(key, hints.naks), at)
        if hints.dropped:
            self._intake.hint(Terminated(key, hints.dropped), at)

    def _perform(self, effects: Sequence[Effect]) -> None:
        """Perform the effects in order; each one succeeds."""
        self._effects += effects
        if self._performing:
            return
        self._performing = True
        while self._effects:
            effect = self._effects.popleft()
            self._registry.feed(effect.subject, self._outcome(effect))
        self._performing = False

    def _outcome(self, effect: Effect) -> Input:
        match effect:
            case WriteRecord(subject, writing):
                return WriteDone(writing.nonce, self._registry.subjects[subject].revision + 1)
            case PublishEvent(_, event):
                self.events[event.type.value] += 1
                self._on_event(event)
                return EventSent(event.id)
            case RemoveKey(subject):
                for word, seconds in self._registry.time_in(subject, self.now).items():
                    self.removed_time_in[word] += seconds
                return KeyRemoved()
            case _:
                return RecordCreated("replay")
