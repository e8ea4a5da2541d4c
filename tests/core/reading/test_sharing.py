"""Who reads a stream, of any number of replicas: one of those that can, and never none for longer than a silence.

The property simulates replicas that share one stream while messages are lost or late, and processes start, die, stop
and go on, hear nothing, reach nobody, or cannot read.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, count, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nats_backpressure.core.reading.sharing import APART, SETTLED_AFTER, Position, Turn, share_of, silence
from tests.support.exploring import examples

LEAST = 0.6
NOTICED = 1e-6
"""Seconds of rounding."""


def position(share: float, *, writes: bool = True, settled: bool = True) -> Position:
    return Position(writes, settled, share)


def follower(share: float = 0.5, since: float = 0.0) -> Turn:
    """A replica that has followed the stream for long."""
    return Turn(share, since)


def receive(turn: Turn, sender: Position, at: float, *, now: float | None = None, silent_for: float = 1.0) -> bool:
    now = at if now is None else now
    return turn.receive(sender, turn.position(True, silent_for, now), at, silent_for, now)


def test_a_replica_alone_reads_when_it_is_due() -> None:
    assert follower().starts_at(100.0, 1.0) == 100.0


def test_after_a_reading_of_one_before_it_waits_for_a_silence() -> None:
    turn = follower()
    assert receive(turn, position(0.1), 100.0)
    assert turn.starts_at(100.1, 1.0) == 101.1


def test_the_silence_counts_from_when_a_reading_is_due() -> None:
    turn = follower()
    receive(turn, position(0.1), 100.0)
    assert turn.starts_at(104.0, 1.0) == 105.0, "the stream was idle, and moves now"


def test_the_reader_stops_when_one_before_it_reads() -> None:
    turn = follower()
    turn.start(100.0)
    assert turn.reads
    assert receive(turn, position(0.1), 100.5)
    assert not turn.reads


def test_the_reader_goes_on_when_one_behind_it_reads() -> None:
    turn = follower()
    turn.start(100.0)
    assert not receive(turn, position(0.9), 100.5), "it has its own"
    assert turn.starts_at(100.6, 1.0) == 100.6


def test_one_behind_is_replaced_after_one_silence_however_much_it_reads() -> None:
    turn = follower()
    starts = []
    for n in range(20):
        at = 100.0 + n / 10
        assert receive(turn, position(0.9), at), "what it reads is used until then"
        starts.append(turn.starts_at(at + 0.1, 1.0))
    assert starts[0] == 101.0
    assert starts[-1] == pytest.approx(102.0), "it is time: as soon as one is due"


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        pytest.param(position(0.1), position(0.9), id="by share"),
        pytest.param(position(0.9), position(0.1, settled=False), id="a newcomer waits"),
        pytest.param(position(0.9, settled=False), position(0.1, writes=False), id="one that cannot write is last"),
    ],
)
def test_the_order(before: Position, behind: Position) -> None:
    assert before.is_before(behind)
    assert not behind.is_before(before)
    assert not before.is_before(before)


def test_a_newcomer_does_not_replace_a_reader_until_it_has_followed_for_a_minute() -> None:
    turn = follower(0.1, since=100.0)
    receive(turn, position(0.9), 100.0)
    assert turn.position(True, 1.0, 159.0).settled is False
    receive(turn, position(0.9), 159.0)
    assert turn.starts_at(159.1, 1.0) == pytest.approx(160.1)
    assert turn.position(True, 1.0, 100.0 + SETTLED_AFTER).settled
    receive(turn, position(0.9), 160.0)
    assert turn.starts_at(165.0, 1.0) == 165.0, "the reader stands behind it now, so it waits no longer than a silence"


def test_who_reads_unopposed_for_a_silence_is_settled() -> None:
    turn = follower(0.1, since=100.0)
    turn.start(100.0)
    turn.start(100.8)
    assert not turn.position(True, 1.0, 100.9).settled
    assert turn.position(True, 1.0, 101.0).settled
    assert not turn.position(True, 1.0, 101.8).settled, "it reads no more"


def test_an_old_message_makes_nobody_silent() -> None:
    turn = follower()
    turn.start(100.0)
    assert not receive(turn, position(0.1), 98.0, now=101.0), "it has newer ones of its own"
    assert turn.reads


def test_a_replica_that_cannot_read_takes_what_others_read() -> None:
    turn = follower()
    turn.start(100.0)
    turn.end(failed=True)
    assert not turn.reads
    assert receive(turn, position(0.9), 100.5)
    turn.end(failed=False)
    assert turn.reads
    assert not receive(turn, position(0.9), 100.6)


def test_after_a_goodbye_the_next_one_reads_when_it_is_due() -> None:
    first, second = follower(0.2), follower(0.8)
    for turn in (first, second):
        receive(turn, position(0.1), 100.0)
        turn.forget_others(100.05)
    assert first.starts_at(100.1, 1.0) == pytest.approx(100.1 + 0.2 * APART)
    assert second.starts_at(100.1, 1.0) == pytest.approx(100.1 + 0.8 * APART)
    receive(second, first.position(True, 1.0, 100.15), 100.15)
    assert second.starts_at(100.25, 1.0) == pytest.approx(101.25)
    first.start(100.14)
    assert first.starts_at(100.24, 1.0) == 100.24


@pytest.mark.parametrize(
    ("interval", "took", "share", "seconds"),
    [
        pytest.param(0.1, 0.001, 0.0, 0.6, id="the least"),
        pytest.param(1.0, 0.001, 0.0, 3.0, id="three intervals"),
        pytest.param(0.1, 4.0, 0.0, 8.0, id="twice what a list takes"),
        pytest.param(0.1, 0.001, 1.0, 0.7, id="the last in line"),
    ],
)
def test_the_silence(interval: float, took: float, share: float, seconds: float) -> None:
    assert silence(LEAST, interval, took, share) == pytest.approx(seconds)


def test_streams_are_spread_over_replicas() -> None:
    first = [min(("a", "b", "c"), key=lambda replica: share_of(f"S{n}", replica)) for n in range(300)]
    assert min(first.count(replica) for replica in "abc") > 70


@dataclass
class Replica:
    """One process: its turn, what it knows of the stream, and what is wrong with it."""

    turn: Turn
    index: int
    read_at: float
    """When the newest reading that it knows was asked for."""
    took: float = 0.0
    reading: bool = False
    dead: bool = False
    faults: dict[str, float] = field(default_factory=dict)
    """Until when it is `stopped`, `deaf`, `mute`, `blind` or `unable` to write."""
    queue: list[Callable[[], None]] = field(default_factory=list)

    def has(self, fault: str, now: float) -> bool:
        return now < self.faults.get(fault, 0.0)

    def can_read(self, now: float) -> bool:
        return not self.dead and not self.has("stopped", now) and not self.has("blind", now)


class SharedStream:
    """Replicas that share one stream, in simulated time. `interval` and `took` are functions of time."""

    def __init__(
        self,
        interval: Callable[[float], float],
        took: Callable[[float], float],
        delay: float,
        seed: int,
        lossy_until: float = 0.0,
    ) -> None:
        self.interval, self.took, self.delay, self.lossy_until = interval, took, delay, lossy_until
        self.random = random.Random(seed)
        self.now = 0.0
        self.replicas: list[Replica] = []
        self.readings: list[tuple[float, int]] = []
        """When each that was answered began, and whose it was."""
        self.able: list[tuple[float, frozenset[int]]] = []
        """Who could read, from when on."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def at(self, moment: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._order), event))

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
            able = frozenset(each.index for each in self.replicas if each.can_read(self.now))
            if not self.able or self.able[-1][1] != able:
                self.able.append((self.now, able))
        self.now = until

    def start(self) -> None:
        index = len(self.replicas)
        one = Replica(Turn(share_of("S", f"r{index}"), self.now), index, self.now - self.interval(self.now))
        self.replicas.append(one)
        self._look(one)

    def notice(self) -> None:
        """A look shows all of them that the interval is another one."""
        for one in self.replicas:
            self._look(one)

    def kill(self, index: int) -> None:
        self.replicas[index % len(self.replicas)].dead = True

    def fault(self, index: int, what: str, seconds: float) -> None:
        one = self.replicas[index % len(self.replicas)]
        one.faults[what] = self.now + seconds
        self.at(self.now + seconds, lambda: self._go_on(one))

    def _go_on(self, one: Replica) -> None:
        if one.has("stopped", self.now):
            return
        queue, one.queue = one.queue, []
        for event in queue:
            event()
        self._look(one)

    def silent_for(self, one: Replica) -> float:
        return silence(LEAST, self.interval(self.now), one.took, one.turn.share)

    def _look(self, one: Replica) -> None:
        """Start a reading if it is time; else look again when it may be."""
        if one.dead or one.reading:
            return
        if one.has("stopped", self.now):
            return  # it looks when it goes on
        due_at = one.read_at + self.interval(self.now)
        starts_at = one.turn.starts_at(due_at, self.silent_for(one))
        if starts_at > self.now + NOTICED:
            known = one.read_at
            self.at(min(starts_at, self.now + 1.0), lambda: self._look(one) if one.read_at == known else None)
            return
        one.turn.start(self.now)
        one.reading, asked_at, took = True, self.now, self.took(self.now)
        self.at(self.now + took, lambda: self._end(one, asked_at, took))

    def _end(self, one: Replica, asked_at: float, took: float) -> None:
        if one.has("stopped", self.now):
            one.queue.append(lambda: self._end(one, asked_at, took))
            return
        one.reading = False
        failed = one.has("blind", self.now)
        one.turn.end(failed=failed)
        one.read_at = max(one.read_at, asked_at)
        if not failed and not one.dead:
            one.took = took
            self.readings.append((asked_at, one.index))
            self._broadcast(one, asked_at, took)
        self._look(one)

    def _broadcast(self, sender: Replica, asked_at: float, took: float) -> None:
        where, sent_at = self._position(sender), self.now
        for one in self.replicas:
            lost = self.now < self.lossy_until and self.random.random() < 0.2
            if one is not sender and not lost and not sender.has("mute", self.now):
                arrival = partial(self._receive, one, where, sent_at, asked_at, took)
                self.at(self.now + self.random.uniform(0, self.delay), arrival)

    def _receive(self, one: Replica, sender: Position, sent_at: float, asked_at: float, took: float) -> None:
        if one.dead or one.has("deaf", self.now):
            return
        if one.has("stopped", self.now):
            one.queue.append(lambda: self._receive(one, sender, sent_at, asked_at, took))
            return
        if one.turn.receive(sender, self._position(one), sent_at, self.silent_for(one), self.now):
            one.read_at, one.took = max(one.read_at, asked_at), took
        self._look(one)

    def _position(self, one: Replica) -> Position:
        return one.turn.position(not one.has("unable", self.now), self.silent_for(one), self.now)

    # What must hold

    def unread(self, until: float) -> list[tuple[float, float]]:
        """Times without a reading although one replica could read all the time, longer than a silence and an
        interval."""
        starts = sorted(at for at, _ in self.readings)
        gaps = zip(starts, [*starts[1:], until], strict=True)
        return [gap for gap in gaps if self._longest_able(*gap) > self._allowed(*gap) + NOTICED]

    def _allowed(self, since: float, until: float) -> float:
        interval = self.interval(max(since, until - NOTICED))
        took = max(self.took(since), self.took(until))
        return silence(LEAST, interval, took, 1.0) + max(interval, took) + took

    def _longest_able(self, since: float, until: float) -> float:
        """The longest time in which some replica could read without a break, and the interval was the same."""
        change = max((at for at in CHANGES if since < at < until), default=since)
        longest = 0.0
        for one in self.replicas:
            begun: float | None = None
            spans = [*self.able, (until, frozenset[int]())]
            for (at, able), (next_at, _) in pairwise(spans):
                if one.index not in able:
                    begun = None
                    continue
                begun = max(at, change, since) if begun is None else begun
                longest = max(longest, min(next_at, until) - begun)
        return longest

    def read_twice(self, since: float, gap: float) -> float:
        """The longest time since then in which more than one replica read, without a pause of `gap` of its own."""
        spans: list[list[float]] = []
        for index in {index for _, index in self.readings}:
            begun = len(spans)
            for at in (at for at, who in sorted(self.readings) if who == index and at >= since):
                if len(spans) > begun and at - spans[-1][1] <= gap:
                    spans[-1][1] = at
                else:
                    spans.append([at, at])
        spans.sort()
        return max((min(one[1], other[1]) - other[0] for one, other in combinations(spans, 2)), default=0.0)

    def readers(self, since: float) -> set[int]:
        return {index for at, index in self.readings if at >= since}


CHANGES = (20.0,)
"""When the interval changes, in the properties."""
FAULTS_END = 40.0

script = st.lists(
    st.tuples(
        st.floats(0.5, FAULTS_END - 8),
        st.sampled_from(["start", "kill", "stopped", "deaf", "mute", "blind", "unable"]),
        st.integers(0, 9),
        st.floats(0.1, 8.0),
    ),
    max_size=8,
)


@settings(max_examples=examples(60, most=200, why="each simulates two minutes"))
@given(
    replicas=st.integers(1, 6),
    faults=script,
    intervals=st.sampled_from([(0.1, 0.1), (1.0, 0.1), (5.0, 0.1), (0.1, 5.0)]),
    slow=st.booleans(),
    delay=st.sampled_from([0.001, 0.05, 0.4]),
    seed=st.integers(0, 2**16),
)
def test_each_stream_is_read_by_one_of_those_that_can_and_is_never_unread_for_long(
    replicas: int,
    faults: list[tuple[float, str, int, float]],
    intervals: tuple[float, float],
    slow: bool,
    delay: float,
    seed: int,
) -> None:
    world = SharedStream(
        lambda now: intervals[now >= CHANGES[0]],
        lambda now: 4.0 if slow and now >= 10 else 0.002,
        delay,
        seed,
        lossy_until=FAULTS_END,
    )
    for _ in range(replicas):
        world.start()
    for change in CHANGES:
        world.at(change, world.notice)
    for at, what, index, seconds in faults:
        if what == "start":
            world.at(at, world.start)
        elif what == "kill":
            world.at(at, lambda index=index: world.kill(index))
        else:
            world.at(at, lambda index=index, what=what, seconds=seconds: world.fault(index, what, seconds))
    world.run(FAULTS_END)
    interval, took = intervals[1], 4.0 if slow else 0.002
    quiet_from = FAULTS_END + SETTLED_AFTER + 2 * (silence(LEAST, interval, took, 1.0) + interval + took)
    end = quiet_from + 3 * (interval + took)
    world.run(end)
    alive = [one for one in world.replicas if not one.dead]
    assert world.unread(end) == []
    handover = interval + took + delay
    one_reads_from = FAULTS_END + silence(LEAST, interval, took, 1.0) + handover
    assert world.read_twice(one_reads_from, 1.5 * (interval + took) + delay) <= handover
    if alive:
        first = min(alive, key=lambda one: one.turn.share)
        assert world.readers(quiet_from) == {first.index}
        assert [one.index for one in alive if one.turn.reads] == [first.index]
