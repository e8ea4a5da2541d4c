"""The queue of readings: what is most late comes first, and first readings have every other turn."""

from __future__ import annotations

import math

from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.reading.budget import Budget, Level
from nats_backpressure.core.reading.due import Due
from nats_backpressure.core.reading.stream_plan import StreamPlan
from nats_backpressure.runtime import due_queue
from nats_backpressure.runtime.due_queue import DueQueue
from nats_backpressure.runtime.followed_streams import FollowedStream
from nats_backpressure.runtime.stream_poll import StreamPoll

NOW = 100.0


class World:
    def __init__(self) -> None:
        self.polls: dict[str, StreamPoll] = {}
        self.queue = DueQueue(self.polls)

    def plan(self, name: str, at: float, interval: float = 1.0, *, was_read: bool = True) -> StreamPoll:
        """The next reading of a stream is due at this time, an interval after the last one."""
        if name not in self.polls:
            plan = StreamPlan(Budget(0.1, 2.0, 100, 0.1), 0.0, True)
            self.polls[name] = StreamPoll(FollowedStream(StreamLook(name, "t", 0, 0, 0), 0.0), plan)
        poll = self.polls[name]
        poll.plan.answered = was_read
        poll.due = Due(Level.HOT, at, since=at - interval)
        self.queue.plan(poll)
        return poll

    def next(self) -> str | None:
        """Which is read next; it is planned again far ahead."""
        self.queue.collect(NOW)
        if (poll := self.queue.most_late(NOW)) is None:
            return None
        self.plan(poll.name, NOW + 100.0, was_read=poll.plan.answered)
        return poll.name


def test_nothing_is_late_before_its_time() -> None:
    world = World()
    assert world.next() is None and world.queue.next_at() == math.inf
    world.plan("S", NOW + 1.0)
    assert world.next() is None and world.queue.next_at() == NOW + 1.0 and not world.queue.is_late


def test_the_most_late_for_its_interval_comes_first() -> None:
    world = World()
    world.plan("slow", NOW - 2.0, interval=10.0)
    world.plan("fast", NOW - 1.0, interval=0.1)
    world.queue.collect(NOW)
    assert world.queue.is_late
    assert [world.next() for _ in range(3)] == ["fast", "slow", None] and not world.queue.is_late


def test_every_other_reading_is_a_first_one_while_there_is_any() -> None:
    world = World()
    for name in ("a", "b", "c"):
        world.plan(name, NOW - 50.0, interval=0.1)
    for name in ("new 1", "new 2"):
        world.plan(name, NOW - 0.1, interval=10.0, was_read=False)
    order = [world.next() or "" for _ in range(5)]
    assert [name.startswith("new") for name in order] == [True, False, True, False, False]


def test_what_is_planned_anew_counts_no_more_at_its_old_time() -> None:
    world = World()
    world.plan("S", NOW - 1.0)
    world.queue.collect(NOW)
    world.plan("S", NOW + 5.0)
    assert world.next() is None


def test_a_stream_that_was_found_gone_is_not_read_again() -> None:
    world = World()
    world.plan("gone", NOW - 5.0)
    world.plan("S", NOW - 1.0)
    world.queue.collect(NOW)
    del world.polls["gone"]
    assert [world.next(), world.next()] == ["S", None] and not world.queue.is_late


def test_the_queue_holds_few_entries_for_each_stream() -> None:
    world = World()
    for at in range(3 * due_queue.SPARE):
        world.plan("S", NOW + at)
    assert len(world.queue._queue) <= due_queue.SPARE + 4
    assert world.next() is None and world.queue.next_at() <= NOW + 3 * due_queue.SPARE
