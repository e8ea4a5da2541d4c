"""The observing loops: find the streams, read each at its own pace, and hand on what was read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence

import structlog

from nats_backpressure.core import read_plan, watch_filter
from nats_backpressure.core.model import Sample, StreamLook
from nats_backpressure.core.read_plan import Budget
from nats_backpressure.core.signals.message_age import MessageAges
from nats_backpressure.core.signals.tracker import ConsumerTracker
from nats_backpressure.core.subject import membership
from nats_backpressure.core.subject.inputs import ConsumerLeft, ConsumerRead, PolicyRefused
from nats_backpressure.core.subject.membership import NOTHING_READ, Membership, ReadState
from nats_backpressure.core.watch_filter import WatchEntry
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.schema import Rejection
from nats_backpressure.protocol.patterns import overlap
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.observations import (
    AckSeen,
    ApiLimited,
    ConsumerChanged,
    ConsumerGone,
    ConsumersReading,
    Hint,
    MaxDeliveries,
    Nak,
    StreamChanged,
    StreamGone,
    StreamsReading,
    Terminated,
    Unavailable,
)
from nats_backpressure.runtime.ports import Clock, Observer
from nats_backpressure.runtime.subjects import SubjectRegistry
from nats_backpressure.runtime.tasks import Once, sleep_until

log = structlog.get_logger()

DISCOVER_EVERY = 1.0
"""Seconds between two looks at the list of streams."""
ROUND_WITHIN = 5.0
"""Seconds for reading or trying every stream, at the start and after an outage, before what is known is answered."""
WITHOUT_PAUSE = 50
"""Samples judged in one go (some 2 ms); then whoever waits for an answer has a turn."""
SHORTEST_SLEEP = 0.001
"""Seconds between two readings of a stream, however late the next one is."""
SINGLY_LIMIT = 64
"""Members of which a list says nothing that are read one by one after it; the others wait for the next round."""
FROM_MEMORY = 100
"""Streams followed at a time that only the store knows; each takes two answers to be found gone."""


class StreamPoll:
    """One stream being followed."""

    def __init__(self, look: StreamLook, now: float) -> None:
        self.look = look
        self.under: dict[ConsumerKey, tuple[str, ...]] = {}
        """Consumers that were read, with the subjects they count under."""
        self.absent: dict[ConsumerKey, float] = {}
        self.silent: frozenset[ConsumerKey] = frozenset()
        """Members of which the last reading said nothing."""
        self.singly: asyncio.Task[None] | None = None
        """Reads them one by one, beside the list."""
        self.turn = 0
        """Where among them the next round begins."""
        self.interval = 0.0
        """Seconds between two readings, as planned; an outage does not stretch it."""
        self.retry = 0.0
        """Seconds until the next try while it cannot be read; 0 while it can."""
        self.next = now
        self.seen = False
        """Whether it was ever read."""
        self.whole = False
        """Whether the last reading showed every consumer there is: who is new in the next one has appeared."""
        self.ages = MessageAges()
        self.wake = asyncio.Event()


class Poller:
    """Follows every watched stream. `complete` is set once each was read or tried, after ROUND_WITHIN at most.

    `swept_at` is when the newest reading of any stream came. At the start, and when readings come again after an
    outage, it waits until each was read or tried: who takes it for proof of all the others must not be misled.
    """

    def __init__(
        self,
        observer: Observer,
        clock: Clock,
        ledger: SubjectRegistry,
        rules: ActivePolicies,
        budget: Budget,
        watch: Sequence[WatchEntry],
        ours: Collection[str],
        *,
        stale_after: float,
        count: Callable[[str], None],
        on_streams: Callable[[StreamsReading], None],
        on_read: Callable[[float], None],
    ) -> None:
        self.lanes: dict[str, StreamPoll] = {}
        self.swept_at: float | None = None
        self._observer, self._clock, self._ledger, self._rules = observer, clock, ledger, rules
        self._budget, self._watch, self._ours = budget, watch, ours
        self._count, self._on_streams, self._on_read = count, on_streams, on_read
        self._tracks: dict[ConsumerKey, ConsumerTracker] = {}
        self._origins: dict[str, tuple[str, ...]] = {}
        """The subjects of every stream: a mirror's are those of its origin."""
        self._logged = Once()
        self._tasks: asyncio.TaskGroup | None = None
        self._discover = asyncio.Event()
        self._listed = False
        """Whether all streams there are were seen in one list."""
        self._read_at: float | None = None
        self._stale_after = stale_after
        self._round = 0
        self._untried: set[str] | None = None
        """Streams of the round under way that were not tried in it yet; None while there is none."""
        self.began_at: float | None = None
        """Monotonic time at which the first list of streams was answered."""
        self._limited_until = 0.0
        self.complete = asyncio.Event()

    async def run(self) -> None:
        """Discover streams for as long as it is let; each stream has a task of its own, so that none delays another."""
        async with asyncio.TaskGroup() as lanes:
            self._tasks = lanes
            while True:
                self._discover.clear()
                try:
                    reading = await self._observer.streams()
                except Unavailable as error:
                    self._count("sweep_unavailable")
                    log.debug("streams.unavailable", error=str(error))
                else:
                    self._on_streams(reading)
                    for lane in self.discover(reading):
                        lanes.create_task(self._follow(lane), name=f"follow {lane.look.name}")
                await sleep_until(self._discover, self._clock, DISCOVER_EVERY)

    def discover(self, reading: StreamsReading) -> list[StreamPoll]:
        """Take in a list of streams; those that are new, each to be followed."""
        self._origins = {look.name: look.subjects for look in reading.looks}
        self._listed = self._listed or reading.complete
        if self.began_at is None:
            self.began_at = self._clock.now().mono
            self._begin_round()
        found = [StreamPoll(look, self._clock.now().mono) for look in self._new(reading)]
        self.lanes |= {lane.look.name: lane for lane in found}
        if self._untried is not None:
            self._untried |= {lane.look.name for lane in found}
        if not self.lanes:  # the list is all there is to be read
            self._was_read()
        self._tried("")
        return found

    def hint(self, hint: Hint) -> None:
        """An advisory or ack metric came: it may hasten a reading, and never decides alone."""
        now = self._clock.now()
        match hint:
            case StreamChanged():
                self._discover.set()
            case ConsumerChanged():
                if lane := self.lanes.get(hint.key.stream):
                    lane.wake.set()
            case ApiLimited():
                self._limited_until = now.mono + read_plan.LIMITED_FOR
            case AckSeen() | Nak() | MaxDeliveries() | Terminated() if track := self._tracks.get(hint.key):
                match hint:
                    case AckSeen():
                        track.ack_seen(hint.seconds, hint.deliveries, now)
                    case Nak():
                        track.nak_seen(now)
                    case MaxDeliveries() | Terminated():
                        track.dropped_seen(now)

    def interval(self, stream: str) -> float:
        """Seconds between two readings of a stream, as planned now."""
        lane = self.lanes.get(stream)
        return lane.interval if lane else self._budget.min_interval

    def _new(self, reading: StreamsReading) -> list[StreamLook]:
        for entry in self._watch:
            exists = "*" in entry.stream or any(look.name == entry.stream for look in reading.looks)
            if reading.complete and not exists and self._logged.first(entry):
                log.warning(
                    "watch.stream_missing", stream=entry.stream, hint="it is awaited; check `watch` in the config"
                )
        listed = {look.name: look for look in reading.looks}
        looks = {name: look for name, look in listed.items() if self._chosen(name)}
        # A stream of which members are remembered is followed too: that is how they are found not to count any more.
        for name in sorted(self._ledger.streams() - looks.keys())[:FROM_MEMORY]:
            looks[name] = listed.get(name) or StreamLook(name, "", 0, 0, 0)
        return [look for name, look in looks.items() if name not in self.lanes]

    def _chosen(self, stream: str) -> bool:
        return watch_filter.is_stream_watched(stream, self._watch, self._ours)

    async def _follow(self, lane: StreamPoll) -> None:
        """Read one stream again and again, until it is gone for sure."""
        while True:
            lane.wake.clear()
            started = self._clock.now().mono
            if not await self.attempt(lane):
                return
            self._read_silent(lane)
            lane.next = max(self._clock.now().mono, started + (lane.retry or lane.interval))
            await sleep_until(lane.wake, self._clock, max(SHORTEST_SLEEP, lane.next - self._clock.now().mono))

    async def attempt(self, lane: StreamPoll) -> bool:
        """Read a stream, or learn that it cannot be read; False once there is nothing left in it to follow."""
        name = lane.look.name
        done = False
        try:
            await self.read(lane)
        except StreamGone:
            lane.retry = membership.GONE_AFTER / 2
            self._settle(lane, ReadState({}, complete=True))
            done = not self._members(lane)
        except Unavailable as error:
            self._count("sweep_unavailable")
            log.debug("consumers.unavailable", stream=name, error=str(error))
            self._settle(lane, NOTHING_READ)
            lane.retry = min(self._budget.max_interval, max(lane.retry * 2, self._budget.min_interval))
        else:
            lane.retry = 0.0
            done = not self._chosen(name) and not self._members(lane)
        if done:
            log.info("stream.gone", stream=name)
            del self.lanes[name]
        self._tried(name)
        return not done

    async def read(self, lane: StreamPoll) -> None:
        """One reading of a stream, and all that follows from it. Raises StreamGone and Unavailable."""
        reading = await self._observer.consumers(lane.look.name)
        self._on_read(reading.took)
        self._was_read()
        lane.look, lane.seen = reading.look, True
        members = self._members(lane)
        under: dict[ConsumerKey, tuple[str, ...]] = {}
        for n, sample in enumerate(reading.samples, start=1):
            under[sample.key] = self._sample(lane, sample, members.get(sample.key, ()))
            if n % WITHOUT_PAUSE == 0:
                await self._clock.sleep(0)
        lane.whole = reading.whole and not reading.unread
        lane.silent = self._settle(lane, ReadState(under, reading.unread, reading.whole)).unread
        lane.interval = self._paced(lane, reading)

    def _paced(self, lane: StreamPoll, reading: ConsumersReading) -> float:
        if not lane.under:
            return self._budget.max_interval
        followed = sum(bool(other.under) for other in self.lanes.values())
        requests = 1 + -(-max(1, len(reading.samples)) // 256)
        limited = self._clock.now().mono < self._limited_until
        whole = reading.complete and not reading.missing
        return read_plan.read_interval(self._budget, followed, requests, reading.took, whole, limited)

    def _sample(
        self, lane: StreamPoll, sample: Sample, members_of: Collection[str], *, early: bool = False
    ) -> tuple[str, ...]:
        """Take one consumer in; the subjects it counts under. `members_of`: those it is a member of already; `early`:
        the stream was looked at before the sample."""
        key = sample.key
        own = lane.look.subjects or self._origins.get(lane.look.origin or "", ())
        subjects = watch_filter.counted_subjects(key, sample.config, own, self._watch, self._ours)
        if isinstance(subjects, str):
            if self._logged.first(key):
                log.warning("consumer.not_watched", stream=key.stream, consumer=key.consumer, because=subjects)
                self._count("consumer_not_watched")
            subjects = ()
        if not subjects:
            self._drop(lane, key)
            return ()
        ruled, refused = self._rules.set_metadata(key, sample.config.metadata, subjects)
        for subject in subjects:
            if subject not in members_of or subject not in lane.under.get(key, ()):
                self._ledger.join(subject, key)
        lane.under[key] = subjects
        for subject in subjects:
            if ruled:
                self._ledger.rule(subject)
            if refused is not None:
                self._refuse(key, subject, refused)
        if (track := self._tracks.get(key)) is None:
            carried = self._ledger.carried(key, subjects)
            track = self._tracks[key] = ConsumerTracker(appeared=lane.whole, ages=lane.ages, carried=carried)
        reading = track.add_sample(sample, lane.look, early=early)
        if isinstance(reading, str):
            self._count("sample_set_aside")
            log.debug("sample.set_aside", stream=key.stream, consumer=key.consumer, because=reading)
            return subjects
        for subject in subjects:
            self._ledger.feed(subject, ConsumerRead(reading))
        return subjects

    def _refuse(self, key: ConsumerKey, subject: str, refused: Rejection) -> None:
        self._count("policy_rejected")
        log.warning("policy.rejected", stream=key.stream, consumer=key.consumer, errors=refused.errors)
        self._ledger.feed(subject, PolicyRefused(refused))

    def _members(self, lane: StreamPoll) -> dict[ConsumerKey, list[str]]:
        """The members of a stream with their subjects, those that are only remembered among them."""
        found: dict[ConsumerKey, list[str]] = {}
        for key, subject in self._ledger.members(lane.look.name):
            found.setdefault(key, []).append(subject)
        return found

    def _settle(self, lane: StreamPoll, shown: ReadState) -> Membership:
        """Take out members that do not count any more, those that are only remembered too."""
        members = self._members(lane)
        pairs = [(key, subject) for key, subjects in members.items() for subject in subjects]
        found = membership.membership(pairs, shown, self._watch, self._ours)
        for key, subject in found.removed:
            log.info("consumer.out", stream=key.stream, consumer=key.consumer, subject=subject)
            self._ledger.feed(subject, ConsumerLeft(key, exists=True))
        there = [key for key in members if key in shown.subjects_of or key.consumer in shown.unread]
        self._absent(lane, found.absent, there, members)
        return found

    def _absent(
        self,
        lane: StreamPoll,
        absent: Collection[ConsumerKey],
        there: Collection[ConsumerKey],
        members: Mapping[ConsumerKey, Sequence[str]],
    ) -> None:
        """Take out those that are gone for sure."""
        lane.absent, gone = membership.confirmed_gone(lane.absent, absent, there, self._clock.now().mono)
        for key in gone:
            log.info("consumer.gone", stream=key.stream, consumer=key.consumer)
            for subject in members[key]:
                self._ledger.feed(subject, ConsumerLeft(key))
            self._drop(lane, key)

    def _drop(self, lane: StreamPoll, key: ConsumerKey) -> None:
        lane.under.pop(key, None)
        self._tracks.pop(key, None)
        self._rules.forget(key)

    def _read_silent(self, lane: StreamPoll) -> None:
        """Have read one by one, beside the list, what it said nothing of: a node is down, or more came meanwhile."""
        if lane.retry or not lane.silent or self._tasks is None or (lane.singly is not None and not lane.singly.done()):
            return
        silent = sorted(lane.silent)
        start = lane.turn % len(silent)
        chosen = (silent[start:] + silent[:start])[:SINGLY_LIMIT]
        lane.turn = start + len(chosen)
        lane.singly = self._tasks.create_task(self.read_singly(lane, chosen), name=f"read singly {lane.look.name}")

    async def read_singly(self, lane: StreamPoll, chosen: Sequence[ConsumerKey]) -> None:
        """Ask about each of them; what a list that came meanwhile shows is newer."""
        for key in chosen:
            try:
                sample = await self._observer.consumer(key)
            except ConsumerGone:
                members = self._members(lane)
                if key in lane.silent and key in members:
                    self._absent(lane, [key], (), members)
            except (Unavailable, StreamGone):
                self._count("sweep_unavailable")
            else:
                if key in lane.silent:
                    under = self._sample(lane, sample, self._members(lane).get(key, ()), early=True)
                    self._settle(lane, ReadState({key: under}))

    def _begin_round(self) -> None:
        """Every stream is to be read or tried before `swept_at` moves on."""
        self._round += 1
        self._untried = set(self.lanes)
        if self._tasks is not None:
            self._tasks.create_task(self._time_out(self._round), name="time out the round")
        for lane in self.lanes.values():
            if lane.retry:
                lane.wake.set()

    def _tried(self, stream: str) -> None:
        if self._untried is not None:
            self._untried.discard(stream)
            if self._listed and not self._untried:
                self._end_round(self._round)

    async def _time_out(self, number: int) -> None:
        await self._clock.sleep(ROUND_WITHIN)
        self._end_round(number)

    def _end_round(self, number: int) -> None:
        if self._untried is None or number != self._round:
            return
        self._untried, self.swept_at = None, self._read_at
        self.complete.set()

    def _was_read(self) -> None:
        now, last = self._clock.now().mono, self._read_at
        self._read_at = now
        if self._untried is None and last is not None and now - last >= self._outage():
            self._begin_round()
        if self._untried is None and self.complete.is_set():
            self.swept_at = now

    def _outage(self) -> float:
        """Seconds without a reading of any stream that are an outage of all."""
        intervals = [lane.interval for lane in self.lanes.values() if lane.under]
        return max(self._stale_after, 3 * min(intervals, default=self._budget.max_interval))

    def unread(self, subject: str) -> bool:
        """Whether somebody may stand under a subject without our knowing it yet: a stream there was never read."""
        return not self._listed or any(
            not lane.seen and self._chosen(lane.look.name) and self._may_hold(lane.look, subject)
            for lane in tuple(self.lanes.values())
        )

    def _may_hold(self, look: StreamLook, subject: str) -> bool:
        subjects = look.subjects or self._origins.get(look.origin or "", ())
        return not subjects or any(overlap(pattern, subject) for pattern in subjects)
