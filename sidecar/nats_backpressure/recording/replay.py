"""Judges a recording again: what was observed goes through the same tracks, ledger and step as it does in service.

Time comes from the recording. Every act is answered at once, so what is told was concluded, whatever hindered its
telling then. What was done because of a verdict is in what was observed: another policy cannot make callers come back.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping

from msgspec import Struct, field

from nats_backpressure.config.settings import Observe, Settings
from nats_backpressure.core import watch_filter
from nats_backpressure.core.model import Event, Sample, StreamLook
from nats_backpressure.core.signals.message_age import MessageAges
from nats_backpressure.core.signals.tracker import ConsumerTracker
from nats_backpressure.core.subject import membership
from nats_backpressure.core.subject.inputs import (
    ConsumerLeft,
    ConsumerRead,
    Effect,
    EventSent,
    Input,
    KeyRemoved,
    LoadRecord,
    PolicyRefused,
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
from nats_backpressure.recording.decoder import HintsDecoded, Observation, Observed, SingleSample, StreamAbsent
from nats_backpressure.recording.policies import PoliciesChanged
from nats_backpressure.recording.time_gaps import TICK, TimeGaps
from nats_backpressure.runtime.subjects import SubjectRegistry


class _RecordedTime:
    def __init__(self) -> None:
        self.at = Now(0.0, 0.0)

    def now(self) -> Now:
        return self.at


class _ReplayedStream(Struct):
    """One stream as it was last read."""

    look: StreamLook
    read: float
    interval: float = 0.0
    whole: bool = False
    ages: MessageAges = field(default_factory=MessageAges)
    under: dict[ConsumerKey, tuple[str, ...]] = {}
    absent: dict[ConsumerKey, float] = {}


class Replay:
    """Bounded by what is watched at a time; `tell` hears of every event when it is concluded.

    Without settings it judges by the policies that were in force when it was recorded, as far as the recording holds
    them (`ruled`), and by the default ones where it does not.
    """

    def __init__(self, settings: Settings | None, tell: Callable[[Event], None], only: str | None = None) -> None:
        self.ruled = settings is not None
        """Whether it knows what to judge by."""
        self.samples = 0
        self.set_aside = 0
        self.first: Now | None = None
        self._longest = 0.0
        self.told: Counter[str] = Counter()
        """Events by type."""
        self.forgotten: defaultdict[str, float] = defaultdict(float)
        """Seconds in each status of the subjects that went."""
        self._tell, self._only, self._as_recorded = tell, only, settings is None
        self._clock = _RecordedTime()
        self._ticked = 0.0
        self._acts: deque[Effect] = deque()
        self._lanes: dict[str, _ReplayedStream] = {}
        self._tracks: dict[ConsumerKey, ConsumerTracker] = {}
        self._set_up(settings or Settings())

    def _set_up(self, settings: Settings) -> None:
        self._settings = settings
        self._watch = [WatchEntry(entry.stream, entry.consumers) for entry in settings.watch]
        self._ours = Names(settings.name).ours
        self._rules = ActivePolicies(settings.policies, settings.policy_guard, settings.trust_consumer_metadata)
        self._ledger = SubjectRegistry(
            self._clock, settings.observe, self._rules, "replay", self._acts.append, self._interval
        )

    @property
    def now(self) -> Now:
        return self._clock.at

    def time_in(self) -> dict[str, Mapping[str, float]]:
        """Seconds each subject spent in each status."""
        return {subject: self._ledger.time_in(subject, self.now) for subject in self._ledger.states}

    def take(self, seen: Observation, longest_interval: float = 0.0) -> None:
        """The next thing that was observed, after the time that passed until then. `longest_interval`: seconds that
        were let pass between two readings; they make nothing stale."""
        self._longest = max(longest_interval, self._settings.observe.max_interval_ms / 1000)
        if isinstance(seen, PoliciesChanged):
            if self._as_recorded:
                self._rule(seen)
            return
        self._pass(seen.at)
        match seen:
            case Observed():
                self._reading(seen)
            case SingleSample():
                if lane := self._lanes.get(seen.sample.key.stream):
                    key = seen.sample.key
                    self._settle(lane, ReadState({key: self._sample(lane, seen.sample, early=True)}))
            case StreamAbsent():
                if lane := self._lanes.get(seen.stream):
                    self._settle(lane, ReadState({}, complete=True))
                    if not lane.under:
                        del self._lanes[seen.stream]
            case HintsDecoded():
                self._hear(seen)

    def _rule(self, seen: PoliciesChanged) -> None:
        """Judge by what was in force from then on."""
        self.ruled = True
        if self.first is None:
            observe = Observe(
                stale_after_seconds=seen.scope.stale_after, unknown_after_seconds=seen.scope.unknown_after
            )
            self._set_up(Settings(name=seen.name, observe=observe))
        else:
            self._pass(seen.at)
        self._watch = list(seen.scope.watch)
        self._rules.restore(seen.sources)
        for subject in tuple(self._ledger.states):
            self._ledger.rule(subject)
            self._answer()

    def _pass(self, to: Now) -> None:
        """Let time pass, with a look every TICK."""
        if self.first is None:
            self.first, self._ticked, self._clock.at = to, to.mono, to
        while (left := int((to.mono - self._ticked) / TICK)) > 0:
            ticks = TimeGaps(self._ledger, self._ticked, to)
            step = 1 if left == 1 else ticks.alike(left)
            due = 1 if left == 1 else ticks.due(step)
            self._clock.at = ticks.at(due or step)
            self._ticked = self.now.mono
            if due:
                self._ledger.tick()
                self._answer()
        if to.mono > self.now.mono:
            self._clock.at = to

    def _reading(self, seen: Observed) -> None:
        name = seen.look.name
        if not watch_filter.is_stream_watched(name, self._watch, self._ours):
            return
        lane = self._lanes.setdefault(name, _ReplayedStream(seen.look, seen.at.mono - self._longest))
        lane.interval, lane.read = seen.at.mono - lane.read, seen.at.mono
        lane.look = seen.look
        under = {sample.key: self._sample(lane, sample) for sample in seen.samples}
        lane.whole = seen.whole and not seen.hidden
        self._settle(lane, ReadState(under, seen.unread, seen.whole))

    def _sample(self, lane: _ReplayedStream, sample: Sample, *, early: bool = False) -> tuple[str, ...]:
        """Take one consumer in; the subjects it counts under."""
        key = sample.key
        found = watch_filter.counted_subjects(key, sample.config, lane.look.subjects, self._watch, self._ours)
        subjects = () if isinstance(found, str) else tuple(filter(self._asked, found))
        if not subjects:
            self._drop(lane, key)
            return ()
        ruled, refused = self._rules.set_metadata(key, sample.config.metadata, subjects)
        for subject in subjects:
            if subject not in lane.under.get(key, ()):
                self._ledger.join(subject, key)
                self._answer()
        lane.under[key] = subjects
        for subject in subjects:
            if ruled:
                self._ledger.rule(subject)
                self._answer()
            if refused is not None:
                self._feed(subject, PolicyRefused(refused))
        self.samples += 1
        if (track := self._tracks.get(key)) is None:
            track = self._tracks[key] = ConsumerTracker(appeared=lane.whole, ages=lane.ages)
        reading = track.add_sample(sample, lane.look, early=early)
        if isinstance(reading, str):
            self.set_aside += 1
            return subjects
        for subject in subjects:
            self._feed(subject, ConsumerRead(reading))
        return subjects

    def _asked(self, subject: str) -> bool:
        return self._only is None or covers(self._only, subject)

    def _settle(self, lane: _ReplayedStream, shown: ReadState) -> None:
        """Take out members that do not count any more."""
        members: dict[ConsumerKey, list[str]] = {}
        for key, subject in self._ledger.members(lane.look.name):
            members.setdefault(key, []).append(subject)
        pairs = [(key, subject) for key, subjects in members.items() for subject in subjects]
        found = membership.membership(pairs, shown, self._watch, self._ours)
        for key, subject in found.removed:
            self._feed(subject, ConsumerLeft(key, exists=True))
        there = [key for key in members if key in shown.subjects_of or key.consumer in shown.unread]
        lane.absent, gone = membership.confirmed_gone(lane.absent, found.absent, there, self.now.mono)
        for key in gone:
            for subject in members[key]:
                self._feed(subject, ConsumerLeft(key))
            self._drop(lane, key)

    def _drop(self, lane: _ReplayedStream, key: ConsumerKey) -> None:
        lane.under.pop(key, None)
        self._tracks.pop(key, None)
        self._rules.forget(key)

    def _hear(self, heard: HintsDecoded) -> None:
        if (track := self._tracks.get(heard.key)) is None:
            return
        for seconds, deliveries, times in heard.acks:
            for _ in range(times):
                track.ack_seen(seconds, deliveries, heard.at)
        for _ in range(heard.naks):
            track.nak_seen(heard.at)
        for _ in range(heard.dropped):
            track.dropped_seen(heard.at)

    def _interval(self, subject: str) -> float:
        """Seconds between two readings, as far as the recording tells: what it left out may have come in between."""
        state = self._ledger.states.get(subject)
        streams = {key.stream for key in state.members} if state else ()
        found = max((self._lanes[stream].interval for stream in streams if stream in self._lanes), default=TICK)
        return min(found, self._longest)

    def _feed(self, subject: str, stimulus: Input) -> None:
        self._ledger.feed(subject, stimulus)
        self._answer()

    def _answer(self) -> None:
        """Do what is to be done, as if the world never failed."""
        while self._acts:
            act = self._acts.popleft()
            match act:
                case LoadRecord(subject):
                    self._ledger.feed(subject, RecordCreated("replay"))
                case WriteRecord(subject, writing):
                    revision = self._ledger.states[subject].revision + 1
                    self._ledger.feed(subject, WriteDone(writing.nonce, revision))
                case PublishEvent(subject, event):
                    self.told[event.type.value] += 1
                    self._tell(event)
                    self._ledger.feed(subject, EventSent(event.id))
                case RemoveKey(subject):
                    for word, seconds in self._ledger.time_in(subject, self.now).items():
                        self.forgotten[word] += seconds
                    self._ledger.feed(subject, KeyRemoved())
