"""Which levels of a stream each of several replicas reads, by plan and turn together.

Whatever each of them watches and counts as hot: every level is read within a silence and an interval, and those that
need the same request together what one of them does.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nats_backpressure.core.model.samples import ConsumerConfig, Sample, StreamLook
from nats_backpressure.core.reading.budget import Budget, Level
from nats_backpressure.core.reading.due import Due, at_level, not_before, order
from nats_backpressure.core.reading.load import Load
from nats_backpressure.core.reading.sharing import APART, Position, share_of, silence
from nats_backpressure.core.reading.stream_plan import StreamPlan
from nats_backpressure.core.reading.turns import Turns
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from tests.support.exploring import examples

LEAST = 0.6
BUDGET = Budget(min_interval=0.1, max_interval=5.0, requests_per_second=50, server_share=0.05)
LOAD = Load()
LOOK = StreamLook("S", "t", 1, 10, 10, ("s",))
TOOK = 0.002
ROUNDING = 1e-3
FIRST, LAST = Position(True, True, -1.0), Position(True, True, 2.0)
"""Other replicas, that stand before and behind each of these."""

Needs = Mapping[str, bool]
"""The consumers that a replica watches, by name, and whether each may be above a mark."""


def turns(now: float = 0.0, followed_for: float = 100.0) -> Turns:
    """Of a replica that is asked for each level once."""
    one = Turns(0.5, LEAST, now - followed_for)
    for level in Level:
        one.starts_at(level, now, BUDGET.interval(level), TOOK)
    return one


def reading_of(level: Level, every: float = 0.0, *, whole: bool = True) -> Position:
    return Position(True, True, -1.0, level, every, whole)


def receive(one: Turns, levels: list[Level], sender: Position, at: float) -> bool:
    return one.receive(levels, "other", sender, at, True, at)


def test_a_reading_that_covers_nothing_due_does_not_unseat_the_reader() -> None:
    one = turns()
    receive(one, list(Level), reading_of(Level.ALL), 0.0)
    one.start(Level.HOT, Level.HOT, 0.1, 0.1)
    assert receive(one, [], reading_of(Level.HOT), 0.15), "it is used"
    assert one.starts_at(Level.HOT, 0.2, 0.1, TOOK) == 0.2
    receive(one, [Level.HOT], reading_of(Level.HOT), 0.25)
    assert one.starts_at(Level.HOT, 0.3, 0.1, TOOK) > 0.8


def test_a_list_that_was_due_as_such_does_not_unseat_the_reader_of_few() -> None:
    one = turns()
    receive(one, list(Level), reading_of(Level.ALL), 0.0)
    one.start(Level.HOT, Level.HOT, 0.1, 0.1)
    receive(one, list(Level), reading_of(Level.ALL), 0.15)
    assert one.starts_at(Level.HOT, 0.2, 0.1, TOOK) == 0.2
    assert one.starts_at(Level.ALL, 5.2, 5.0, TOOK) > 20.0
    receive(one, list(Level), reading_of(Level.ALL), 5.0)
    assert one.starts_at(Level.HOT, 5.1, 0.1, TOOK) > 5.7, "it had nothing to read for long"


def test_who_is_alone_reads_every_level() -> None:
    one = turns()
    receive(one, list(Level), reading_of(Level.HOT), 0.0)
    started = one.starts_at(Level.HOT, 0.1, 0.1, TOOK)
    one.start(Level.HOT, Level.HOT, 0.1, started)
    assert one.starts_at(Level.ALL, 5.0, 5.0, TOOK) == 5.0


def test_the_lists_are_left_to_one_that_stands_before_and_reads_all() -> None:
    one = turns()
    one.start(Level.ALL, Level.ALL, 5.0, 0.0)
    receive(one, [Level.HOT, Level.QUIET], reading_of(Level.HOT, whole=False), 0.1)
    assert one.starts_at(Level.ALL, 5.0, 5.0, TOOK) == 5.0
    receive(one, [Level.HOT, Level.QUIET], reading_of(Level.HOT), 0.2)
    assert one.starts_at(Level.ALL, 5.0, 5.0, TOOK) > 20.0
    assert not one.reads and one.receives


def test_a_level_at_which_nothing_was_due_for_long_goes_with_the_rest_of_the_stream() -> None:
    one = turns(followed_for=0.0)
    one.start(Level.ALL, Level.ALL, 5.0, 0.0)
    settled = Position(True, True, 0.9, Level.ALL, 5.0)
    receive(one, list(Level), settled, 5.0)
    assert not one.reads and one.receives


def test_who_reads_all_is_not_replaced_by_a_new_one_that_reads_often_what_is_not_idle_to_it() -> None:
    one = turns()
    one.start(Level.ALL, Level.ALL, 5.0, 0.0)
    new = Position(True, True, -1.0, Level.QUIET, 1.0, whole=False, settled_for_all=False)
    receive(one, list(Level), new, 0.5)
    assert one.reads_all and one.starts_at(Level.ALL, 5.0, 5.0, TOOK) == 5.0
    assert one.position(False, True, 0.5).settled_for_all is None


def test_a_new_one_that_reads_a_part_unopposed_is_settled_for_that_part_only() -> None:
    one = turns(followed_for=0.0)
    receive(one, list(Level), reading_of(Level.ALL, 5.0), 0.0)
    for tenth in range(0, 50, 5):
        one.start(Level.QUIET, Level.ALL, 1.0, tenth / 10)
        receive(one, list(Level), reading_of(Level.ALL, 5.0), tenth / 10)
    where = one.position(False, True, 5.0)
    assert where.settled and where.settled_for_all is False and not where.at(Level.ALL).settled


def test_a_reader_with_too_small_a_budget_is_waited_for() -> None:
    one = turns()
    receive(one, list(Level), reading_of(Level.HOT, every=2.0), 0.0)
    assert one.starts_at(Level.HOT, 0.1, 0.1, TOOK) == pytest.approx(0.1 + 3 * 2.0 + 0.5 * APART)
    one.start(Level.HOT, Level.HOT, 0.1, 7.0)
    receive(one, [Level.HOT], reading_of(Level.HOT, every=0.1), 7.1)
    assert one.starts_at(Level.HOT, 7.2, 0.1, TOOK) == pytest.approx(7.2 + LEAST + 0.5 * APART)


def test_after_a_goodbye_nothing_is_waited_for() -> None:
    one = turns()
    receive(one, list(Level), reading_of(Level.HOT, every=2.0), 0.0)
    assert one.forget("other", 0.1) and not one.forget("another", 0.1)
    assert one.starts_at(Level.HOT, 0.2, 0.1, TOOK) == pytest.approx(0.2 + 0.5 * APART)


class Replica:
    """One process: what it needs, its plan and its turns."""

    def __init__(self, index: int, needs: Needs, now: float) -> None:
        self.needs = {ConsumerKey("S", name): hot for name, hot in needs.items()}
        self.index, self.plan, self.turns = (
            index,
            StreamPlan(BUDGET, now, True),
            Turns(share_of("S", f"r{index}"), LEAST, now),
        )
        self.plan.add_look(LOOK, now)
        self.fresh = [now] * len(Level)
        """When the newest reading was asked for that covers each level."""
        self.dead = self.listing = self.reading = False
        self.faults: dict[str, float] = {}
        """Until when it is `deaf` or `mute`, or its `lists` fail."""
        self.due: Due | None = None

    def has(self, fault: str, now: float) -> bool:
        return now < self.faults.get(fault, 0.0)

    def take(self, keys: frozenset[ConsumerKey] | None, asked_at: float) -> None:
        for level in self.plan.covered(keys):
            self.fresh[level] = max(self.fresh[level], asked_at)
        for key, hot in self.needs.items():
            if keys is None or key in keys:
                config, at = ConsumerConfig(filters=("s",)), Now(asked_at, asked_at)
                sample = Sample(key, "t", config, at, 1, 0, 0, 0, 0, 0, 0, 0)
                self.plan.crossings.add_sample(sample, self.plan.crossings.base, 0.0 if hot else 1000.0, asked_at)


class World:
    """Replicas beside one stream, in simulated time."""

    def __init__(self, needs: list[Needs], delay: float, seed: int) -> None:
        self.random, self.delay, self.now = random.Random(seed), delay, 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self.replicas = [Replica(n, each, 0.0) for n, each in enumerate(needs)]
        self.asked: list[float] = []
        """When each reading was asked for."""
        self.late: list[str] = []
        self.checked_from = float("inf")
        for one in self.replicas:
            self.plan(one)

    def at(self, moment: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._order), event))

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.now = until

    def plan(self, one: Replica) -> None:
        """As the poller does."""
        if one.dead:
            return
        dues = [] if one.reading else one.plan.dues(LOAD, one.listing)
        starts = [not_before(due, self._starts_at(one, due)) for due in dues]
        if not starts:
            return
        one.due = due = min(starts, key=order)
        self.at(max(due.at, self.now), lambda: self._start(one, due) if one.due is due else None)

    def _starts_at(self, one: Replica, due: Due) -> float:
        return one.turns.starts_at(due.level, due.at, one.plan.interval(due.level, LOAD), one.plan.took(due.level))

    def _start(self, one: Replica, due: Due) -> None:
        if one.dead:
            return
        n = 0 if one.plan.retry else one.plan.singles(due.level)
        names = frozenset(one.plan.names(due.level, n)) if n else None
        one.turns.start(due.level, due.level if n else Level.ALL, one.plan.interval(due.level, LOAD), self.now)
        one.plan.start(due if n else at_level(due, Level.ALL), self.now, LOAD)
        self.asked.append(self.now)
        asked_at = self.now
        one.reading, one.listing = bool(n), one.listing or not n
        self.at(self.now + TOOK, lambda: self._end(one, names, asked_at))
        self.plan(one)

    def _end(self, one: Replica, names: frozenset[ConsumerKey] | None, asked_at: float) -> None:
        if one.dead:
            return
        failed, highest = names is None and one.has("lists", self.now), Level.ALL if names is None else Level.QUIET
        if names is None:
            one.listing = False
        else:
            one.reading = False
        one.turns.end(highest, failed=failed)
        if failed:
            one.plan.fail()
        else:
            one.plan.listed = 20
            one.plan.finish(TOOK, self.random.random(), partial=names is not None)
            one.take(names, asked_at)
            self._send(one, names, asked_at)
        self.plan(one)

    def _send(self, sender: Replica, names: frozenset[ConsumerKey] | None, asked_at: float) -> None:
        where, sent_at = sender.turns.position(names is not None, True, self.now), self.now
        for one in self.replicas:
            if one is not sender and not sender.has("mute", self.now):
                arrives = self.now + self.random.uniform(0, self.delay)
                self.at(arrives, lambda one=one: self._receive(one, sender, where, names, asked_at, sent_at))

    def _receive(
        self,
        one: Replica,
        sender: Replica,
        where: Position,
        names: frozenset[ConsumerKey] | None,
        asked_at: float,
        sent_at: float,
    ) -> None:
        if one.dead or one.has("deaf", self.now):
            return
        levels = one.plan.covered(names)
        if one.turns.receive(levels, str(sender.index), where, sent_at, True, self.now):
            one.plan.receive(names, asked_at, TOOK)
            one.take(names, asked_at)
        self.plan(one)

    def check(self, until: float) -> None:
        """Note each level of each replica that is read too late, from now until then."""
        while self.now < until:
            self.run(self.now + 0.1)
            for one in self.replicas:
                for level in one.plan._levels():
                    interval = one.plan.interval(level, LOAD)
                    allowed = silence(LEAST, interval, TOOK, 1.0) + interval + 2 * TOOK + self.delay + ROUNDING
                    if not one.dead and self.now - one.fresh[level] > allowed:
                        self.late.append(
                            f"{one.index} {level.name} {self.now - one.fresh[level]:.2f} at {self.now:.2f}"
                        )

    def requests(self, since: float) -> int:
        return sum(at >= since for at in self.asked)


NAMES = [f"c{n}" for n in range(8)]
needs = st.dictionaries(st.sampled_from(NAMES), st.booleans(), max_size=6)
FAULTS_END = 30.0
faults = st.lists(
    st.tuples(
        st.floats(0.0, FAULTS_END - 8),
        st.sampled_from(["kill", "deaf", "mute", "lists"]),
        st.integers(0, 5),
        st.floats(0.1, 8.0),
    ),
    max_size=5,
)


@settings(max_examples=examples(8, most=80, why="each simulates more than a minute"))
@given(
    groups=st.lists(needs, min_size=1, max_size=3),
    members=st.lists(st.integers(0, 2), min_size=1, max_size=6),
    broken=faults,
    delay=st.sampled_from([0.001, 0.05]),
    seed=st.integers(0, 2**16),
)
def test_each_level_is_read_in_time_and_those_that_need_the_same_request_what_one_does(
    groups: list[Needs],
    members: list[int],
    broken: list[tuple[float, str, int, float]],
    delay: float,
    seed: int,
) -> None:
    used = [n % len(groups) for n in members]
    world = World([groups[n] for n in used], delay, seed)
    for at, what, index, seconds in broken:
        world.at(at, lambda what=what, index=index, seconds=seconds: strike(world, what, index, seconds))
    world.run(FAULTS_END + 25.0)
    world.check(FAULTS_END + 65.0)
    assert world.late == []
    since = world.now
    world.run(since + 20.0)
    alive = {used[one.index] for one in world.replicas if not one.dead}
    assert world.requests(since) <= 1.2 * sum(requests_alone(groups[n], seed) for n in alive) + 2


def strike(world: World, what: str, index: int, seconds: float) -> None:
    one = world.replicas[index % len(world.replicas)]
    if what == "kill":
        one.dead = True
    else:
        one.faults[what] = world.now + seconds


def requests_alone(needs: Needs, seed: int) -> int:
    world = World([needs], 0.0, seed)
    world.run(20.0)
    world.run(40.0)
    return world.requests(20.0)


def test_one_whose_lists_fail_is_shown_the_others_by_one_whose_lists_work() -> None:
    needs = {"a": True, "b": False}
    for failing in (0, 1):
        world = World([needs, needs], 0.001, 1)
        world.replicas[failing].faults["lists"] = 1e9
        world.run(30.0)
        world.check(90.0)
        assert world.late == []


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.no_cover  # traced, it takes four times as long
def test_each_reads_what_only_it_has(seed: int) -> None:
    """As often as one alone."""
    world = World([{"a": True, "q": False}, {"b": True, "q": False}, {"b": True, "q": False}], 0.001, seed)
    world.run(80.0)
    since = world.now
    world.run(since + 20.0)
    assert world.requests(since) >= 2 * 20.0 / 0.1 * 0.9
    assert all(world.now - one.fresh[Level.HOT] <= 0.2 for one in world.replicas)
