"""Simulates workers that request, pull, acknowledge, return messages and die, on a small computed JetStream."""

from __future__ import annotations

import itertools
import math
from collections import deque
from copy import deepcopy
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import structs

from nats_backpressure.core.admission.asked import Asked
from nats_backpressure.core.admission.mark_parts import level_of, parts_of
from nats_backpressure.core.admission.pull_grants import LONGEST_WAIT, Grant
from nats_backpressure.core.admission.requesters import REPORT_LIFE
from nats_backpressure.core.admission.wanting import WANTS_FOR
from nats_backpressure.core.model.member import Latches, Member
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.status import latches, thresholds
from nats_backpressure.policy.schema import InflightRule, Policy
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from tests.simulations.granting_tracker import GrantingTracker

KEY = ConsumerKey("S", "c")


@dataclass
class JetStream:
    """One pull consumer as the server keeps it. Only a pull makes it look for messages whose ack wait ran out."""

    messages: int
    cap: int
    ack_wait: float
    inflight: dict[int, float] = field(default_factory=dict)
    """Message -> when it may be delivered again."""
    naked: deque[int] = field(default_factory=deque)
    next: int = 0
    delivered: int = 0
    acked: int = 0
    last_ack: float = -math.inf
    rose: float = 0.0
    backoff: tuple[float, ...] = ()
    deliveries: dict[int, int] = field(default_factory=dict)

    @property
    def waits(self) -> tuple[float, ...]:
        return self.backoff or (self.ack_wait,)

    def wait(self, message: int) -> float:
        return self.waits[min(self.deliveries[message], len(self.waits)) - 1]

    def pull(self, n: int, now: float) -> list[int]:
        due = [m for m, at in self.inflight.items() if at <= now and m not in self.naked]
        again = [*self.naked, *sorted(due)][:n]
        self.naked = deque(m for m in self.naked if m not in again)
        new = range(
            self.next, min(self.messages, self.next + n - len(again), self.next + max(0, self.cap - len(self.inflight)))
        )
        self.next = max(self.next, new.stop)
        if not self.inflight:
            self.rose = now
        given_ = [*again, *new]
        for message in given_:
            self.deliveries[message] = self.deliveries.get(message, 0) + 1
            self.inflight[message] = now + self.wait(message)
        self.delivered += len(given_)
        return given_

    def ack(self, message: int, now: float) -> None:
        if self.inflight.pop(message, None) is not None:
            self.acked, self.last_ack = self.acked + 1, now
            if message in self.naked:
                self.naked.remove(message)

    def nak(self, message: int) -> None:
        if message in self.inflight and message not in self.naked:
            self.naked.append(message)

    def delay(self, message: int, seconds: float, now: float) -> None:
        if message in self.inflight:
            self.inflight[message] = now + seconds + self.wait(message) - self.waits[0]

    def reading(self, now: float, rate: float) -> Reading:
        stall = now - max(self.last_ack, self.rose) if self.inflight else 0.0
        return Reading(
            KEY,
            Now(now, now),
            self.messages - self.next,
            len(self.inflight),
            None,
            None,
            stall=1000 * stall,
            ack_rate=rate,
            cap=self.cap,
            ack_wait=max(self.waits),
            backoff=self.backoff,
            delivered_consumer=self.delivered,
        )


@dataclass
class Worker:
    name: str
    batch: int
    service: float
    """Seconds per message, one after the other."""
    linger: float
    """Seconds between an answer and the pull."""
    dies: float = math.inf
    naks: int = 0
    """Every so many-th message is given back."""
    reports: bool = False
    """Whether it reports what it holds, and gives back what it did not pull."""
    early: bool = False
    """Whether it asks again while it works on its last message, which it acknowledges before it pulls."""
    unused: int = 0
    drops: bool = False
    """Whether it drops each message without an ack: it holds none, and all are in flight."""
    lost: int = 0
    holding: deque[int] = field(default_factory=deque)
    asks_at: float = 0.0
    pulls: tuple[float, int] | None = None
    done_at: float = 0.0
    handled: int = 0


@dataclass
class Simulation:
    js: JetStream
    workers: list[Worker]
    policy: Policy
    tick: float = 0.05
    now: float = 1000.0
    reads_every: float = 0.1
    """Seconds between two readings."""

    def __post_init__(self) -> None:
        self.decisions = GrantingTracker()
        self.member = Member(KEY, self.policy)
        self.jitters = itertools.cycle((0.0, 0.6, 0.3, 1.0))
        self.acked_then: deque[int] = deque([0] * 20, maxlen=20)
        self.began = self.now
        self.let_through: deque[tuple[float, int]] = deque()
        """Moments and grants since no ack moved, which need no room; each may be pulled within a second."""
        self.granted = -math.inf
        self.too_many: list[tuple[float, int]] = []
        self.held_back: list[float] = []

    def run(self, seconds: float) -> float:
        """Until everything is acknowledged; the seconds it took."""
        while self.js.acked < self.js.messages and self.now < self.began + seconds:
            step = round((self.now - self.began) / self.tick)
            if step % round(self.reads_every / self.tick) == 0:
                self.sample()
            for worker in self.workers:
                if self.now - self.began < worker.dies:
                    self.work(worker)
            self.now = self.began + (step + 1) * self.tick
        return self.now - self.began

    def sample(self) -> None:
        rate = (self.js.acked - self.acked_then[0]) / 2.0
        self.acked_then.append(self.js.acked)
        reading = self.js.reading(self.now, rate)
        marks = thresholds.marks(self.policy, reading)
        small = self.js.cap <= thresholds.SMALL_CAP
        over = latches.latch(
            self.member.latches.inflight,
            0 if small else reading.inflight,
            marks.inflight.overload,
            self.policy,
            self.now,
        )
        self.member = structs.replace(
            self.member, reading=reading, proof=self.now, marks=marks, latches=Latches(inflight=over)
        )

    def work(self, worker: Worker) -> None:
        if worker.holding:
            if worker.early and len(worker.holding) == 1 and worker.pulls is None:
                self.ask(worker, ahead=1)
            if self.now >= worker.done_at:
                self.finish(worker, worker.holding.popleft())
                worker.done_at = self.now + worker.service
        elif worker.pulls is not None:
            if self.now >= worker.pulls[0]:
                self.pull(worker, worker.pulls[1])
        elif self.now >= worker.asks_at:
            self.ask(worker)

    def ask(self, worker: Worker, ahead: int = 0) -> None:
        report = (len(worker.holding), worker.unused, worker.lost, ahead) if worker.reports else (None, 0, 0, 0)
        worker.lost = 0
        grant = self.decisions.grant(self.member, worker.batch, worker.name, self.now, 1, next(self.jitters), *report)
        worker.unused = 0
        worker.asks_at = self.now + grant.wait
        worker.pulls = (self.now + worker.linger, grant.n) if grant.n else None
        self.note(grant)

    def note(self, grant: Grant) -> None:
        reading = self.member.reading
        still = reading.stall / 1000 + (self.now - reading.at.mono) >= min(max(self.js.waits), 5.0)
        if grant.n == 1 and still:
            self.let_through.append((self.now, 1))
        if grant.n:
            self.granted = self.now
            return
        longest = LONGEST_WAIT + self.decisions.pause if still else 2.0
        if self.now - self.granted > longest and (still or reading.inflight == 0):
            self.held_back.append(self.now - self.began)

    def finish(self, worker: Worker, message: int) -> None:
        worker.handled += 1
        if worker.naks and worker.handled % worker.naks == 0:
            self.js.nak(message)
        else:
            self.js.ack(message, self.now)

    def pull(self, worker: Worker, n: int) -> None:
        before = len(self.js.inflight)
        pulled = self.js.pull(n, self.now)
        if worker.drops:
            worker.lost = len(pulled)
        else:
            worker.holding.extend(pulled)
        worker.unused = n - len(pulled)
        worker.pulls, worker.asks_at = None, self.now + self.tick
        worker.done_at = self.now + worker.service
        mark = thresholds.marks(self.policy, self.js.reading(self.now, 0.0)).inflight.overload
        while self.let_through and self.now - self.let_through[0][0] > 1.0 + self.tick:
            self.let_through.popleft()
        if len(self.js.inflight) > max(before, 1, mark) + sum(n for _, n in self.let_through):
            self.too_many.append((self.now - self.began, len(self.js.inflight)))


def a(name: str, batch: int = 1, service: float = 0.0, linger: float = 0.0, dies: float = 0.0, naks: int = 0) -> Worker:
    return Worker(name, batch, service, linger, dies, naks)


workers = st.builds(
    Worker,
    name=st.sampled_from("abcdef"),
    batch=st.integers(1, 100),
    service=st.sampled_from([0.0, 0.05, 0.3]),
    linger=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    dies=st.floats(0, 20),
    naks=st.sampled_from([0, 2, 7]),
)


@given(
    mortal=st.lists(workers, max_size=5, unique_by=lambda worker: worker.name),
    survivor=workers,
    messages=st.integers(1, 120),
    mark=st.sampled_from([1, 5, 20, 60]),
    cap=st.sampled_from([1, 5, 30, 1000]),
    ack_wait=st.sampled_from([0.5, 3.0, 30.0]),
)
@example([a("a", 1, 0.0, 0.9, 15.0, 7)], a("b", 1, 0.3, 0.9), 10, 1, 5, 30.0)
@example(
    [a("a", linger=0.1, dies=2), a("b", linger=0.5, dies=2), a("c", dies=2), a("d", dies=1)], a("e", 2), 14, 5, 5, 0.5
)
@example(
    [
        a("b", 3, dies=0.03),
        a("d", dies=0.03),
        a("c", linger=0.5, dies=7, naks=2),
        a("e", 2, 0, 0.1, 7, 7),
        a("a", 2, 0, 0.5, 3.8, 2),
    ],
    a("f", 1, 0.3, 0.9),
    35,
    5,
    5,
    3.0,
)
# Its deliveries were taken off grants that, as was known only later, had not ended first.
@example([a("f", 2, 0.05, 0.9, 3.8), a("e", 69, 0.3, 0.0, 20)], a("g", 1, 0.05, 0.1), 14, 60, 5, 0.5)
def test_everything_is_delivered_and_the_mark_is_kept(
    mortal: list[Worker], survivor: Worker, messages: int, mark: int, cap: int, ack_wait: float
) -> None:
    simulation = Simulation(
        JetStream(messages, cap, ack_wait),
        [*deepcopy(mortal), lasting(survivor)],
        Policy(inflight=InflightRule(mark, mark, mark)),
    )
    # The others may live for 20 s; what they held comes back after the ack wait, at worst once more for each of them;
    # then the survivor, who may find everything given back and in flight, and must then wait until no ack has moved.
    alone = 2 * (survivor.service + survivor.linger + 1.2) + (min(ack_wait, 5.0) + 1.2 if survivor.naks else 0.0)
    simulation.run(30.0 + (1 + len(mortal)) * (ack_wait + 6.0) + messages * alone)
    assert simulation.js.acked == messages
    assert not simulation.too_many
    assert not simulation.held_back


@given(
    early=st.booleans(),
    mortal=st.lists(workers, max_size=5, unique_by=lambda worker: worker.name),
    others=st.lists(workers, max_size=2, unique_by=lambda worker: worker.name),
    messages=st.integers(1, 120),
    mark=st.sampled_from([1, 5, 20, 60]),
    cap=st.sampled_from([1, 5, 30, 1000]),
    ack_wait=st.sampled_from([0.5, 3.0, 30.0]),
)
def test_with_workers_that_report_what_they_hold_the_mark_is_kept_too(
    early: bool, mortal: list[Worker], others: list[Worker], messages: int, mark: int, cap: int, ack_wait: float
) -> None:
    """Beside those that report nothing, with some that die holding messages, and where they ask before the last is
    done."""
    survivor = replace(lasting(a("", 5, 0.05)), reports=True, early=early)
    reporting = [replace(worker, reports=True, naks=0, early=early) for worker in mortal]
    plain = [replace(worker, name=f"other {worker.name}", naks=0) for worker in others]
    policy = Policy(inflight=InflightRule(mark, mark, mark))
    simulation = Simulation(JetStream(messages, cap, ack_wait), deepcopy([*reporting, *plain, survivor]), policy)
    simulation.run(30.0 + (1 + len(mortal) + len(others)) * (ack_wait + 6.0) + messages * 3)
    assert simulation.js.acked == messages
    assert not simulation.too_many
    assert not simulation.held_back


def drained_in(seconds: float, mark: int, batch: int, n: int = 20) -> int:
    """What workers acknowledge that handle one message after another, of the many that wait."""
    workers = [Worker(f"w{i}", batch, 0.2, 0.0, reports=True) for i in range(n)]
    policy = Policy(inflight=InflightRule(mark, mark, mark))
    simulation = Simulation(JetStream(10_000, 10_000, 60.0), workers, policy, tick=0.01)
    simulation.run(seconds)
    assert not simulation.too_many
    return simulation.js.acked


@pytest.mark.parametrize("batch", [1, 10, 100])
@pytest.mark.parametrize("mark", [20, 21, 40, 1000])
def test_workers_that_report_what_they_hold_lose_no_capacity_to_the_mark(mark: int, batch: int) -> None:
    """While the mark lets each have one message: neither to a reading that is old, nor to one that takes all."""
    one_each = 10.0 * 20 / (0.2 + 3 * 0.01)  # a tick each to finish, to ask and to pull
    assert drained_in(10.0, mark, batch) >= 0.93 * one_each


@pytest.mark.parametrize("reads_every", [0.1, 0.4, 1.0])
@pytest.mark.parametrize(("batch", "service"), [(20, 3.0), (30, 20.0), (10, 5.0)])
def test_beside_one_that_reports_nothing_and_works_long_the_mark_is_kept(
    batch: int, service: float, reads_every: float
) -> None:
    """What those that report hold is known at most: what readings show beyond that is the least that it holds."""
    workers = [Worker(f"w{n}", 10, 0.05, 0.0, reports=True) for n in range(4)]
    workers.append(Worker("plain", batch, service, 0.0))
    policy = Policy(inflight=InflightRule(40, 40, 40))
    run = Simulation(JetStream(10_000, 10_000, 120.0), workers, policy, tick=0.01, reads_every=reads_every)
    run.run(20.0)
    assert not run.too_many and run.js.acked > 100


@pytest.mark.parametrize(
    ("n", "batch", "service", "mark", "share"),
    [(4, 10, 0.02, 40, 0.9), (20, 10, 0.2, 40, 0.85), (20, 1, 0.2, 30, 0.9), (6, 100, 0.05, 40, 0.9)],
)
def test_workers_that_report_nothing_lose_little_while_half_of_the_mark_is_more_than_they_need(
    n: int, batch: int, service: float, mark: int, share: float
) -> None:
    """Beside plain pulls: a tick to ask and a tick to pull for each batch. They had half of that, while what had been
    delivered long ago counted as granted."""
    workers = [Worker(f"w{i}", batch, service, 0.0) for i in range(n)]
    policy = Policy(inflight=InflightRule(mark, mark, mark))
    simulation = Simulation(JetStream(100_000, 10_000, 60.0), workers, policy, tick=0.005)
    simulation.run(10.0)
    assert simulation.js.acked >= share * 10.0 * n / (service + 0.005 + 0.01 / min(batch, mark // n))
    assert not simulation.too_many


def test_one_question_that_reports_nothing_costs_the_others_nothing() -> None:
    """It cost them half to four fifths for a minute, while what it was granted was one message."""
    workers = [Worker(f"w{i}", 10, 0.03, 0.0, reports=True) for i in range(6)]
    policy = Policy(inflight=InflightRule(40, 40, 40))
    simulation = Simulation(JetStream(10_000, 10_000, 60.0), workers, policy, tick=0.01, reads_every=0.4)
    simulation.run(5.0)
    before = simulation.js.acked
    simulation.decisions.grant_to(Asked(100, "operator"), simulation.member, simulation.now, 0.5)
    simulation.began, simulation.now = simulation.now, simulation.now
    simulation.run(5.0)
    assert simulation.js.acked - before >= 0.95 * before
    assert not simulation.too_many


@pytest.mark.parametrize("others", [0, 3])
def test_a_worker_that_drops_messages_without_an_ack_does_not_take_in_flight_past_its_mark(others: int) -> None:
    policy = Policy(inflight=InflightRule(20, 20, 20))
    workers = [Worker(f"w{i}", 2, 0.2, 0.0, reports=True) for i in range(others)]
    dropping = Worker("dropping", 10, 0.0, 0.0, reports=True, drops=True)
    simulation = Simulation(JetStream(10_000, 10_000, 60.0), [dropping, *workers], policy, tick=0.01)
    simulation.run(20.0)
    assert not simulation.too_many


def test_workers_that_replace_others_get_their_part_at_once() -> None:
    """A rolling update every few seconds: those that ended want nothing; what they held last may be in flight, until
    readings show less."""
    policy = Policy(inflight=InflightRule(20, 20, 20))
    simulation = Simulation(JetStream(10_000, 10_000, 60.0), [], policy, tick=0.01, reads_every=1.0)
    acked = []
    for generation in range(4):
        before = simulation.js.acked
        simulation.workers = [Worker(f"{generation}.{i}", 10, 0.1, 0.0, reports=True) for i in range(4)]
        simulation.run(10.0 * (generation + 1))
        for worker in simulation.workers:  # an orderly end
            for message in worker.holding:
                simulation.js.ack(message, simulation.now)
        acked.append(simulation.js.acked - before)
    assert min(acked) >= 0.7 * max(acked), acked
    assert not simulation.too_many


class Replaced(Simulation):
    """Each worker is replaced by a new one after each pull, once it has handled what it pulled."""

    leave = True
    """Whether those that end say so."""

    def work(self, worker: Worker) -> None:
        had = bool(worker.holding)
        super().work(worker)
        if had and not worker.holding:
            asked = Asked(worker.batch, worker.name, worker.unused, held=0, leaving=True)
            if self.leave and self.member.reading is not None:
                self.decisions.leave(asked, self.member.reading, self.now)
            worker.name, worker.unused = f"{worker.name}+", 0


@pytest.mark.no_cover  # traced, it takes four times as long
@pytest.mark.parametrize(("n", "mark", "batch"), [(1, 40, 10), (10, 40, 10), (4, 20, 10), (20, 40, 10), (20, 20, 10)])
def test_a_new_worker_for_each_batch_loses_no_capacity_where_those_before_left(n: int, mark: int, batch: int) -> None:
    policy, rates = Policy(inflight=InflightRule(mark, mark, mark)), {}
    for kind in (Simulation, Replaced):
        workers = [Worker(f"{i}", batch, 0.05, 0.0, reports=True) for i in range(n)]
        simulation = kind(JetStream(100_000, 100_000, 60.0), workers, policy, tick=0.01)
        simulation.run(5.0)
        before = simulation.js.acked
        simulation.run(25.0)
        rates[kind] = simulation.js.acked - before
        assert not simulation.too_many
    assert rates[Replaced] >= 0.9 * rates[Simulation], rates


class SideBySide(Simulation):
    """Each worker handles all that it holds at once, and asks meanwhile."""

    def work(self, worker: Worker) -> None:
        for message in [
            m for m in worker.holding if self.js.inflight[m] - self.js.ack_wait <= self.now - worker.service
        ]:
            worker.holding.remove(message)
            self.js.ack(message, self.now)
        if worker.pulls is not None:
            self.pull(worker, worker.pulls[1])
        elif self.now >= worker.asks_at and (n := worker.batch - len(worker.holding)) > 0:
            report = len(worker.holding), worker.unused
            grant = self.decisions.grant(self.member, n, worker.name, self.now, 1, next(self.jitters), *report)
            worker.unused, worker.asks_at = 0, self.now + grant.wait
            worker.pulls = (self.now, grant.n) if grant.n else None


def rates_of_generations(mark: int, batch: int, service: float) -> list[int]:
    """What two generations of workers acknowledge in 2 s, the second one WANTS_FOR and a little after the first."""
    policy = Policy(inflight=InflightRule(mark, mark, mark))
    simulation = SideBySide(JetStream(100_000, 100_000, 60.0), [], policy, tick=0.01)
    rates = []
    for generation in range(2):
        for worker in simulation.workers:  # an orderly end
            for message in worker.holding:
                simulation.js.ack(message, simulation.now)
        simulation.workers = [Worker(f"{generation}.{i}", batch, service, 0.0, reports=True) for i in range(4)]
        simulation.run(simulation.now - simulation.began + WANTS_FOR + 0.5)
        before = simulation.js.acked
        simulation.run(simulation.now - simulation.began + 2.0)
        rates.append(simulation.js.acked - before)
    assert not simulation.too_many
    return rates


@pytest.mark.parametrize(("mark", "batch"), [(16, 5), (16, 10), (16, 50), (40, 10)])
def test_workers_that_replace_others_share_all_of_the_mark_soon(mark: int, batch: int) -> None:
    """The part of one that ended is free WANTS_FOR after it asked last; then all is as before. What it held may be in
    flight still as long as no reading shows less, so one case alone depends on when readings are made."""
    rates = [rates_of_generations(mark, batch, service) for service in (0.13, 0.17, 0.2, 0.23, 0.31)]
    assert sum(after for _, after in rates) >= 0.8 * sum(first for first, _ in rates), rates


@pytest.mark.parametrize("pause", [1.5, 3.5, 10.0, 35.0])
def test_workers_that_come_after_others_ended_lose_no_capacity(pause: float) -> None:
    """What the others held or were granted at their end is not in flight, as readings show. Until their reports are
    over, the others have their parts of the mark."""
    policy = Policy(inflight=InflightRule(8, 8, 8))
    simulation = Simulation(JetStream(0, 1000, 60.0), [], policy, tick=0.01, reads_every=1.0)
    took = []
    for generation in range(3):
        simulation.js.messages += 150
        simulation.workers = []
        simulation.run(simulation.now - simulation.began + pause)
        simulation.workers = [Worker(f"{generation}.{i}", 10, 0.02, 0.0, reports=True) for i in range(3)]
        started = simulation.now
        took.append(simulation.run(started - simulation.began + 30.0) - (started - simulation.began))
    assert simulation.js.acked == simulation.js.messages
    assert max(took) < 1.2 * took[0] + max(0.0, WANTS_FOR - pause) / 2, took
    assert not simulation.too_many


@given(
    past=st.lists(
        st.tuples(st.floats(0, 2), st.sampled_from("abcd"), st.integers(1, 20), st.integers(0, 20), st.integers(0, 9)),
        max_size=30,
    ),
    mark=st.integers(4, 30),
)
def test_whatever_others_held_none_of_it_counts_once_a_later_reading_shows_nothing_in_flight(
    past: list[tuple[float, str, int, int, int]], mark: int
) -> None:
    policy, tracker, at = Policy(inflight=InflightRule(mark, mark, mark)), GrantingTracker(), 100.0

    def ask(name: str, inflight: int, held: int, n: int = mark, lost: int = 0, age: float = 0.0) -> int:
        read = at - age
        reading = Reading(
            KEY, Now(read, read), 1000, inflight, None, None, ack_rate=1.0, ack_wait=60.0, delivered_consumer=int(read)
        )
        consumer = Member(KEY, policy, reading=reading, proof=at, marks=thresholds.marks(policy, reading))
        return tracker.grant(consumer, n, name, at, 1, 0.5, held=held, lost=lost).n

    for pause, name, n, was_held, lost in past:
        at += pause
        ask(name, mark, was_held, n, lost)
    at += REPORT_LIFE + 0.1
    held = {name: ask(name, 0, 0) for name in ("new 1", "new 2")}
    held = {name: n + ask(name, 0, n) for name, n in held.items()}
    assert sum(held.values()) == mark
    at += 2.1  # all was pulled, as a reading shows, and is acknowledged since
    assert [ask(name, mark, n, 1) for name, n in held.items()] == [0, 0]
    at += 0.1
    assert sum(ask(name, mark, 0, age=0.1) for name in held) == mark


def test_what_one_does_not_want_goes_to_the_others() -> None:
    policy = Policy(inflight=InflightRule(40, 40, 40))
    small = [Worker(f"small {i}", 1, 0.2, 0.0, reports=True) for i in range(9)]
    many = [Worker("many", 100, 0.0, 0.0, reports=True)]
    simulation = Simulation(JetStream(10_000, 10_000, 60.0), [*small, *many], policy, tick=0.01)
    simulation.run(10.0)
    assert level_of(40, [1] * 9 + [100]) == 31
    assert many[0].handled >= 2 * sum(worker.handled for worker in small)


@given(st.integers(1, 100), st.lists(st.integers(0, 200), min_size=1, max_size=30))
def test_the_level_gives_each_the_most_that_all_can_have(target: int, wants: list[int]) -> None:
    level = level_of(target, wants)
    assert level >= 1
    granted = [min(want, level) for want in wants]
    if len(wants) <= target:
        assert sum(granted) <= target
    if any(want > level for want in wants):
        assert sum(min(want, level + 1) for want in wants) > target


@given(st.integers(1, 100), st.dictionaries(st.text(max_size=2), st.integers(0, 200), min_size=1, max_size=30))
def test_the_parts_use_all_of_the_mark_that_is_wanted(target: int, wants: dict[str, int]) -> None:
    parts = parts_of(target, wants)
    held = [min(want, parts.of(name)) for name, want in wants.items()]
    if sum(want > 0 for want in wants.values()) <= target:
        assert sum(held) == min(target, sum(wants.values())) and parts.fit
        assert max(parts.of(name) for name in wants) <= parts.level + 1
    else:
        assert not parts.more


@pytest.mark.parametrize(("mark", "n"), [(9, 5), (3, 2), (500, 24)])
def test_workers_that_handle_messages_side_by_side_use_all_of_the_mark(mark: int, n: int) -> None:
    policy, tracker = Policy(inflight=InflightRule(mark, mark, mark)), GrantingTracker()
    held = dict.fromkeys((f"w{i}" for i in range(n)), 0)
    for tenth in range(30):
        at = 100.0 + tenth / 10
        reading = Reading(
            KEY, Now(at, at), 1000, sum(held.values()), None, None, ack_rate=1.0, delivered_consumer=sum(held.values())
        )
        consumer = Member(KEY, policy, reading=reading, proof=at, marks=thresholds.marks(policy, reading))
        for name in held:
            held[name] += tracker.grant(consumer, mark, name, at, 3, 0.5, held=held[name]).n
    assert sum(held.values()) == mark


def test_who_gives_back_what_it_never_pulls_costs_the_others_one_grant_at_most() -> None:
    policy, tracker = Policy(inflight=InflightRule(40, 40, 40)), GrantingTracker()
    reading = Reading(KEY, Now(100.0, 100.0), 1000, 0, None, None)
    consumer = Member(KEY, policy, reading=reading, proof=100.0, marks=thresholds.marks(policy, reading))
    granted: list[int] = []
    unused = 0
    for n in range(100):
        unused = tracker.grant(consumer, 100, "greedy", 100.0 + n / 100, 1, 0.5, held=0, unused=unused).n
        if n >= 50:
            granted.append(tracker.grant(consumer, 100, "other", 100.0 + n / 100, 1, 0.5, held=0).n)
    assert granted[0] == 0 and set(granted[1:]) == {20}


@given(
    asks=st.lists(st.tuples(st.integers(1, 10_000), st.floats(0.0, 0.1)), min_size=1, max_size=60),
    mark=st.integers(2, 500),
    inflight=st.integers(0, 100),
)
def test_who_reports_nothing_and_never_pulls_leaves_half_of_the_room_to_those_that_report(
    asks: list[tuple[int, float]], mark: int, inflight: int
) -> None:
    policy, tracker, now = Policy(inflight=InflightRule(mark, mark, mark)), GrantingTracker(), 100.0
    reading = Reading(KEY, Now(now, now), 1000, min(inflight, mark), None, None, ack_rate=1.0)
    consumer = Member(KEY, policy, reading=reading, proof=now, marks=thresholds.marks(policy, reading))
    for _ in range(2):  # the first time it gets one message
        tracker.grant(consumer, 1, "gate", now, 1, 0.5, held=0, unused=1)
    room, granted = mark - min(inflight, mark), 0
    for n, pause in asks:
        now = min(100.9, now + pause)
        granted += tracker.grant(consumer, n, "mute", now, 1, 0.5).n
    assert granted <= math.ceil(room / 2)


class Mute(Simulation):
    """One of its workers asks every 10 ms for 10,000 messages and pulls none."""

    def work(self, worker: Worker) -> None:
        if worker.name == "mute":
            self.decisions.grant(self.member, 10_000, "mute", self.now, 1, next(self.jitters))
        else:
            super().work(worker)


@pytest.mark.parametrize("n", [1, 2])
def test_workers_that_report_what_they_hold_go_on_beside_one_that_never_pulls(n: int) -> None:
    """One at full speed: half of the mark is more than it needs. Several as readings, every 100 ms, make room."""
    js = JetStream(10_000, 1000, 30.0)
    workers = [Worker(f"w{i}", 10, 0.01, 0.0, reports=True) for i in range(n)]
    policy = Policy(inflight=InflightRule(40, 40, 40))
    Mute(js, [*workers, Worker("mute", 0, 0.0, 0.0)], policy, tick=0.01).run(20.0)
    assert js.acked >= {1: 82, 2: 105}[n] * 20


def lasting(worker: Worker) -> Worker:
    """The one who stays, however the others end."""
    return replace(worker, dies=math.inf, name="survivor", holding=deque())


@pytest.mark.parametrize(("ack_wait", "within"), [(2.0, 30.0), (30.0, 60.0)])
def test_six_hundred_in_flight_of_a_dead_worker_are_taken_up_soon(ack_wait: float, within: float) -> None:
    js = JetStream(2100, 1000, ack_wait)
    simulation = Simulation(js, [Worker("b", 100, 0.0, 0.0)], Policy())
    js.pull(600, simulation.now)  # by somebody who did not ask, and died
    took = simulation.run(300.0)
    assert js.acked == 2100
    assert took < ack_wait + within + 2100 * simulation.tick
    assert not simulation.too_many


class Extended(JetStream):
    """Its workers ask for more time: nothing of what is in flight can be had, every pull brings new messages."""

    def pull(self, n: int, now: float) -> list[int]:
        grant = super().pull(n, now)
        self.inflight |= dict.fromkeys(grant, math.inf)
        return grant


def test_workers_slower_than_their_ack_wait_are_no_reason_to_take_much_more() -> None:
    js = Extended(2100, 1000, 2.0)
    simulation = Simulation(js, [Worker(f"b{n}", 100, 40.0, 0.0, dies=40.0) for n in range(30)], Policy())
    js.pull(600, simulation.now)
    simulation.run(40.0)
    assert len(js.inflight) <= 600 + 40 / (0.7 * LONGEST_WAIT)


@pytest.mark.parametrize(("mark", "service", "ack_wait"), [(4, 5.0, 2.0), (4, 8.0, 30.0), (20, 12.0, 3.0)])
def test_workers_that_ask_for_more_time_stay_near_the_mark(mark: int, service: float, ack_wait: float) -> None:
    """Each pull without room brings a new message, and none is redelivered: nobody is dead. It was three times the
    mark."""
    js = Extended(2100, 1000, ack_wait)
    workers = [Worker(f"w{i}", 10, service, 0.0, reports=True) for i in range(3 * mark)]
    simulation = Simulation(js, workers, Policy(inflight=InflightRule(mark, mark, mark)))
    inflight = []
    for second in range(1, 61):
        simulation.run(float(second))
        inflight.append(len(js.inflight))
    assert max(inflight) <= mark + 4 and sum(n > mark for n in inflight[30:]) <= 10, inflight
    assert js.acked >= 0.8 * (60.0 // service - 1) * mark
