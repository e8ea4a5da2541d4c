"""Takes each reading of a stream: updates members and policies of its subjects, and feeds the readings to the registry.

The poller and a replay both use it, so that both evaluate in the same way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Literal

import structlog
from msgspec import Struct

from nats_backpressure.core import watch_filter
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.model.samples import ConsumerConfig, Sample
from nats_backpressure.core.signals.tracker import ConsumerTracker
from nats_backpressure.core.subject import membership
from nats_backpressure.core.subject.inputs import ConsumerLeft, PolicyRefused
from nats_backpressure.core.subject.membership import Membership, ReadState
from nats_backpressure.core.subject.record import Record
from nats_backpressure.core.watch_filter import WatchEntry
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.followed_streams import FollowedStream
from nats_backpressure.runtime.observations import AckSeen, ConsumerHint, MaxDeliveries, Nak, Terminated
from nats_backpressure.runtime.ports import TimeSource
from nats_backpressure.runtime.subject_registry import SubjectRegistry
from nats_backpressure.runtime.tasks import Once

log = structlog.get_logger()

Occurrence = Literal[
    "consumer.not_watched",
    "policy.rejected",
    "policy.fields_ignored",
    "sample.set_aside",
    "consumer.out",
    "consumer.gone",
]
Report = Callable[[Occurrence, ConsumerKey, object], None]
"""Is called with what happened to a consumer, and why (or what it was taken out of)."""

FEW_MEMBERS = 8
"""Up to so many members of a subject, each reading is fed by itself."""
AT_ONCE, MOST_PARTS = 64, 8
"""Beyond that they are fed AT_ONCE together, or in MOST_PARTS parts where that is more, so that a reading of n members
costs O(n)."""


class _Counted(Struct, frozen=True, gc=False):
    """The subjects of a consumer, and what they depend on."""

    watch: Sequence[WatchEntry]
    config: ConsumerConfig
    own: tuple[str, ...]
    """The subjects of its stream."""
    subjects: tuple[str, ...]


class Intake:
    """Takes in samples, hints and absences, and feeds the registry.

    `chosen` narrows which subjects count at all.
    """

    def __init__(
        self,
        registry: SubjectRegistry,
        clock: TimeSource,
        watch: Sequence[WatchEntry],
        ours: Collection[str],
        report: Report,
        chosen: Callable[[str], bool] = lambda subject: True,
    ) -> None:
        self.registry, self.watch, self.ours = registry, watch, ours
        self._clock, self._report, self._chosen = clock, report, chosen
        self._trackers: dict[ConsumerKey, ConsumerTracker] = {}
        self._counted: dict[ConsumerKey, _Counted] = {}
        self._reported = Once()
        self._waiting: dict[str, list[tuple[Reading | None, Reading]]] = {}
        """Readings that are not fed yet, by subject; at most AT_ONCE of each, or one of MOST_PARTS of its members."""

    def watches(self, stream: str) -> bool:
        """Whether `watch` names the stream, and it is none of our own."""
        return watch_filter.is_stream_watched(stream, self.watch, self.ours)

    def sample(
        self, stream: FollowedStream, sample: Sample, members_of: Collection[str], *, early: bool = False
    ) -> tuple[str, ...]:
        """Take in what was read of one consumer; returns the subjects it counts under. `members_of`: those it is a
        member of already; `early`: the stream was looked at before the sample.

        Call `flush` after the last one of several: until then subjects with many members may miss some of them."""
        key = sample.key
        subjects = self._subjects(stream, sample)
        if not subjects:
            self._drop(stream, key)
            return ()
        self._join(stream, sample, subjects, members_of)
        tracker = self._tracker(stream, key, subjects)
        before, rest = tracker.reading, tracker.rest
        tracker.expect(self.registry.streams.planned(key))
        reports = self.registry.worker_reports(key, sample.at.mono)
        reading = tracker.add_sample(sample, stream.look, early=early, reports=reports)
        if isinstance(reading, str):
            self._report("sample.set_aside", key, reading)
            return subjects
        repeated = before if rest is not None and tracker.rest is rest else None
        for subject in subjects:
            self._feed(subject, (repeated, reading))
        return subjects

    def count_left_out(self, stream: FollowedStream, samples: Sequence[Sample]) -> None:
        """Count the consumers of a whole list that count under no subject."""
        keys = ((each.key, each.config) for each in samples if each.key not in stream.under)
        stream.left_out = dict(Counter(watch_filter.why_left_out(*each, self.watch, self.ours) for each in keys))

    def flush(self) -> None:
        """Feed the readings that wait for others of their subject."""
        waiting, self._waiting = self._waiting, {}
        for subject, readings in waiting.items():
            self.registry.feed_readings(subject, readings)

    def _feed(self, subject: str, reading: tuple[Reading | None, Reading]) -> None:
        """Feed a reading; where there are many members, as one change with those of others, since each change looks at
        all members."""
        members = len(self.registry.subjects[subject].members)
        if members <= FEW_MEMBERS:
            self.registry.feed_readings(subject, (reading,))
            return
        readings = self._waiting.setdefault(subject, [])
        readings.append(reading)
        if len(readings) >= max(AT_ONCE, members // MOST_PARTS):
            del self._waiting[subject]
            self.registry.feed_readings(subject, readings)

    def _join(
        self, stream: FollowedStream, sample: Sample, subjects: tuple[str, ...], members_of: Collection[str]
    ) -> None:
        """Make the consumer a member where it is none yet, with the policies that are in force for it."""
        key = sample.key
        changed, refused = self.registry.policies.set_metadata(key, sample.config.metadata, subjects)
        under = stream.under.get(key, ())
        for subject in subjects:
            if subject not in members_of or subject not in under:
                self.registry.join(subject, key)
        stream.under[key] = subjects
        for subject in subjects:
            if changed:
                self.registry.apply_policies(subject)
            if refused is not None:
                self._report(
                    "policy.fields_ignored" if refused.in_force else "policy.rejected", key, refused.rejection.errors
                )
                self.registry.feed(subject, PolicyRefused(refused.rejection))

    def remove_uncounted_members(self, stream: FollowedStream, shown: ReadState) -> Membership:
        """Take out members that do not count any more by what was shown, those that are only remembered too."""
        self.flush()
        members, subjects_of = self.registry.members.of_stream(stream.look.name), shown.subjects_of
        # Nearly all are members of what they count under: only the others are looked at.
        pairs = [(k, subject) for k, under in members.items() if subjects_of.get(k) != under for subject in under]
        after = membership.membership(pairs, shown, self.watch, self.ours)
        there = [k for k in stream.absent if k in members and (k in subjects_of or k.consumer in shown.unread)]
        for key, subject in after.removed:
            self._report("consumer.out", key, subject)
            self.registry.feed(subject, ConsumerLeft(key, exists=True))
        self.remove_gone_members(stream, after.absent, there, shown.asked_at)
        return after

    def remove_gone_members(
        self,
        stream: FollowedStream,
        absent: Collection[ConsumerKey],
        there: Collection[ConsumerKey] = (),
        asked_at: float | None = None,
    ) -> None:
        """Take out those of the absent that are gone for sure. `there`: those that exist; `asked_at`: see ReadState."""
        at = self._clock.now().mono if asked_at is None else asked_at
        stream.absent, gone = membership.confirmed_gone(stream.absent, absent, there, at)
        members = self.registry.members.of_stream(stream.look.name) if gone else {}
        for key in gone:
            self._report("consumer.gone", key, "")
            for subject in members.get(key, ()):
                self.registry.feed(subject, ConsumerLeft(key))
            self._drop(stream, key)

    def hint(self, hint: ConsumerHint, now: Now) -> None:
        """Count what was published about a consumer that is tracked; it decides nothing alone."""
        if (tracker := self._trackers.get(hint.key)) is None:
            return
        match hint:
            case AckSeen():
                tracker.expect(self.registry.streams.planned(hint.key))
                tracker.ack_seen(hint.seconds, hint.deliveries, now, hint.times)
            case Nak():
                tracker.nak_seen(now, hint.times)
            case MaxDeliveries() | Terminated():
                tracker.dropped_seen(now, hint.times)

    def take_stored(self, record: Record) -> None:
        """Another replica stored this: what it knows of messages handed back counts here too."""
        for key, carried in record.carried:
            if carried.handed_back and (tracker := self._trackers.get(key)) is not None:
                tracker.take_stored(carried)

    def _subjects(self, stream: FollowedStream, sample: Sample) -> tuple[str, ...]:
        """The subjects a consumer counts under; found again only when what they depend on has changed."""
        own, last = self.registry.streams.subjects_of(stream.look), self._counted.get(sample.key)
        if last is not None and last.watch is self.watch and last.config == sample.config and last.own == own:
            return last.subjects
        subjects = watch_filter.counted_subjects(sample.key, sample.config, own, self.watch, self.ours)
        if isinstance(subjects, str):
            if self._reported.first(sample.key):
                self._report("consumer.not_watched", sample.key, subjects)
            return ()
        if subjects := tuple(filter(self._chosen, subjects)):
            self._counted[sample.key] = _Counted(self.watch, sample.config, own, subjects)
        return subjects

    def _tracker(self, stream: FollowedStream, key: ConsumerKey, subjects: tuple[str, ...]) -> ConsumerTracker:
        if (tracker := self._trackers.get(key)) is None:
            carried = self.registry.carried(key, subjects)
            held = 0 if stream.whole is None else stream.whole.held_before(key.consumer, stream.look)
            tracker = self._trackers[key] = ConsumerTracker(held, stream.ages, carried)
        return tracker

    def _drop(self, stream: FollowedStream, key: ConsumerKey) -> None:
        stream.under.pop(key, None)
        self._trackers.pop(key, None)
        self._counted.pop(key, None)
        self.registry.policies.forget(key)


def log_and_count(dropped: Callable[[str], None]) -> Report:
    """The Report of the service: one line in the log each, and a counter for what operators alert on."""

    def report(what: Occurrence, key: ConsumerKey, why: object) -> None:
        place = {"stream": key.stream, "consumer": key.consumer}
        match what:
            case "consumer.not_watched":
                log.warning(what, **place, because=why)
                dropped("consumer_not_watched")
            case "policy.rejected":
                log.warning(what, **place, errors=why)
                dropped("policy_rejected")
            case "policy.fields_ignored":
                log.warning(what, **place, fields=why)
            case "sample.set_aside":
                log.debug(what, **place, because=why)
                dropped("sample_set_aside")
            case "consumer.out":
                log.info(what, **place, subject=why)
            case "consumer.gone":
                log.info(what, **place)

    return report
