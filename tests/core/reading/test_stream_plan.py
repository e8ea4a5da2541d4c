"""The read plan: what bounds a consumer, what is hot, quiet and idle, and that no crossing goes unread.

The properties run the plan against a simulated server with random arrivals, deliveries, acks, purges and other traffic.
"""

from __future__ import annotations

import math
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.core.model.member import Member
from nats_backpressure.core.model.proofs import newest_proof
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.model.samples import ConsumerConfig, Sample, StreamLook
from nats_backpressure.core.reading.budget import Budget, Level
from nats_backpressure.core.reading.crossings import SETTLE_SECONDS
from nats_backpressure.core.reading.due import Due
from nats_backpressure.core.reading.headroom import headroom
from nats_backpressure.core.reading.load import EMPTY_INTERVAL, LEAST_SHARE, LIMITED_FACTOR, Load, load_of, own_rate
from nats_backpressure.core.reading.stream_plan import (
    MISSED_READINGS,
    SERVER_BURST,
    SINGLES_LIMIT,
    SLOW_LIST,
    StreamPlan,
)
from nats_backpressure.core.subject.member_update import evaluated
from nats_backpressure.policy.schema import InflightRule, PendingRule, Policy
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey

KEY = ConsumerKey("S", "c")
BUDGET = Budget(min_interval=0.1, max_interval=5.0, requests_per_second=50, server_share=0.05)
LOAD = Load()


def member() -> Member:
    reading = Reading(KEY, Now(1.0, 1.0), 0, 0, latency=0.0, drain=None, cap=1000)
    return evaluated(Member(KEY, Policy(), reading=reading, proof=1.0))


def look(last: int = 0, first: int = 1, created: str = "t", consumers: int = 1) -> StreamLook:
    return StreamLook("S", created, first, last, max(0, last - first + 1), ("s",), consumers=consumers)


def sample(pending: int = 0, inflight: int = 0, delivered: int = 0, filters: tuple[str, ...] = ("s",)) -> Sample:
    return Sample(KEY, "t", ConsumerConfig(filters=filters), Now(0.0, 0.0), pending, inflight, 0, 0, delivered, 0, 0, 0)


def plan_with(room: float, at: float = 0.0, last: int = 10, **numbers: int) -> StreamPlan:
    """A plan after a look, and a sample that was asked for after it."""
    plan = StreamPlan(BUDGET)
    plan.answered = True
    plan.add_look(look(last), at)
    plan.crossings.add_sample(sample(**numbers), plan.crossings.base, room, at)
    for level in Level:
        plan.read_at[level] = at
    return plan


class TestLevels:
    def test_a_look_that_reaches_the_crossing_makes_it_hot_and_due_at_once(self) -> None:
        plan = plan_with(room=101)
        assert not plan.add_look(look(110), 1.0) and not plan.crossings.hot
        assert plan.add_look(look(111), 1.1) and plan.crossings.hot == {KEY}
        due = plan.due(LOAD)
        assert (due.level, due.at, due.since) == (Level.HOT, 1.1, 1.0)

    def test_an_unfiltered_consumer_is_bounded_by_its_place_too(self) -> None:
        plan = StreamPlan(BUDGET)
        plan.add_look(look(10), 0.0)
        base = plan.crossings.base
        plan.add_look(look(1000), 0.5)
        plan.crossings.add_sample(sample(delivered=1000, filters=()), base, 101, 0.1)
        assert not plan.crossings.hot and not plan.add_look(look(1100), 1.0) and plan.add_look(look(1101), 1.0)
        plan.crossings.add_sample(sample(delivered=1000), base, 101, 0.1)
        assert plan.crossings.hot == {KEY}

    @pytest.mark.parametrize("after", [look(5), look(200, created="u")], ids=["fewer messages", "created again"])
    def test_a_stream_that_was_replaced_makes_all_hot(self, after: StreamLook) -> None:
        plan = plan_with(room=math.inf)
        assert plan.add_look(after, 1.0) and plan.crossings.hot == {KEY}

    def test_idle_is_who_rests_on_a_stream_that_rests(self) -> None:
        plan = plan_with(room=101)
        assert plan.crossings.quiet and not plan.crossings.idle
        plan.crossings.add_sample(sample(), plan.crossings.base, 101, SETTLE_SECONDS)
        plan.read_at = [SETTLE_SECONDS] * 3
        assert plan.crossings.idle == {KEY} and not plan.crossings.quiet and plan.due(LOAD).level is Level.ALL
        plan.add_look(look(11), SETTLE_SECONDS + 1)
        assert not plan.crossings.idle and plan.crossings.quiet
        assert plan.due(LOAD).level is Level.QUIET and plan.due(LOAD).at == SETTLE_SECONDS + 2

    def test_a_sample_that_was_asked_for_before_the_stream_moved_proves_nothing(self) -> None:
        plan = plan_with(room=101)
        base = plan.crossings.base
        plan.add_look(look(11), 1.0)
        plan.crossings.add_sample(sample(), base, 101, 2 * SETTLE_SECONDS)
        assert not plan.crossings.idle

    def test_a_new_replica_takes_from_the_one_that_reads_what_is_idle(self) -> None:
        """Otherwise it would read each idle stream once a second for ten seconds after its start."""
        plan = plan_with(room=101)
        plan.crossings.add_sample(sample(), plan.crossings.base_of(look(10)), 101, 0.5)
        assert plan.crossings.idle == {KEY}

    @pytest.mark.parametrize("moves", ["the stream", "the consumer", "another look"])
    def test_what_was_seen_to_move_is_idle_only_once_it_has_settled_here(self, moves: str) -> None:
        plan = plan_with(room=101)
        if moves == "the stream":
            plan.add_look(look(11), 0.2)
        elif moves == "the consumer":
            plan.crossings.add_sample(sample(inflight=1), plan.crossings.base_of(look(10)), 101, 0.2)
        last = 11 if moves == "the stream" else 10
        seen = look(9) if moves == "another look" else look(last)
        plan.crossings.add_sample(sample(), plan.crossings.base_of(seen), 101, 0.5)
        assert not plan.crossings.idle

    def test_looks_prove_idle_consumers_until_the_stream_moves_or_is_not_read_for_long(self) -> None:
        plan, one = plan_with(room=101), replace(member(), proof=SETTLE_SECONDS)
        plan.crossings.add_sample(sample(), plan.crossings.base, 101, SETTLE_SECONDS)
        plan.add_look(look(10), 30.0)
        assert newest_proof(one, {"S": plan.crossings.proof()}) == 30.0
        plan.add_look(look(11), 31.0)
        assert newest_proof(one, {"S": plan.crossings.proof()}) == 30.0
        plan = plan_with(room=101, at=SETTLE_SECONDS)
        plan.crossings.idle.add(KEY)
        plan.expire(SETTLE_SECONDS + MISSED_READINGS * BUDGET.max_interval)
        assert plan.crossings.idle
        plan.expire(SETTLE_SECONDS + MISSED_READINGS * BUDGET.max_interval + 0.1)
        assert not plan.crossings.idle

    def test_what_else_moves_it_makes_it_hot_until_it_is_read(self) -> None:
        plan = plan_with(room=101)
        assert plan.heat([KEY, ConsumerKey("S", "stranger")], 1.0) and plan.crossings.hot == {KEY}
        plan.crossings.add_sample(sample(), plan.crossings.base, 101, 1.1)
        assert not plan.crossings.hot
        plan.crossings.miss(KEY)
        assert (
            not plan.crossings.consumers and plan.interval(Level.ALL, LOAD) == 5.0 and plan.proof_interval(LOAD) == 1.0
        )
        plan.crossings.forget(KEY)
        assert plan.interval(Level.ALL, LOAD) == EMPTY_INTERVAL


class TestReceived:
    """Readings of other replicas postpone what they show, and nothing else."""

    @staticmethod
    def hot(*names: str) -> StreamPlan:
        plan = StreamPlan(BUDGET)
        plan.add_look(look(10), 0.0)
        for name in names:
            plan.crossings.add_sample(replace(sample(), key=ConsumerKey("S", name)), plan.crossings.base, 0, 0.0)
        for level in Level:
            plan.read_at[level] = 0.0
        plan.answered = True
        return plan

    @staticmethod
    def keys(*names: str) -> frozenset[ConsumerKey]:
        return frozenset(ConsumerKey("S", name) for name in names)

    def test_a_reading_of_all_that_are_hot_makes_the_next_one_due_an_interval_later(self) -> None:
        plan = self.hot("c", "d")
        plan.receive(self.keys("c", "d", "e"), 0.05, 0.001)
        assert plan.due(LOAD).at == pytest.approx(0.15)

    @pytest.mark.parametrize("took", [0.001, 0.2], ids=["quick", "slow"])
    def test_a_reading_that_lacks_one_of_them_postpones_nothing_however_often_it_comes(self, took: float) -> None:
        plan = self.hot("c", "d")
        for n in range(1, 40):
            plan.receive(self.keys("c", "e"), n / 10, took)
        assert plan.due(LOAD).at == pytest.approx(0.1)

    @pytest.mark.parametrize("slow", [False, True])
    def test_as_many_as_one_reading_shows_are_enough_where_they_are_hot_and_lists_are_slow(self, slow: bool) -> None:
        """Otherwise the sender reads no others: so many are listed where they are hot there too."""
        here = [f"b{n}" for n in range(SINGLES_LIMIT + 6)]
        others = [f"a{n}" for n in range(SINGLES_LIMIT)]
        plan = self.hot(*here)
        plan.listed_seconds = SLOW_LIST if slow else 0.0
        assert Level.HOT not in plan.covered(self.keys(*others))
        assert (Level.HOT in plan.covered(self.keys(*here[:SINGLES_LIMIT]))) is slow
        assert Level.HOT in plan.covered(self.keys(*here))


class TestSchedule:
    def test_intervals_by_level(self) -> None:
        plan = plan_with(room=101)
        assert [plan.interval(level, LOAD) for level in Level] == [0.1, 1.0, 5.0]
        limited = Load(factor=LIMITED_FACTOR)
        assert [plan.interval(level, limited) for level in Level] == [0.4, 4.0, 5.0]
        plan.woken = Level.HOT
        assert plan.interval(Level.ALL, LOAD) == 0.1
        plan.start(plan.due(LOAD), 1.0, LOAD)
        assert plan.woken is None
        plan.crossings.forget(KEY)
        assert plan.interval(Level.ALL, LOAD) == EMPTY_INTERVAL

    def test_a_consumer_is_planned_as_its_last_sample_asked_for_under_the_load_of_now(self) -> None:
        quiet, hot, slow = plan_with(room=101), plan_with(room=0), Load(factor=LIMITED_FACTOR, stretch=1.5)
        assert [plan.planned(KEY, LOAD) for plan in (quiet, hot)] == [1.0, 0.1]
        assert [plan.planned(KEY, slow) for plan in (quiet, hot)] == pytest.approx([6.0, 0.6])
        quiet.add_look(look(111), 3.9)
        assert quiet.crossings.hot == {KEY} and quiet.planned(KEY, slow) == pytest.approx(6.0)
        assert StreamPlan(BUDGET).planned(KEY, LOAD) == 1.0

    def test_another_number_of_consumers_is_listed_within_a_second(self) -> None:
        plan = plan_with(room=101)
        plan.crossings.forget(KEY)
        plan.add_look(look(10, consumers=2), 2.0)
        assert plan.due(LOAD).at == 1.0

    def test_the_server_has_its_share(self) -> None:
        plan = plan_with(room=0)
        plan.start(plan.due(LOAD), 1.0, LOAD)
        plan.finish(took=SERVER_BURST + 0.02, jitter=0.0)
        assert plan.due(LOAD).at == pytest.approx(1.4)
        plan.start(plan.due(LOAD), 1.4, LOAD)
        plan.finish(took=0.02, jitter=0.0)
        assert plan.due(LOAD).at == pytest.approx(1.8), "what was spent beyond it is not spent again"

    def test_one_answer_that_came_late_does_not_end_the_readings_for_a_while(self) -> None:
        """It took 50 ms on a busy machine: nothing was read for a second, and workers without `held` stood still."""
        plan = plan_with(room=0)
        for at, took in ((1.0, 0.001), (1.1, 0.04), (1.2, 0.001)):
            plan.start(plan.due(LOAD), at, LOAD)
            plan.finish(took, jitter=0.0)
            assert plan.due(LOAD).at == pytest.approx(at + BUDGET.min_interval)

    def test_what_the_link_takes_is_no_time_of_the_server(self) -> None:
        plan = plan_with(room=0)
        for at in (1.0, 1.3, 1.6):
            plan.start(plan.due(LOAD), at, LOAD)
            plan.finish(took=0.3, trip=0.299, jitter=0.0)
            assert plan.due(LOAD).at == pytest.approx(at + BUDGET.min_interval)
            assert plan.took(Level.ALL) == 0.3, "what others wait for"

    def test_what_may_have_crossed_a_mark_does_not_wait_for_what_the_last_list_cost(self) -> None:
        plan = plan_with(room=101)
        plan.start(Due(Level.ALL, 1.0, 0.0), 1.0, LOAD)
        plan.finish(took=SERVER_BURST + 0.02, jitter=0.0)
        plan.add_look(look(1000), 1.15)
        assert plan.due(LOAD).at <= 1.15
        plan.start(plan.due(LOAD), 1.15, LOAD)
        plan.finish(took=0.02, jitter=0.0)
        assert plan.due(LOAD).at == pytest.approx(1.8), "the next one waits for both"
        plan.crossings.hot.clear()
        plan.heat([KEY], 1.2)
        assert plan.due(LOAD).at == pytest.approx(1.8), "and is not early again"

    @given(steps=st.lists(st.tuples(st.floats(0.0, 0.5), st.booleans(), st.floats(0.0, 0.2)), min_size=1, max_size=40))
    def test_the_server_has_its_share_however_often_something_crosses(
        self, steps: list[tuple[float, bool, float]]
    ) -> None:
        """Each step: a pause, whether consumers may be above a mark then, and how long the next reading takes."""
        plan, now, began, spent, longest = plan_with(room=101), 0.0, None, 0.0, 0.0
        for pause, crosses, took in steps:
            now += pause
            if crosses:
                plan.crossings.hot.clear()
                plan.heat([KEY], now)
            now = max(now, plan.due(LOAD).at)
            began = now if began is None else began
            if spent:
                assert spent - longest - SERVER_BURST <= (now - began) * BUDGET.server_share + 1e-6
            plan.start(plan.due(LOAD), now, LOAD)
            plan.finish(took, jitter=0.0)
            spent, longest = spent + took, max(longest, took)

    def test_a_failed_try_is_repeated_later_each_time_and_is_no_interval(self) -> None:
        plan = plan_with(room=101)
        waits = []
        for _ in range(8):
            plan.start(plan.due(LOAD), 10.0, LOAD)
            plan.fail()
            waits.append(plan.due(LOAD).at - 10.0)
        assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
        assert plan.proof_interval(LOAD) <= 10.0

    def test_few_are_read_singly_and_many_by_a_list(self) -> None:
        plan = StreamPlan(BUDGET)
        plan.listed = 250
        for n in range(250):
            one = replace(sample(), key=ConsumerKey("S", f"c{n}"))
            plan.crossings.add_sample(one, plan.crossings.base, 0 if n < 3 else 101, 0.0)
        assert plan.singles(Level.HOT) == 3 and plan.singles(Level.QUIET) == 0 and plan.singles(Level.ALL) == 0
        plan.listed_seconds = SLOW_LIST
        assert plan.singles(Level.QUIET) == 64 and len(plan.names(Level.QUIET, 64)) == 64

    def test_what_does_not_fit_stretches_all_alike(self) -> None:
        plans = [plan_with(room=101) for _ in range(800)]
        load = load_of(plans, BUDGET, looks=10, look_interval=0.2, factor=1.0)
        assert load.stretch == pytest.approx(800 * 2 / 40)
        assert plans[0].proof_interval(load) == pytest.approx(load.stretch)

    def test_first_readings_take_their_turn_and_those_with_stored_members_a_better_one(self) -> None:
        stored, new = StreamPlan(BUDGET, born=1.0, consumed=True), StreamPlan(BUDGET, born=1.0)
        assert (stored.due(LOAD).at, stored.due(LOAD).lateness(11.0)) == (1.0, 11.0)
        assert (new.due(LOAD).at, new.due(LOAD).lateness(11.0)) == (1.0, 3.0)
        consumed = StreamPlan(BUDGET, born=1.0)
        consumed.add_look(look(consumers=1), 1.0)
        new.add_look(look(consumers=0), 1.0)
        assert consumed.due(LOAD).lateness(11.0) == 11.0 and new.due(LOAD).lateness(11.0) == 3.0
        stored.woken = new.woken = Level.HOT
        assert stored.interval(Level.ALL, LOAD) == 1.0 and new.interval(Level.ALL, LOAD) == 5.0

    def test_limits_of_what_was_never_read_follow_its_turn(self) -> None:
        plans = [StreamPlan(BUDGET, consumed=True) for _ in range(800)]
        load = load_of(plans, BUDGET, looks=10, look_interval=0.2, factor=1.0)
        assert load.stretch == pytest.approx(40) and plans[0].proof_interval(load) == pytest.approx(39)
        assert plans[0].proof_interval(LOAD) == 0.0  # its first reading is due at once

    def test_a_quiet_consumer_that_becomes_hot_is_not_stale_by_that(self) -> None:
        plan = plan_with(room=101)
        plan.start(plan.due(LOAD), 30.0, LOAD)
        plan.finish(0.0, 0.0)
        longest = BUDGET.max_interval  # beyond, not the budget made it late: the process stood still
        assert plan.proof_interval(LOAD) == pytest.approx(longest)
        plan.add_look(look(200), 40.0)
        assert plan.crossings.hot and plan.proof_interval(LOAD) == pytest.approx(longest)
        for n in range(10):
            plan.start(plan.due(LOAD), 40.0 + n / 10, LOAD)
        assert plan.proof_interval(LOAD) < 0.2

    def test_a_hot_reading_does_not_wait_behind_the_lateness_of_a_stretched_one(self) -> None:
        plan, others = plan_with(room=101), plan_with(room=101)
        for one in (plan, others):  # both are overdue as a whole
            one.crossings.idle.add(KEY)
        plan.add_look(look(200), 20.0)
        assert plan.crossings.hot and plan.due(LOAD).at < 20.0
        assert plan.due(LOAD).lateness(20.5) == pytest.approx(6.0)
        assert others.due(LOAD).lateness(20.5) == pytest.approx(4.1)

    def test_streams_without_consumers_take_no_more_than_their_share(self) -> None:
        plans = [StreamPlan(BUDGET) for _ in range(600)]
        for plan in plans:
            plan.answered = True
        load = load_of(plans, BUDGET, looks=10, look_interval=0.2, factor=1.0)
        assert 600 * 2 / plans[0].interval(Level.ALL, load) == pytest.approx(4.0) and load.stretch == 1.0


class Server:
    """One stream with consumers of its subjects, whose numbers change as those of a real one."""

    def __init__(self, consumers: int) -> None:
        self.last, self.first, self.created = 0, 1, "t0"
        self.pending = [0] * consumers
        self.inflight = [0] * consumers
        self.delivered = [0] * consumers
        self._born = count(1)

    def arrive(self, consumer: int | None, n: int) -> None:
        """Messages for one consumer, or (None) for nobody who is watched."""
        self.last += n
        if consumer is not None:
            self.pending[consumer] += n

    def deliver(self, consumer: int, n: int) -> None:
        n = min(n, self.pending[consumer])
        self.pending[consumer] -= n
        self.inflight[consumer] += n
        self.delivered[consumer] = self.last - self.pending[consumer]

    def ack(self, consumer: int, n: int) -> None:
        self.inflight[consumer] -= min(n, self.inflight[consumer])

    def purge(self) -> None:
        self.first, self.pending = self.last + 1, [0] * len(self.pending)

    def look(self) -> StreamLook:
        return StreamLook("S", self.created, self.first, self.last, self.last - self.first + 1, ("s",))

    def sample(self, n: int, at: float) -> Sample:
        config = ConsumerConfig(filters=(f"s.{n}",), max_ack_pending=1000)
        return Sample(
            key(n), "t", config, Now(at, at), self.pending[n], self.inflight[n], 0, 0, self.delivered[n], 0, 0, 0
        )


def key(n: int) -> ConsumerKey:
    return ConsumerKey("S", f"c{n}")


POLICY = Policy(pending=PendingRule(5, 20, 40), inflight=InflightRule(10, 20, 30))
LOOK, READ = BUDGET.look_interval(1, 0.001), 0.02
"""Seconds between two looks, and that a reading takes."""
MOVES = st.lists(
    st.tuples(
        st.sampled_from(["arrive", "other", "deliver", "ack", "purge", "wait"]),
        st.integers(0, 2),
        st.integers(1, 60),
        st.floats(0, 3.0),
    ),
    max_size=40,
)


class Simulation:
    """The plan reads a simulated server; each consumer's crossing is noted with the time it came."""

    def __init__(self) -> None:
        self.server, self.plan = Server(3), StreamPlan(BUDGET)
        self.now, self.looked = 0.0, -math.inf
        self.above: dict[tuple[int, str], float] = {}
        """When a value came above its mark that no sample has shown yet."""
        self.worst = 0.0
        self.idle_wrong = False
        self.plan.listed = 3
        self.run(0.0)

    def run(self, seconds: float) -> None:
        """Let time pass: looks, and readings as they are due."""
        end = self.now + seconds
        while True:
            due = self.plan.due(LOAD)
            look_at = self.looked + LOOK
            at = max(self.now, min(due.at, look_at))
            if at > end:
                self.now = end
                return
            self.now = at
            if look_at <= at:
                self.looked = at
                self.plan.add_look(self.server.look(), at)
            elif due.at <= at:
                self.read(due)

    def read(self, due: Due) -> None:
        n = self.plan.singles(due.level)
        names = self.plan.names(due.level, n) if n else tuple(key(n) for n in range(3))
        self.plan.start(due if n else replace(due, level=Level.ALL), self.now, LOAD)
        base, asked = self.plan.crossings.base, self.now
        samples = [self.server.sample(int(name.consumer[1:]), self.now) for name in names]
        self.now += READ
        self.plan.add_look(self.server.look(), self.now)
        self.plan.finish(READ * BUDGET.server_share, 0.5)
        for one in samples:
            n = int(one.key.consumer[1:])
            reading = Reading(one.key, one.at, one.pending, one.inflight, latency=0.0, drain=None, cap=1000)
            self.plan.crossings.add_sample(
                one, base, headroom(evaluated(Member(one.key, POLICY, reading=reading))), asked
            )
            for what in ("pending", "inflight"):
                if (since := self.above.pop((n, what), None)) is not None:
                    self.worst = max(self.worst, asked - since)
        self.note()

    def note(self) -> None:
        """Note what is above a mark, and whether anybody counts as idle who is not."""
        for n in range(3):
            values = {"pending": (self.server.pending[n], 20), "inflight": (self.server.inflight[n], 30)}
            for what, (value, mark) in values.items():
                if value > mark:
                    self.above.setdefault((n, what), self.now)
                else:
                    self.above.pop((n, what), None)
            moved = self.server.pending[n] or self.server.inflight[n]
            unseen = self.server.look() != self.plan.crossings.look
            self.idle_wrong |= bool(moved) and key(n) in self.plan.crossings.idle and not unseen

    def move(self, what: str, n: int, amount: int) -> None:
        match what:
            case "arrive":
                self.server.arrive(n, amount)
            case "other":
                self.server.arrive(None, amount)
            case "deliver":
                self.server.deliver(n, amount)
            case "ack":
                self.server.ack(n, amount)
            case "purge":
                self.server.purge()
        self.note()


@given(MOVES)
def test_no_crossing_goes_unread_for_longer_than_the_bound(moves: list[tuple[str, int, int, float]]) -> None:
    world = Simulation()
    for what, n, amount, wait in moves:
        world.move(what, n, amount)
        world.run(wait)
    world.run(5.0)
    bound = BUDGET.min_interval + LOOK + 2 * READ
    assert world.worst <= bound + 1e-6
    assert all(world.now - since <= bound for since in world.above.values())
    assert not world.idle_wrong


@given(
    st.lists(st.tuples(st.sampled_from(["hot", "quiet", "idle", "empty"]), st.integers(1, 4)), min_size=1, max_size=60),
    st.floats(2, 60),
    st.data(),
)
def test_no_stream_starves_and_all_stretch_alike(
    kinds: list[tuple[str, int]], rate: float, data: st.DataObject
) -> None:
    """The scheduler alone: whatever is planned, the most late first, at a budget of requests."""
    budget = Budget(0.1, 5.0, rate, 1.0)
    plans = []
    for kind, pages in kinds:
        plan = StreamPlan(budget)
        plan.add_look(look(1), 0.0)
        plan.listed = pages * 256
        if kind != "empty":
            plan.crossings.add_sample(sample(), plan.crossings.base, 0 if kind == "hot" else 101, 0.0)
        if kind == "idle":
            plan.crossings.idle.add(KEY)
        for level in Level:
            plan.read_at[level] = 0.0
        plans.append(plan)
    load = load_of(plans, budget, 0.0, 0.1, 1.0)
    now, free, gaps = 0.0, 0.0, [0.0] * len(plans)
    horizon = 20 * max(1.0, load.stretch)
    steps = 0
    while now < horizon and steps < 3000:
        steps += 1
        dues = [plan.due(load) for plan in plans]
        late = [n for n, due in enumerate(dues) if due.at <= now]
        if not late:
            now = max(free, min(due.at for due in dues))
            continue
        n = max(late, key=lambda n: dues[n].lateness(now))
        plan, due = plans[n], dues[n]
        singles = plan.singles(due.level)
        interval = plan.interval(due.level, load)
        gaps[n] = max(gaps[n], (now - due.since) / interval)
        plan.start(due if singles else replace(due, level=Level.ALL), now, load)
        plan.finish(0.0, 0.0)
        now += ((singles or plan.pages) + 1) / rate  # the budget allows the next one
    longest = max((plan.pages + 1) / rate / budget.min_interval for plan in plans)
    assert max(gaps) <= 3 * (load.stretch + 1) + len(plans) * longest


def test_a_look_is_older_by_its_time_and_within_the_disorder_of_times_by_what_it_shows() -> None:
    plan = plan_with(room=math.inf, at=100.0, last=10)
    assert not plan.crossings.is_older(look(5), 101.5), "it is surely newer: the stream went back"
    assert plan.crossings.is_older(look(9), 100.5) and not plan.crossings.is_older(look(10), 99.5)
    assert not plan.crossings.is_older(look(1, created="u"), 99.5), "which of them is the older one does not show"
    assert plan.crossings.is_older(look(1, created="u"), 98.5) and plan.crossings.is_older(look(20), 98.5)


def test_the_requests_are_those_of_all_replicas_where_they_are_too_few() -> None:
    plans = [plan_with(room=0) for _ in range(4)]
    plenty = load_of(plans, replace(BUDGET, requests_per_second=1000), 10.0, 0.1, 1.0)
    assert own_rate(plenty, plans[:1], plans, (0.0, 10.0), BUDGET) == BUDGET.requests_per_second, "nobody counts"
    load = load_of(plans, BUDGET, 10.0, 0.1, 1.0)
    assert load.stretch == 2.0
    assert own_rate(load, plans, plans, (10.0, 10.0), BUDGET) == pytest.approx(50)
    assert own_rate(load, plans[:1], plans, (10.0, 10.0), BUDGET) == pytest.approx(20)
    assert own_rate(load, plans[1:], plans, (0.0, 10.0), BUDGET) == pytest.approx(30)
    assert own_rate(load, [], plans, (0.0, 10.0), BUDGET) == pytest.approx(LEAST_SHARE * 50)
