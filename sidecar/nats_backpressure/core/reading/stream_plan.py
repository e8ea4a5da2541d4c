"""StreamPlan: which consumers of one stream may have crossed a mark, and when and how it is read next.

A look at a stream bounds all its consumers from above. What is pending can have grown by no more than the messages that
arrived since a look that was answered before the sample was asked for, and what is in flight by no more than that and
what was pending. So each consumer has a *crossing*: the last sequence of its stream from which on it may be above a
mark. The bounds hold for one incarnation and one configuration; every consumer is read at least every `max_interval`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Set

from msgspec import Struct

from nats_backpressure.core.model.proofs import StreamProof
from nats_backpressure.core.model.samples import Sample, StreamLook
from nats_backpressure.core.reading.budget import Budget, Level
from nats_backpressure.core.reading.due import NEVER, Due, order
from nats_backpressure.core.reading.load import Load
from nats_backpressure.protocol.values import ConsumerKey

SETTLE_SECONDS = 10.0
"""Seconds without any movement after which a consumer counts as idle: its rates and its diagnosis have settled then."""
MISSED_READINGS = 3
"""Longest intervals without a reading of the whole stream after which looks prove nothing more."""
PAGE = 256
"""Consumers in one page of a list."""
SINGLES_LIMIT = 64
"""Consumers read one by one in one reading; those not read for the longest time first."""
LIST_SECONDS, SINGLE_SECONDS = 18e-6, 56e-6
"""Server time for each member of a list, and for one consumer read by itself (measured, 2.15.1)."""
SLOW_LIST = 1.0
"""Seconds; a stream with a list this slow is listed at the longest interval (one dead node of three: 4 s per list)."""
DISORDER = 1.0
"""Seconds by which a look that another replica received may be older than it seems."""
JITTER = 0.1
"""The share by which a reading of a whole stream may come earlier, so that streams do not stay in step."""


class Base(Struct, frozen=True):
    """The newest look that was answered before a sample was asked for."""

    series: int
    """Looks of one series show the stream unmoved."""
    last_seq: float
    followed: bool = False
    """Whether another replica asked for the sample."""


class ConsumerPlan(Struct, gc=False):
    """What is planned for one consumer."""

    crossing: float
    """The last sequence of the stream from which on it may be above a mark."""
    active_at: float
    """Monotonic time at which it was last seen with anything pending or in flight, or first read."""
    read_at: float
    """Monotonic time at which its newest sample was asked for."""
    came_at: float
    """Monotonic time of the newest sample itself."""

    def is_newer(self, sample: Sample, asked_at: float) -> bool:
        """Whether its newest sample is newer than this one, which was asked for `asked_at`."""
        return self.read_at > asked_at or self.came_at > sample.at.mono


class StreamPlan:
    """What is planned for one stream. All times are monotonic; a look takes O(1) unless something may have crossed."""

    __slots__ = (
        "_began_at",
        "_crossing",
        "_look",
        "_moved_at",
        "_series",
        "answered",
        "born",
        "budget",
        "consumed",
        "consumers",
        "earlier",
        "earlier_at",
        "free_at",
        "hot",
        "idle",
        "jitter",
        "listed",
        "listed_seconds",
        "looked_at",
        "missing",
        "reached",
        "read_at",
        "retry",
        "single_seconds",
        "took_list",
        "took_some",
        "tried_at",
        "woken",
        "woken_at",
    )

    def __init__(self, budget: Budget, born: float = 0.0, consumed: bool = False) -> None:
        """`born`: when the stream was found; `consumed`: it has consumers, or members of it are stored."""
        self.budget, self.born, self.consumed = budget, born, consumed
        self.answered = False
        """Whether it was ever read."""
        self.consumers: dict[ConsumerKey, ConsumerPlan] = {}
        self.hot: set[ConsumerKey] = set()
        self.idle: set[ConsumerKey] = set()
        self.earlier: set[ConsumerKey] = set()
        """Those that were idle until the stream moved."""
        self.missing: set[ConsumerKey] = set()
        """Those that exist and do not answer: they are not planned until they are shown again."""
        self.earlier_at = self.looked_at = self._moved_at = -math.inf
        self._began_at = -math.inf
        """When the first sample was asked for, or the stream moved last before: nothing was seen to move until then."""
        self._look: StreamLook | None = None
        self._series = 0
        self._crossing = math.inf
        """No consumer that is not hot has a smaller crossing."""
        self.read_at = [-math.inf] * len(Level)
        """When the newest reading at each level began, or what counts as that."""
        self.reached = [0.0] * len(Level)
        """Seconds between two readings at each level, as it was lately; an outage does not count."""
        self.tried_at = self.free_at = -math.inf
        """When the last reading began, and from when on the server's share allows the next one."""
        self.retry = 0.0
        """Seconds from a failed try to the next one; 0 while the stream can be read."""
        self.woken: Level | None = None
        """Where something shows that its consumers changed: the level at whose interval it is listed once."""
        self.woken_at = -math.inf
        """When that was seen last."""
        self.took_list = self.took_some = 0.0
        """Seconds that the last list took, and the last reading of single consumers."""
        self.jitter = 0.0
        self.listed = 0
        """Consumers in the last list, those that are not watched among them."""
        self.listed_seconds = 0.0
        self.single_seconds = SINGLE_SECONDS

    # What was read

    @property
    def look(self) -> StreamLook | None:
        """The newest look."""
        return self._look

    @property
    def base(self) -> Base:
        """The newest look, for the samples that are asked for from now on."""
        return Base(self._series, -math.inf if self._look is None else self._look.last_seq)

    def base_of(self, look: StreamLook | None) -> Base:
        """The same for samples that another replica asked for after this look, None where it had none."""
        if look is None or self._look is None or look.created != self._look.created:
            return Base(-1, -math.inf, followed=True)
        return Base(self._series if is_unmoved(look, self._look) else -1, look.last_seq, followed=True)

    def is_older(self, look: StreamLook, at: float) -> bool:
        """Whether a look that another replica received `at` is older than the newest one: its times are not exact."""
        before = self._look
        if before is None or at > self.looked_at + DISORDER:
            return False
        if at < self.looked_at - DISORDER:
            return True
        return look.created == before.created and look.last_seq < before.last_seq

    def wake(self, level: Level, at: float) -> None:
        """Something shows that the consumers changed: list the stream once at the interval of this level."""
        self.woken = level if self.woken is None else min(self.woken, level)
        self.woken_at = at

    def add_look(self, look: StreamLook, at: float) -> bool:
        """Add a look that was answered `at`; returns whether more consumers may be above a mark now."""
        before = self._look
        if before is None or not is_unmoved(before, look):
            self._series += 1
            self._moved_at = at
            self._end_idleness(at)
        if before is not None and before.consumers != look.consumers:
            self.wake(Level.QUIET, at)
        self._look, self.looked_at = look, max(at, self.looked_at)
        self.consumed = self.consumed or look.consumers > 0
        if before is not None and (look.created != before.created or look.last_seq < before.last_seq):
            return self._heat(tuple(self.consumers), at)
        if look.last_seq < self._crossing:
            return False
        grew = self._heat([key for key, one in self.consumers.items() if one.crossing <= look.last_seq], at)
        cold = (one.crossing for key, one in self.consumers.items() if key not in self.hot)
        self._crossing = min(cold, default=math.inf)
        return grew

    def add_sample(self, sample: Sample, base: Base, room: float, asked_at: float) -> None:
        """Add a sample that was asked for after the look `base`; `room`: the headroom of the reading it gave."""
        key, still = sample.key, not sample.pending and not sample.inflight
        crossing = base.last_seq + room
        if not sample.config.filters and not sample.config.last_per_subject:
            # What it will have pending lies behind what was delivered last.
            crossing = max(crossing, sample.delivered_stream + sample.pending + room)
        self.missing.discard(key)
        before = self.consumers.get(key)
        active_at = before.active_at if before is not None and still else asked_at
        self.consumers[key] = ConsumerPlan(crossing, active_at, asked_at, sample.at.mono)
        settled = self._is_settled(max(active_at, self._moved_at), asked_at, base.followed)
        idle = still and settled and base.series == self._series
        if room <= 0 or (self._look is not None and self._look.last_seq >= crossing):
            self.hot.add(key)
            idle = False
        else:
            self.hot.discard(key)
            self._crossing = min(self._crossing, crossing)
        (self.idle.add if idle else self.idle.discard)(key)

    def _is_settled(self, moved_at: float, asked_at: float, followed: bool) -> bool:
        """Whether a consumer that is still has been so for long enough. A new replica has seen nothing move: while
        another one reads the stream for it, it does not read once more what is idle there."""
        if self._began_at == -math.inf:
            self._began_at = moved_at
        return asked_at - moved_at >= SETTLE_SECONDS or (followed and moved_at <= self._began_at)

    def heat(self, keys: Iterable[ConsumerKey], at: float) -> bool:
        """Something else than a sample may have moved these above a mark: their policy, or what is stored of them.
        Returns whether any is hot that was not."""
        known = [key for key in keys if key in self.consumers]
        self.idle.difference_update(known)
        return self._heat(known, at)

    def _heat(self, keys: Sequence[ConsumerKey], at: float) -> bool:
        if self.hot.issuperset(keys):
            return False
        if not self.hot:  # due at once
            self.read_at[Level.HOT] = at - self.budget.min_interval
            # Until it was read as one, its newest proof is as old as that of a quiet one may be.
            self.reached[Level.HOT] = max(self.reached[Level.HOT], self.reached[Level.QUIET])
        self.hot.update(keys)
        return True

    def forget(self, key: ConsumerKey) -> None:
        """The consumer does not count any more."""
        self.consumers.pop(key, None)
        for keys in (self.hot, self.idle, self.earlier, self.missing):
            keys.discard(key)

    def miss(self, key: ConsumerKey) -> None:
        """The consumer exists and does not answer."""
        self.forget(key)
        self.missing.add(key)

    def proof(self) -> StreamProof:
        """What the looks prove now."""
        return StreamProof(self.idle, self.looked_at, self.earlier, self.earlier_at)

    def expire(self, now: float, stretch: float = 1.0) -> None:
        """Looks prove nothing more once the whole stream was not read for MISSED_READINGS of its longest intervals:
        another incarnation or filter of a consumer may not show in them."""
        if now - self.read_at[Level.ALL] > MISSED_READINGS * self.budget.max_interval * stretch:
            self._end_idleness(now)

    def _end_idleness(self, at: float) -> None:
        if not self.idle:
            return
        if not self.quiet:  # these are the first: no reading of them is late
            self.read_at[Level.QUIET] = at
        self.earlier, self.earlier_at, self.idle = self.idle, self.looked_at, set()

    # What is planned

    @property
    def quiet(self) -> bool:
        """Whether a consumer is neither hot nor idle."""
        return len(self.consumers) > len(self.hot) + len(self.idle)

    @property
    def is_empty(self) -> bool:
        """Whether it was read, and no consumer of it counts."""
        return self.answered and not self.consumers and not self.missing

    @property
    def awaits_first_reading(self) -> bool:
        """Whether it has consumers, was never read, and no try failed."""
        return self.consumed and not self.answered and not self.retry

    @property
    def slow(self) -> bool:
        """Whether its list is so slow that a node must be down."""
        return self.listed_seconds >= SLOW_LIST

    @property
    def pages(self) -> int:
        return max(1, -(-self.listed // PAGE))

    def _levels(self) -> list[Level]:
        """The levels at which there is something to read."""
        return [*([Level.HOT] if self.hot else ()), *([Level.QUIET] if self.quiet else ()), Level.ALL]

    def interval(self, level: Level, load: Load) -> float:
        """Seconds between two readings at a level, as planned."""
        longest = self.budget.max_interval
        if level is not Level.ALL:
            return min(longest, self.budget.interval(level) * load.factor)
        if not self.answered:  # with consumers as late as one that is quiet, otherwise as one that rests
            return min(longest, self.budget.interval(Level.QUIET if self.consumed else Level.ALL) * load.factor)
        if self.woken is not None:
            return min(longest, self.budget.interval(self.woken) * load.factor)
        if self.is_empty:
            longest = max(longest, load.empty_interval)
        return longest * (1 - JITTER * self.jitter)

    def due(self, load: Load, listing: bool = False) -> Due:
        """The next reading; `listing`: a list is under way."""
        return min(self.dues(load, listing), key=order, default=NEVER)

    def dues(self, load: Load, listing: bool = False) -> list[Due]:
        """The next reading at each level where there is something to read."""
        levels = self._levels()
        if self.retry:
            return [Due(level, self.tried_at + self.retry, self.tried_at) for level in levels]
        if self.read_at[Level.ALL] == -math.inf and not listing:
            return [Due(Level.ALL, self.born, self.born - self.interval(Level.ALL, load))]
        if listing:
            levels.remove(Level.ALL)
        times = [(level, self.read_at[level], self.interval(level, load)) for level in levels]
        lateness = tuple((since, interval) for _, since, interval in times)
        return [Due(level, max(since + every, self.free_at), since, lateness) for level, since, every in times]

    def singles(self, level: Level) -> int:
        """How many consumers are best read one by one at this level; 0 if a list is cheaper, or needed."""
        n = len(self.hot) if level is Level.HOT else len(self.consumers) - len(self.idle)
        if level is Level.ALL or (n > SINGLES_LIMIT and not self.slow):
            return 0
        singly = self.budget.cost(n + 1, n * self.single_seconds)
        whole = self.budget.cost(self.pages + 1, max(self.listed_seconds, LIST_SECONDS * self.listed))
        return min(n, SINGLES_LIMIT) if singly < whole or self.slow else 0

    def names(self, level: Level, most: int) -> tuple[ConsumerKey, ...]:
        """The consumers to read at a level: `most`, and those that were not read for the longest time."""
        if level is Level.HOT:
            keys: Iterable[ConsumerKey] = self.hot
        else:
            keys = (key for key in self.consumers if key not in self.idle)
        return tuple(sorted(keys, key=lambda key: (self.consumers[key].read_at, key))[:most])

    def start(self, due: Due, now: float, load: Load) -> None:
        """A reading begins; it covers the levels below its own too."""
        self.tried_at = now
        if due.level is Level.ALL:
            self.woken = None
        for level in Level:
            if level > due.level:
                break
            late = max(0.0, now - max(due.at, self.read_at[level] + self.interval(level, load)))
            if not self.retry and late < math.inf and level in self._levels():
                self.reached[level] = max(self.interval(level, load) + late, self.reached[level] / 2)
            self.read_at[level] = now

    def took(self, level: Level) -> float:
        """Seconds that the last reading took of the kind in which this level is read."""
        return self.took_some if self.singles(level) else self.took_list

    def finish(self, took: float, jitter: float, *, partial: bool = False) -> None:
        """A reading was answered; `jitter`: a random number from 0 to 1."""
        self.retry, self.jitter, self.answered = 0.0, jitter, True
        self.free_at = self.tried_at + min(self.budget.max_interval, took / self.budget.server_share)
        self._measure(took, partial)

    def _measure(self, took: float, partial: bool) -> None:
        if partial:
            self.took_some = took
        else:
            self.took_list = took

    def covered(self, keys: Set[ConsumerKey] | None) -> list[Level]:
        """The levels that a reading of these consumers covers; None: of all there are."""
        if keys is None:
            return list(Level)
        # No reading of single ones shows more than SINGLES_LIMIT: more of them are listed, unless lists are slow.
        most = SINGLES_LIMIT if self.slow else len(self.consumers)
        levels = [Level.HOT] if len(keys & self.hot) >= min(len(self.hot), most) else []
        busy = min(len(self.consumers) - len(self.idle), most)
        if len(keys) >= busy and sum(key in self.consumers and key not in self.idle for key in keys) >= busy:
            levels.append(Level.QUIET)
        return levels

    def receive(self, keys: Set[ConsumerKey] | None, asked_at: float, took: float) -> None:
        """Another replica read these consumers, or all there are (None), `asked_at` a time of our clock."""
        levels = self._levels()
        for level in self.covered(keys):
            since = self.read_at[level]
            if asked_at > since and level in levels and since > -math.inf:  # an outage counts up to the longest one
                self.reached[level] = max(min(asked_at - since, self.budget.max_interval), self.reached[level] / 2)
            self.read_at[level] = max(asked_at, since)
        self._measure(took, keys is not None)
        if keys is None:
            self.answered = True
            if self.woken_at <= asked_at:
                self.woken = None

    def fail(self) -> None:
        """A reading failed: the next try is later each time."""
        self.retry = min(self.budget.max_interval, max(self.retry * 2, self.budget.min_interval))

    def requests_per_second(self, load: Load) -> float:
        """What the planned readings of the stream would take."""
        wanted = 0.0
        for level in self._levels():
            n = self.singles(level)
            share = ((n or self.pages) + 1) / self.interval(level, load)
            if not n:
                return max(wanted, share)
            wanted += share
        return wanted

    def proof_interval(self, load: Load) -> float:
        """Seconds between two proofs of each of its consumers, as planned under this load or as it was lately."""
        if not self.answered:  # the first reading is due at once, and as late as all others
            return self.interval(Level.ALL, load) * (load.stretch - 1)
        levels = self._levels()[:-1]
        if self.missing:  # their interval is what it was
            levels.append(Level.QUIET)
        if not levels and not self.idle:
            levels = [Level.ALL]
        read = [max(self.interval(level, load) * load.stretch, self.reached[level]) for level in levels]
        return max(*read, load.look_interval if self.idle else 0.0, 0.0)


def is_unmoved(before: StreamLook, look: StreamLook) -> bool:
    """Whether nothing came to the stream, left it, or was configured between two looks."""
    return (
        look.last_seq == before.last_seq
        and look.first_seq == before.first_seq
        and look.messages == before.messages
        and look.created == before.created
        and look.subjects == before.subjects
        and look.retention == before.retention
    )
