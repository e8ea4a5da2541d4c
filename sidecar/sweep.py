"""The observing loops: find the streams, read each at its own pace, and hand on what was read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

import structlog

from sidecar.core import pace, roster
from sidecar.core.ages import Ages
from sidecar.core.model import ConsumerKey, Sample, StreamLook
from sidecar.core.pace import Budget
from sidecar.core.roster import Watch
from sidecar.core.signals import Track
from sidecar.core.state import Rejection
from sidecar.core.stimuli import Gone, Read, Refused
from sidecar.ledger import Ledger
from sidecar.observations import (
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
from sidecar.ports import Clock, Observer
from sidecar.rulebook import Rulebook

log = structlog.get_logger()

DISCOVER_EVERY = 1.0
"""Seconds between two looks at the list of streams."""
WITHOUT_PAUSE = 50
"""Samples judged in one go (some 2 ms); then whoever waits for an answer has a turn."""
SINGLY_LIMIT = 64
"""Members missing from a list that are read one by one in a sweep; the others wait for the next."""


class Lane:
    """One stream being followed."""

    def __init__(self, look: StreamLook, now: float) -> None:
        self.look = look
        self.under: dict[ConsumerKey, tuple[str, ...]] = {}
        self.absent: dict[ConsumerKey, float] = {}
        self.interval = 0.0
        self.next = now
        self.swept = False
        self.whole = False
        """Whether the last reading showed every consumer there is: who is new in the next one has appeared."""
        self.ages = Ages()
        self.wake = asyncio.Event()


class Sweep:
    """Follows every watched stream; `swept_at` is when the newest reading came, None until each was read once."""

    def __init__(
        self,
        observer: Observer,
        clock: Clock,
        ledger: Ledger,
        rules: Rulebook,
        budget: Budget,
        watch: Sequence[Watch],
        ours: Collection[str],
        *,
        count: Callable[[str], None],
        on_streams: Callable[[StreamsReading], None],
        on_read: Callable[[float], None],
    ) -> None:
        self.lanes: dict[str, Lane] = {}
        self.swept_at: float | None = None
        self._observer, self._clock, self._ledger, self._rules = observer, clock, ledger, rules
        self._budget, self._watch, self._ours = budget, watch, ours
        self._count, self._on_streams, self._on_read = count, on_streams, on_read
        self._tracks: dict[ConsumerKey, Track] = {}
        self._origins: dict[str, tuple[str, ...]] = {}
        """The subjects of every stream: a mirror's are those of its origin."""
        self._said: set[object] = set()
        self._discover = asyncio.Event()
        self._discovered = False
        self._read_at: float | None = None
        self._limited_until = 0.0
        self.complete = asyncio.Event()

    async def run(self) -> None:
        """Discover streams for as long as it is let; each stream has a task of its own, so that none delays another."""
        async with asyncio.TaskGroup() as lanes:
            while True:
                self._discover.clear()
                try:
                    reading = await self._observer.streams()
                except Unavailable as error:
                    self._count("sweep_unavailable")
                    log.debug("streams.unavailable", error=str(error))
                else:
                    self._on_streams(reading)
                    self._origins = {look.name: look.subjects for look in reading.looks}
                    for look in self._new(reading):
                        lane = self.lanes[look.name] = Lane(look, self._clock.now().mono)
                        lanes.create_task(self._follow(lane), name=f"follow {look.name}")
                    self._check_complete(discovered=reading.complete)
                await _woken(self._discover, DISCOVER_EVERY)

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
                self._limited_until = now.mono + pace.LIMITED_FOR
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
            if reading.complete and not exists and self._say_once(entry):
                log.warning(
                    "watch.stream_missing", stream=entry.stream, hint="it is awaited; check `watch` in the config"
                )
        # A stream that is known from the store alone is followed too: that is how its members are found to be gone.
        looks = {name: StreamLook(name, "", 0, 0, 0) for name in self._ledger.streams()} if reading.complete else {}
        looks |= {seen.name: seen for seen in reading.looks if roster.stream_chosen(seen.name, self._watch, self._ours)}
        return [look for name, look in looks.items() if name not in self.lanes]

    async def _follow(self, lane: Lane) -> None:
        """Read one stream again and again, until it is gone for sure."""
        name = lane.look.name
        while True:
            lane.wake.clear()
            started = self._clock.now().mono
            try:
                reading = await self._observer.consumers(name)
            except StreamGone:
                lane.swept = True
                if self._absent(lane, ()):
                    break
                lane.interval = roster.GONE_AFTER / 2
            except Unavailable as error:
                self._count("sweep_unavailable")
                log.debug("consumers.unavailable", stream=name, error=str(error))
                lane.interval = min(self._budget.max_interval, max(lane.interval * 2, self._budget.min_interval))
            else:
                await self._take(lane, reading)
                lane.interval = self._paced(lane, reading)
                await self._read_singly(lane, reading)
                lane.swept = True
            self._check_complete()
            lane.next = max(self._clock.now().mono, started + lane.interval)
            await _woken(lane.wake, lane.next - self._clock.now().mono)
        del self.lanes[name]
        self._check_complete()
        log.info("stream.gone", stream=name)

    def _paced(self, lane: Lane, reading: ConsumersReading) -> float:
        if not lane.under:
            return self._budget.max_interval
        followed = sum(bool(other.under) for other in self.lanes.values())
        requests = 1 + -(-max(1, len(reading.samples)) // 256)
        limited = self._clock.now().mono < self._limited_until
        whole = reading.complete and not reading.missing
        return pace.interval(self._budget, followed, requests, reading.took, whole, limited)

    async def _take(self, lane: Lane, reading: ConsumersReading) -> None:
        self._on_read(reading.took)
        self._read_at = self._clock.now().mono
        lane.look = reading.look
        for n, sample in enumerate(reading.samples, start=1):
            self._sample(lane, sample)
            if n % WITHOUT_PAUSE == 0:
                await asyncio.sleep(0)
        lane.whole = reading.complete and not reading.missing and not reading.malformed
        if lane.whole:
            self._absent(lane, {sample.key for sample in reading.samples})

    def _sample(self, lane: Lane, sample: Sample) -> None:
        key = sample.key
        if not roster.consumer_chosen(key, sample.config, self._watch, self._ours):
            return
        own = lane.look.subjects or self._origins.get(lane.look.origin or "", ())
        subjects = roster.subjects(sample.config, own)
        if isinstance(subjects, str):
            if self._say_once(key):
                log.warning("consumer.not_watched", stream=key.stream, consumer=key.consumer, because=subjects)
                self._count("consumer_not_watched")
            subjects = ()
        ruled, refused = self._rules.take_metadata(key, sample.config.metadata, subjects)
        self._enrol(lane, key, subjects)
        for subject in subjects:
            if ruled:
                self._ledger.rule(subject)
            if refused is not None:
                self._refuse(key, subject, refused)
        if not subjects:
            return
        if (track := self._tracks.get(key)) is None:
            carried = self._ledger.carried(key, subjects)
            track = self._tracks[key] = Track(appeared=lane.whole, ages=lane.ages, carried=carried)
        reading = track.take(sample, lane.look)
        if isinstance(reading, str):
            self._count("sample_set_aside")
            log.debug("sample.set_aside", stream=key.stream, consumer=key.consumer, because=reading)
            return
        for subject in subjects:
            self._ledger.feed(subject, Read(reading))

    def _refuse(self, key: ConsumerKey, subject: str, refused: Rejection) -> None:
        self._count("policy_rejected")
        log.warning("policy.rejected", stream=key.stream, consumer=key.consumer, errors=refused.errors)
        self._ledger.feed(subject, Refused(refused))

    def _enrol(self, lane: Lane, key: ConsumerKey, subjects: tuple[str, ...]) -> None:
        """Keep a consumer under the subjects it stands under now; its filter may have changed."""
        before = lane.under.get(key, ())
        if subjects == before:
            return
        for subject in subjects:
            if subject not in before:
                self._ledger.join(subject, key)
        for subject in before:
            if subject not in subjects:
                self._ledger.feed(subject, Gone(key))
        if subjects:
            lane.under[key] = subjects
        else:
            lane.under.pop(key, None)

    def _absent(self, lane: Lane, seen: Collection[ConsumerKey]) -> bool:
        """Take out members that two whole readings lacked, remembered ones too. True if none is left."""
        members: dict[ConsumerKey, list[str]] = {}
        for key, subject in self._ledger.members(lane.look.name):
            members.setdefault(key, []).append(subject)
        now = self._clock.now().mono
        lane.absent, gone = roster.absent(lane.absent, members, seen, now)
        for key in gone:
            log.info("consumer.gone", stream=key.stream, consumer=key.consumer)
            for subject in members[key]:
                self._ledger.feed(subject, Gone(key))
            lane.under.pop(key, None)
            self._tracks.pop(key, None)
            self._rules.forget(key)
        return len(gone) == len(members)

    async def _read_singly(self, lane: Lane, reading: ConsumersReading) -> None:
        """What a list lacks because a node is down can still be read one by one."""
        for name in reading.missing[:SINGLY_LIMIT]:
            key = ConsumerKey(lane.look.name, name)
            if key in lane.under:
                try:
                    self._sample(lane, await self._observer.consumer(key))
                except (Unavailable, ConsumerGone, StreamGone):
                    self._count("sweep_unavailable")

    def _check_complete(self, discovered: bool = False) -> None:
        self._discovered = self._discovered or discovered
        if self._discovered and all(lane.swept for lane in self.lanes.values()):
            self.swept_at = self._read_at if self._read_at is not None else self._clock.now().mono
            self.complete.set()

    def _say_once(self, what: object) -> bool:
        """True the first time; the set is bounded by forgetting all at 10,000."""
        if what in self._said:
            return False
        if len(self._said) >= 10_000:
            self._said.clear()
        self._said.add(what)
        return True


async def _woken(event: asyncio.Event, seconds: float) -> None:
    """Sleep, or until somebody wants us at once."""
    try:
        async with asyncio.timeout(max(0.001, seconds)):
            await event.wait()
    except TimeoutError:
        pass
