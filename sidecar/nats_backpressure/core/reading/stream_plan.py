"""StreamPlan: when and how the consumers of one stream are read next.

Those that may have crossed a mark (`crossings`) are read at once, those that move every second or so, those at rest by
looks; every consumer is read at least every `max_interval`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Set

from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.reading.budget import Budget, Level
from nats_backpressure.core.reading.crossings import Crossings
from nats_backpressure.core.reading.due import NEVER, Due, order
from nats_backpressure.core.reading.load import Load
from nats_backpressure.protocol.values import ConsumerKey

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
SERVER_BURST = 0.05
"""Seconds of its time that the server may spend at once, beyond its share, on answering reads of one stream after it
spent less: one answer that was late for another reason must not end readings for a second."""
JITTER = 0.1
"""The share by which a reading of a whole stream may come earlier, so that streams do not stay in step."""


class StreamPlan:
    """What is planned for one stream. All times are monotonic."""

    __slots__ = (
        "ahead",
        "answered",
        "born",
        "budget",
        "consumed",
        "crossed",
        "crossings",
        "free_at",
        "jitter",
        "listed",
        "listed_seconds",
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
        self.crossings = Crossings()
        self.read_at = [-math.inf] * len(Level)
        """When the newest reading at each level began, or what counts as that."""
        self.reached = [0.0] * len(Level)
        """Seconds between two readings at each level, as it was lately; an outage does not count."""
        self.tried_at = self.free_at = -math.inf
        """When the last reading began, and from when on the server's share allows the next one."""
        self.crossed = self.ahead = False
        """Whether more consumers may be above a mark since then, and whether it began before the share allowed it. What
        may just have crossed does not wait for what the last list cost, once: the next reading waits for both."""
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

    def wake(self, level: Level, at: float) -> None:
        """Something shows that the consumers changed: list the stream once at the interval of this level."""
        self.woken = level if self.woken is None else min(self.woken, level)
        self.woken_at = at

    def add_look(self, look: StreamLook, at: float) -> bool:
        """Add a look that was answered `at`; returns whether more consumers may be above a mark now."""
        before, levels = self.crossings.look, self._levels()
        grew = self.crossings.add_look(look, at)
        self.crossed = self.crossed or grew
        self._begin_levels(levels, at)
        if before is not None and before.consumers != look.consumers:
            self.wake(Level.QUIET, at)
        self.consumed = self.consumed or look.consumers > 0
        return grew

    def heat(self, keys: Iterable[ConsumerKey], at: float) -> bool:
        """These may be above a mark, for another reason than a sample: returns whether any is hot that was not."""
        levels = self._levels()
        grew = self.crossings.heat(keys)
        self.crossed = self.crossed or grew
        self._begin_levels(levels, at)
        return grew

    def expire(self, now: float, stretch: float = 1.0) -> None:
        """Looks prove nothing more once the whole stream was not read for MISSED_READINGS of its longest intervals:
        another incarnation or filter of a consumer may not show in them."""
        if now - self.read_at[Level.ALL] > MISSED_READINGS * self.budget.max_interval * stretch:
            levels = self._levels()
            self.crossings.end_idleness()
            self._begin_levels(levels, now)

    def _begin_levels(self, before: list[Level], at: float) -> None:
        """Set when the levels were read last at which there was nothing to read `before`."""
        levels = self._levels()
        if Level.HOT in levels and Level.HOT not in before:  # due at once
            self.read_at[Level.HOT] = at - self.budget.min_interval
            # Until it was read as one, its newest proof is as old as that of a quiet one may be.
            self.reached[Level.HOT] = max(self.reached[Level.HOT], self.reached[Level.QUIET])
        if Level.QUIET in levels and Level.QUIET not in before:  # no reading of these is late
            self.read_at[Level.QUIET] = at

    # What is planned

    @property
    def is_empty(self) -> bool:
        """Whether it was read, and no consumer of it counts."""
        return self.answered and not self.crossings.consumers and not self.crossings.missing

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
        hot, quiet = self.crossings.hot, self.crossings.quiet
        return [*([Level.HOT] if hot else ()), *([Level.QUIET] if quiet else ()), Level.ALL]

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

    def planned(self, key: ConsumerKey, load: Load) -> float:
        """Seconds between two readings of a consumer with work, as planned since the last one."""
        one = self.crossings.consumers.get(key)
        return self.interval(Level.HOT if one is not None and one.hot else Level.QUIET, load) * load.stretch

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
        free = -math.inf if self.crossed and not self.ahead else self.free_at
        return [
            Due(level, max(since + every, self.free_at if level else free), since, lateness)
            for level, since, every in times
        ]

    def singles(self, level: Level) -> int:
        """How many consumers are best read one by one at this level; 0 if a list is cheaper, or needed."""
        n = len(self.crossings.hot) if level is Level.HOT else self.crossings.busy
        if level is Level.ALL or (n > SINGLES_LIMIT and not self.slow):
            return 0
        singly = self.budget.cost(n + 1, n * self.single_seconds)
        whole = self.budget.cost(self.pages + 1, max(self.listed_seconds, LIST_SECONDS * self.listed))
        return min(n, SINGLES_LIMIT) if singly < whole or self.slow else 0

    def names(self, level: Level, most: int) -> tuple[ConsumerKey, ...]:
        """The consumers to read at a level: `most`, and those that were not read for the longest time."""
        consumers, idle = self.crossings.consumers, self.crossings.idle
        keys = self.crossings.hot if level is Level.HOT else consumers.keys() - idle
        return tuple(sorted(keys, key=lambda key: (consumers[key].read_at, key))[:most])

    def start(self, due: Due, now: float, load: Load) -> None:
        """A reading begins; it covers the levels below its own too."""
        self.tried_at, self.crossed, self.ahead = now, False, now < self.free_at
        if due.level is Level.ALL:
            self.woken = None
        for level in Level:
            if level > due.level:
                break
            late = max(0.0, now - max(due.at, self.read_at[level] + self.interval(level, load)))
            if not self.retry and late < math.inf and level in self._levels():
                # A process that stood still was late for another reason than its budget.
                interval = self.interval(level, load)
                late = min(late, max(0.0, self.budget.max_interval * load.stretch - interval))
                self.reached[level] = max(interval + late, self.reached[level] / 2)
            self.read_at[level] = now

    def took(self, level: Level) -> float:
        """Seconds that the last reading took of the kind in which this level is read."""
        return self.took_some if self.singles(level) else self.took_list

    def finish(self, took: float, jitter: float, *, trip: float = 0.0, partial: bool = False) -> None:
        """A reading was answered after `took` seconds, of which the link needed `trip`; `jitter`: a random number from
        0 to 1."""
        self.retry, self.jitter, self.answered = 0.0, jitter, True
        burst = SERVER_BURST / self.budget.server_share
        paid_at = max(self.tried_at, self.free_at + burst) + (took - trip) / self.budget.server_share
        self.free_at = min(paid_at - burst, max(self.tried_at, self.free_at) + self.budget.max_interval)
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
        consumers, hot, idle = self.crossings.consumers, self.crossings.hot, self.crossings.idle
        most = SINGLES_LIMIT if self.slow else len(consumers)
        levels = [Level.HOT] if len(keys & hot) >= min(len(hot), most) else []
        busy = min(self.crossings.busy, most)
        if len(keys) >= busy and sum(key in consumers and key not in idle for key in keys) >= busy:
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
        if self.crossings.missing:  # their interval is what it was
            levels.append(Level.QUIET)
        if not levels and not self.crossings.idle:
            levels = [Level.ALL]
        read = [max(self.interval(level, load) * load.stretch, self.reached[level]) for level in levels]
        return max(*read, load.look_interval if self.crossings.idle else 0.0, 0.0)
