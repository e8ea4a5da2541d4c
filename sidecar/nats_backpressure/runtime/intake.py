"""Takes each reading of a stream: updates members and policies of its subjects, and feeds the readings to the registry.

The poller and a replay both use it, so that both evaluate in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal

import structlog

from nats_backpressure.core import watch_filter
from nats_backpressure.core.model.samples import Sample
from nats_backpressure.core.signals.tracker import ConsumerTracker
from nats_backpressure.core.subject import membership
from nats_backpressure.core.subject.inputs import ConsumerLeft, ConsumerRead, PolicyRefused
from nats_backpressure.core.subject.membership import Membership, ReadState
from nats_backpressure.core.watch_filter import WatchEntry
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.observations import AckSeen, MaxDeliveries, Nak, Terminated
from nats_backpressure.runtime.ports import TimeSource
from nats_backpressure.runtime.subject_registry import FollowedStream, SubjectRegistry
from nats_backpressure.runtime.tasks import Once

log = structlog.get_logger()

Occurrence = Literal["consumer.not_watched", "policy.rejected", "sample.set_aside", "consumer.out", "consumer.gone"]
Report = Callable[[Occurrence, ConsumerKey, object], None]
"""Is called with what happened to a consumer, and why (or what it was taken out of)."""
CONSUMER_HINTS = (AckSeen, Nak, MaxDeliveries, Terminated)
ConsumerHint = AckSeen | Nak | MaxDeliveries | Terminated


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
        self._reported = Once()

    def watches(self, stream: str) -> bool:
        """Whether `watch` names the stream, and it is none of our own."""
        return watch_filter.is_stream_watched(stream, self.watch, self.ours)

    def sample(
        self, stream: FollowedStream, sample: Sample, members_of: Collection[str], *, early: bool = False
    ) -> tuple[str, ...]:
        """Take in what was read of one consumer; returns the subjects it counts under. `members_of`: those it is a
        member of already; `early`: the stream was looked at before the sample."""
        key = sample.key
        subjects = self._subjects(stream, sample)
        if not subjects:
            self._drop(stream, key)
            return ()
        changed, refused = self.registry.policies.set_metadata(key, sample.config.metadata, subjects)
        for subject in subjects:
            if subject not in members_of or subject not in stream.under.get(key, ()):
                self.registry.join(subject, key)
        stream.under[key] = subjects
        for subject in subjects:
            if changed:
                self.registry.apply_policies(subject)
            if refused is not None:
                self._report("policy.rejected", key, refused.errors)
                self.registry.feed(subject, PolicyRefused(refused))
        reading = self._tracker(stream, key, subjects).add_sample(sample, stream.look, early=early)
        if isinstance(reading, str):
            self._report("sample.set_aside", key, reading)
            return subjects
        for subject in subjects:
            self.registry.feed(subject, ConsumerRead(reading))
        return subjects

    def remove_uncounted_members(self, stream: FollowedStream, shown: ReadState) -> Membership:
        """Take out members that do not count any more by what was shown, those that are only remembered too."""
        members = self.registry.members(stream.look.name)
        pairs = [(key, subject) for key, subjects in members.items() for subject in subjects]
        after = membership.membership(pairs, shown, self.watch, self.ours)
        for key, subject in after.removed:
            self._report("consumer.out", key, subject)
            self.registry.feed(subject, ConsumerLeft(key, exists=True))
        there = [key for key in members if key in shown.subjects_of or key.consumer in shown.unread]
        self.remove_gone_members(stream, after.absent, there)
        return after

    def remove_gone_members(
        self, stream: FollowedStream, absent: Collection[ConsumerKey], there: Collection[ConsumerKey] = ()
    ) -> None:
        """Take out those of the absent that are gone for sure; `there`: those that exist."""
        stream.absent, gone = membership.confirmed_gone(stream.absent, absent, there, self._clock.now().mono)
        members = self.registry.members(stream.look.name) if gone else {}
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
                tracker.ack_seen(hint.seconds, hint.deliveries, now)
            case Nak():
                tracker.nak_seen(now)
            case MaxDeliveries() | Terminated():
                tracker.dropped_seen(now)

    def _subjects(self, stream: FollowedStream, sample: Sample) -> tuple[str, ...]:
        """The subjects a consumer counts under by `watch` and its configuration."""
        own = self.registry.subjects_of(stream.look)
        subjects = watch_filter.counted_subjects(sample.key, sample.config, own, self.watch, self.ours)
        if isinstance(subjects, str):
            if self._reported.first(sample.key):
                self._report("consumer.not_watched", sample.key, subjects)
            return ()
        return tuple(filter(self._chosen, subjects))

    def _tracker(self, stream: FollowedStream, key: ConsumerKey, subjects: tuple[str, ...]) -> ConsumerTracker:
        if (tracker := self._trackers.get(key)) is None:
            carried = self.registry.carried(key, subjects)
            tracker = self._trackers[key] = ConsumerTracker(appeared=stream.whole, ages=stream.ages, carried=carried)
        return tracker

    def _drop(self, stream: FollowedStream, key: ConsumerKey) -> None:
        stream.under.pop(key, None)
        self._trackers.pop(key, None)
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
            case "sample.set_aside":
                log.debug(what, **place, because=why)
                dropped("sample_set_aside")
            case "consumer.out":
                log.info(what, **place, subject=why)
            case "consumer.gone":
                log.info(what, **place)

    return report
