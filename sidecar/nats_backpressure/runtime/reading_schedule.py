"""ReadingSchedule: which stream is read next and when, and how far all readings together fit into the budget."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence

from nats_backpressure.core.reading.budget import Budget, Level, RequestBudget
from nats_backpressure.core.reading.due import NEVER, Due, at_level, not_before, order
from nats_backpressure.core.reading.load import LIMITED_FACTOR, LIMITED_FOR, Load, load_of, own_rate
from nats_backpressure.core.reading.sharing import ALL_STREAMS
from nats_backpressure.core.reading.stream_plan import SINGLES_LIMIT, SLOW_LIST
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.due_queue import DueQueue
from nats_backpressure.runtime.followed_streams import FollowedStreams
from nats_backpressure.runtime.ports import Clock
from nats_backpressure.runtime.shared_reading import SharedReading
from nats_backpressure.runtime.stream_looks import SHORTEST_SLEEP, StreamLooks
from nats_backpressure.runtime.stream_poll import StreamPoll
from nats_backpressure.runtime.stretch_report import StretchReport

WEIGH_EVERY = 1.0
"""Seconds between two computations of the load that all plans together are."""
WEIGH_SOON = 0.1
"""The same once another stream is read by this replica."""


class ReadingSchedule:
    """The polls of all followed streams, and the next reading of each. Who changes what the plan of a stream depends on
    has it planned again here. At most one list and one reading of single consumers are under way for each stream."""

    def __init__(
        self,
        clock: Clock,
        streams: FollowedStreams,
        budget: Budget,
        looks: StreamLooks,
        shared: SharedReading,
        requests: RequestBudget | None,
    ) -> None:
        """`requests`: what may still be requested; without it all that is due begins at once."""
        self._clock, self._streams, self._budget = clock, streams, budget
        self._looks, self._shared, self._requests = looks, shared, requests
        self.polls: dict[str, StreamPoll] = {}
        self.load = Load()
        self.wake = asyncio.Event()
        """Ends a `sleep`."""
        self._due = DueQueue(self.polls)
        self._sleeps_until = self._weighed_at = self._limited_until = -math.inf
        self._stretch = StretchReport()

    def follows(self, poll: StreamPoll) -> bool:
        """Whether there is anything left to follow in it."""
        return self.polls.get(poll.name) is poll

    def plan(self, poll: StreamPoll) -> None:
        """Put the next reading of a stream into the queue."""
        if not self.follows(poll):
            return
        plan, listing = poll.plan, poll.listing_since < math.inf
        dues = [] if poll.reading else plan.dues(self.load, listing)
        if listing and not plan.slow:
            dues = [not_before(due, poll.listing_since + SLOW_LIST) for due in dues]
        poll.planned = min(dues, key=order, default=NEVER)
        poll.due = min((not_before(due, self._starts_at(poll, due)) for due in dues), key=order, default=NEVER)
        poll.stream.interval = poll.plan.proof_interval(self.load)
        poll.stream.next = min(poll.planned.at, self._looks.next())
        self._due.plan(poll)
        if poll.due.at < self._sleeps_until:
            self.wake.set()

    def _starts_at(self, poll: StreamPoll, due: Due) -> float:
        """When this replica starts a reading, unless it receives one before."""
        interval = poll.plan.interval(due.level, self.load)
        return self._shared.starts_at(poll.name, due.level, due.at, interval, poll.plan.took(due.level))

    def hasten(self, poll: StreamPoll, level: Level) -> None:
        """List a stream once after the interval of this level."""
        before = poll.plan.woken
        poll.plan.wake(level, self._clock.mono())
        if poll.plan.woken is not before:
            self.plan(poll)

    def attend(self, keys: Iterable[ConsumerKey]) -> None:
        """Something else than a sample moved these consumers: their policy, or what is stored of them."""
        now = self._clock.mono()
        for key in keys:
            if (poll := self.polls.get(key.stream)) is not None and poll.plan.heat([key], now):
                self.plan(poll)

    def read_all(self) -> None:
        """Read each stream soon."""
        for poll in self.polls.values():
            poll.plan.retry = 0.0
            poll.plan.wake(Level.HOT, self._clock.mono())
            self.plan(poll)

    # What starts

    def start_most_late(self) -> tuple[StreamPoll, Sequence[ConsumerKey]] | None:
        """Begin with what is most late, if the budget allows it: returns the stream, and the consumers to read one by
        one, or none where it is to be listed."""
        now = self._clock.mono()
        self._due.collect(now)
        if self._ready_in(now) > 0 or (poll := self._due.most_late(now)) is None:
            return None
        names = self._start(poll, poll.due, now)
        if names:
            poll.reading = True
        else:
            poll.listing_since = now
        self.plan(poll)
        return poll, names

    def _start(self, poll: StreamPoll, due: Due, now: float) -> Sequence[ConsumerKey]:
        plan, listing = poll.plan, poll.listing_since < math.inf
        n = 0 if plan.retry else plan.singles(due.level)
        n = n or (min(SINGLES_LIMIT, len(plan.crossings.consumers)) if listing else 0)
        names = plan.names(due.level, n) if n else ()
        every = plan.interval(due.level, self.load) * self.load.stretch
        if not self._shared.reads(poll.name):  # its requests are ours from now on
            self._weighed_at = min(self._weighed_at, now - WEIGH_EVERY + WEIGH_SOON)
        self._shared.start(poll.name, due.level, due.level if names else Level.ALL, every)
        plan.start(due if names else at_level(due, Level.ALL), now, self.load)
        return names

    def _ready_in(self, now: float) -> float:
        return 0.0 if self._requests is None else self._requests.ready_in(now)

    async def sleep(self, until: float) -> None:
        """Until then, or until something here is due earlier."""
        now = self._clock.mono()
        next_start = now + self._ready_in(now) if self._due.is_late else self._due.next_at()
        self._sleeps_until = min(until, next_start, self._weighed_at + WEIGH_EVERY)
        await self._clock.wait(self.wake, max(SHORTEST_SLEEP, self._sleeps_until - self._clock.mono()))
        self._sleeps_until = -math.inf

    # The load

    def limit(self) -> None:
        """The server threw requests away because too many came: read everything more rarely for a while."""
        self._limited_until = self._clock.mono() + LIMITED_FOR
        self._weighed_at = -math.inf
        self.wake.set()

    def weigh(self) -> None:
        """Compute how far the plans fit into the budget, where that is due, and log once that they do not."""
        now = self._clock.mono()
        if now - self._weighed_at < WEIGH_EVERY:
            return
        self._weighed_at, before = now, self.load
        factor = LIMITED_FACTOR if now < self._limited_until else 1.0
        plans, looks = [poll.plan for poll in self.polls.values()], self._looks.plan
        self.load = self._streams.load = load_of(plans, self._budget, looks.requests_per_second, looks.reached, factor)
        self._share_requests(now)
        waiting = [plan.proof_interval(self.load) for plan in plans if not plan.answered and not plan.retry]
        self._streams.first_readings = max([self._streams.first_readings, *waiting]) if waiting else 0.0
        replan = (before.factor, before.empty_interval) != (self.load.factor, self.load.empty_interval)
        for poll in self.polls.values():
            idle = len(poll.plan.crossings.idle)
            poll.plan.expire(now, self.load.stretch)
            poll.stream.interval = poll.plan.proof_interval(self.load)
            if replan or len(poll.plan.crossings.idle) != idle:
                self.plan(poll)
        self._stretch.report(self.load.stretch, len(self.polls), now)

    def _share_requests(self, now: float) -> None:
        """The requests are those of all replicas together: this one has its share of them."""
        if self._requests is None:
            return
        plans = [poll.plan for poll in self.polls.values()]
        own = [poll.plan for poll in self.polls.values() if not self._shared.receives(poll.name)]
        looks = self._looks.plan.requests_per_second
        own_looks = 0.0 if self._shared.receives(ALL_STREAMS) else looks
        self._requests.set_rate(own_rate(self.load, own, plans, (own_looks, looks), self._budget), now)
