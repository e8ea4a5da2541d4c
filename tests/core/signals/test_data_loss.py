"""Losses against a simulated stream that knows the true number, for every kind of stream, filter and time of the looks.

Never more is counted than was lost; where sequences show it, every lost message is counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.core.model.samples import ConsumerConfig, Retention, Sample, StreamLook
from nats_backpressure.core.signals import data_loss
from nats_backpressure.core.signals.data_loss import LossAccount
from nats_backpressure.core.signals.incarnations import mark
from nats_backpressure.core.signals.loss_checkpoints import CHECKPOINTS
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from tests.fakes.observer import FakeJetStream
from tests.support.exploring import examples

FILTERS: dict[str, tuple[str, ...]] = {
    "all": (),
    "covering": ("s.>",),
    "a": ("s.a",),
    "b": ("s.b",),
    "ab": ("s.a", "s.b"),
}
BY_SEQUENCE = ("all", "covering")
KINDS: dict[str, Retention] = {
    "without limits": Retention(),
    "max_msgs": Retention(max_msgs=8),
    "max_msgs, discard new": Retention(max_msgs=8, discards_old=False),
    "max_age": Retention(max_age=3.0),
    "max_age and max_msgs": Retention(max_age=3.0, max_msgs=8),
    "per subject": Retention(per_subject=2),
    "per subject and max_age": Retention(per_subject=2, max_age=3.0),
    "per subject, never reached, and max_msgs": Retention(per_subject=100, max_msgs=8),
    "life times": Retention(life_times=True),
    "life times and max_age": Retention(life_times=True, max_age=3.0),
    "rollup and max_msgs": Retention(rollup=True, max_msgs=8),
    "work queue": Retention("workqueue"),
    "work queue with max_msgs": Retention("workqueue", max_msgs=8),
    "interest": Retention("interest"),
    "interest with max_age": Retention("interest", max_age=3.0),
}


def keys(names: Any = FILTERS) -> list[ConsumerKey]:
    return [ConsumerKey("S", name) for name in names]


@dataclass
class World:
    """A stream with consumers of every kind, each accounted for; a reading is a sample of each and then a look."""

    retention: Retention
    names: tuple[str, ...] = tuple(FILTERS)
    fake: FakeJetStream = field(default_factory=FakeJetStream)
    losses: dict[str, LossAccount] = field(default_factory=dict)
    before: dict[str, int] = field(default_factory=dict)
    """Counted by processes that were before the present one."""
    held: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fake.add_stream("S", ("s.>",), retention=self.retention)
        self.look = self.fake.look("S")
        for name in self.names:
            self.fake.add_consumer(ConsumerKey("S", name), ConsumerConfig(filters=FILTERS[name], max_ack_pending=100))
            self.losses[name], self.before[name], self.held[name] = LossAccount(), 0, []

    def read(self, *between: tuple[Any, ...]) -> None:
        """One reading; what happens `between` happens after the samples and before the look."""
        samples = {name: self.fake.sample(ConsumerKey("S", name)) for name in self.names}
        for op in between:
            self.do(*op)
        look = self.look = self.fake.look("S")
        for name, sample in samples.items():
            self.losses[name].add_sample(sample, look)

    def read_singly(self) -> None:
        """Each consumer by itself, after the look that all of them use."""
        for name in self.names:
            self.losses[name].add_sample(self.fake.sample(ConsumerKey("S", name)), self.look, early=True)

    def do(self, op: str, *args: Any) -> None:
        match op:
            case "singly":
                self.read_singly()
            case "look":
                self.look = self.fake.look("S")
            case "publish":
                ttl = 2.0 if self.retention.life_times and args[2] else None
                self.fake.publish("S", args[0], args[1], rollup=self.retention.rollup and args[2], ttl=ttl)
            case "work":
                name, n, acked = args[0], args[1], args[2]
                self.held[name] += self.fake.pull(ConsumerKey("S", name), n)
                done, self.held[name] = self.held[name][:acked], self.held[name][acked:]
                self.fake.ack(ConsumerKey("S", name), *done)
            case "again":
                self.fake.time_out(ConsumerKey("S", args[0]))
            case "wait":
                self.fake.clock.advance(args[0])
            case "limit":
                kept = self.fake.all["S"].retention
                self.fake.update_stream("S", Retention(kept.policy, kept.max_age, args[0]))
            case "delete":
                first = self.fake.look("S").first_seq
                self.fake.delete_message("S", first + args[0])
            case "purge":
                self.fake.purge("S", args[0], args[1])
            case "restart":
                for name, losses in self.losses.items():
                    self.before[name] += losses.total
                    self.losses[name] = LossAccount(losses.account)

    def counted(self, name: str) -> int:
        return self.before[name] + self.losses[name].total

    def lost(self, name: str) -> int:
        return self.fake.of(ConsumerKey("S", name)).lost

    def withdrawn(self, name: str) -> int:
        return self.fake.of(ConsumerKey("S", name)).withdrawn


SUBJECTS = st.sampled_from(["s.a", "s.b", "s.c"])
ORDINARY = st.one_of(
    st.tuples(st.just("publish"), SUBJECTS, st.integers(1, 12), st.booleans()),
    st.tuples(st.just("work"), st.sampled_from(list(FILTERS)), st.integers(1, 6), st.integers(0, 6)),
    st.tuples(st.just("wait"), st.sampled_from([0.1, 1.0, 2.9, 4.0])),
)
AGAIN = st.tuples(st.just("again"), st.sampled_from(list(FILTERS)))
RESTART = st.just(("restart",))
SINGLY = st.sampled_from([("singly",), ("look",)])
"""A consumer that lists lack is read by itself, while looks at the stream come with the lists."""
LIMIT = st.tuples(st.just("limit"), st.sampled_from([2, 5, 20]))
BY_HAND = st.one_of(
    st.tuples(st.just("delete"), st.integers(0, 4)),
    st.tuples(st.just("purge"), st.sampled_from([0, 0, 2]), st.sampled_from([">", "s.a", "s.c"])),
)


def runs(*ops: Any) -> Any:
    """Readings, with what happens before each, and inside it between the samples and the look."""
    step = st.one_of(ORDINARY, ORDINARY, *ops)
    return st.lists(st.tuples(st.lists(step, max_size=4), st.lists(ORDINARY, max_size=1)), min_size=1, max_size=15)


def play(world: World, run: Any) -> None:
    for ops, between in run:
        for op in ops:
            world.do(*op)
        world.read(*between)


TOGETHER = settings(max_examples=examples(50, most=2500, why="4 ms each, and all kinds share a strategy"))


@pytest.mark.parametrize("kind", KINDS)
@TOGETHER
@given(run=runs(AGAIN, RESTART, SINGLY))
def test_never_more_is_counted_than_was_lost(kind: str, run: Any) -> None:
    world = World(KINDS[kind])
    world.read()
    for step in run:
        play(world, [step])
        for name in world.names:
            assert world.counted(name) <= world.lost(name), name


OTHERS = st.tuples(st.just("publish"), st.just("t.x"), st.integers(1, 12), st.booleans())
"""Messages of a subject that the stream does not show."""


@pytest.mark.parametrize("kind", KINDS)
@TOGETHER
@given(run=runs(AGAIN, RESTART, SINGLY, OTHERS))
def test_where_sources_bring_messages_of_other_subjects_those_are_lost_by_nobody(kind: str, run: Any) -> None:
    world = World(replace(KINDS[kind], mixed=True))
    world.read()
    for step in run:
        play(world, [step])
        for name in world.names:
            assert world.counted(name) <= world.lost(name), name


@pytest.mark.parametrize("kind", KINDS)
@TOGETHER
@given(before=st.lists(st.one_of(ORDINARY, OTHERS), max_size=8), run=runs(AGAIN, RESTART, SINGLY))
@example(
    before=[("publish", "t.x", 1, False)],
    run=[
        ([("publish", "s.a", 1, False)], []),
        ([("wait", 0.1), ("publish", "s.a", 1, False)], []),
        ([], [("wait", 2.9)]),
        ([], []),
    ],
)
def test_messages_of_subjects_that_the_stream_had_earlier_are_lost_by_nobody(
    kind: str, before: list[Any], run: Any
) -> None:
    world = World(KINDS[kind])
    for op in before:
        world.do(*op)
    world.read()
    for step in run:
        play(world, [step])
        for name in world.names:
            assert world.counted(name) <= world.lost(name), name


@pytest.mark.parametrize("kind", ["without limits", "max_msgs", "max_age", "work queue with max_msgs"])
@TOGETHER
@given(run=runs(LIMIT))
def test_changed_limits_invent_nothing(kind: str, run: Any) -> None:
    world = World(KINDS[kind])
    world.read()
    play(world, run)
    for name in world.names:
        assert world.counted(name) <= world.lost(name), name


@pytest.mark.parametrize("kind", ["without limits", "max_msgs, discard new", "work queue", "interest"])
@TOGETHER
@given(run=runs(AGAIN, RESTART, BY_HAND, SINGLY))
def test_where_nothing_is_ever_dropped_nothing_is_lost(kind: str, run: Any) -> None:
    world = World(KINDS[kind])
    world.read()
    for step in run:
        play(world, [step])
        assert not any(losses.losing for losses in world.losses.values())
        assert {world.counted(name) for name in world.names} == {0}


@TOGETHER
@given(before=runs(AGAIN, BY_HAND), after=runs(AGAIN, RESTART))
@example(
    before=[([("publish", "s.b", 2, True)], []), ([("publish", "s.a", 4, True)], []), ([("delete", 1)], [])],
    after=[([], []), ([], [])],
)
@example(
    before=[
        ([], [("publish", "s.a", 1, True)]),
        ([], [("publish", "s.b", 1, True)]),
        ([("publish", "s.a", 2, False)], []),
        ([("delete", 0)], []),
    ],
    after=[([], [("publish", "s.b", 2, True)]), ([], [])],
)
def test_what_was_deleted_before_anything_was_dropped_is_not_counted(before: Any, after: Any) -> None:
    """Deleting by hand leaves holes, in sequences and in what waits; what is dropped later is counted without them."""
    world = World(Retention(max_msgs=10_000))
    world.read()
    play(world, before)
    world.read()
    world.read()
    world.do("limit", 4)
    play(world, after)
    for name in world.names:
        assert world.counted(name) <= world.lost(name), name


@pytest.mark.parametrize("kind", ["max_msgs", "max_age", "per subject and max_age"])
@TOGETHER
@given(run=runs(RESTART, BY_HAND))
def test_at_most_the_messages_deleted_by_an_operator_are_counted_beside_the_lost_ones(kind: str, run: Any) -> None:
    world = World(KINDS[kind])
    world.read()
    play(world, run)
    for name in world.names:
        assert world.counted(name) <= world.lost(name) + world.withdrawn(name), name


@pytest.mark.parametrize("kind", ["max_msgs", "max_age", "max_age and max_msgs"])
@TOGETHER
@given(run=runs(RESTART))
@example(  # the first message goes between a sample and its look, and the consumer is past it by the next sample
    run=[
        ([("publish", "s.a", 1, False)], [("wait", 2.9)]),
        ([("publish", "s.a", 1, False)], [("wait", 0.1)]),
        ([("work", "all", 1, 0)], []),
    ]
)
def test_of_the_whole_stream_every_lost_message_is_counted(kind: str, run: Any) -> None:
    world = World(KINDS[kind])
    world.read()
    play(world, run)
    world.read()
    world.read()
    world.read()
    for name in BY_SEQUENCE:
        assert world.counted(name) == world.lost(name), name


Step = tuple[tuple[str, Any], int, int, int]
"""What changes: the consumer's filter, or the kind, creation time or subjects of the stream; and messages that arrive,
go and are delivered."""
changes = st.one_of(
    st.just(("nothing", None)),
    st.tuples(st.just("filter"), st.sampled_from(["all", "a"])),
    st.tuples(st.just("kind"), st.sampled_from(["without limits", "max_msgs", "work queue"])),
    st.tuples(st.just("created"), st.sampled_from(["then", "later"])),
    st.tuples(st.just("subjects"), st.sampled_from([("s.>",), ("s.a",)])),
)
steps = st.lists(st.tuples(changes, *[st.integers(0, 6)] * 3), min_size=3, max_size=15)


def accounts(steps: list[Step]) -> list[tuple[int, bool, bool, object]]:
    """What is counted after each step."""
    losses, fake, counted = LossAccount(), FakeJetStream(), []
    fake.add_stream("S", ("s.>",))
    fake.add_consumer(keys()[0], ConsumerConfig())
    first, last, given = 1, 0, 0
    now: dict[str, Any] = {"filter": "a", "kind": "max_msgs", "created": "then", "subjects": ("s.>",)}
    for (what, value), arrived, gone, delivered in steps:
        now[what] = value
        last += arrived
        first = min(last + 1, first + gone)
        given = min(last, given + delivered)
        sample = replace(
            fake.sample(keys()[0]),
            config=ConsumerConfig(filters=FILTERS[now["filter"]]),
            pending=last - given,
            delivered_stream=given,
            delivered_consumer=given,
        )
        held = last - first + 1
        look = StreamLook("S", now["created"], first, last, held, now["subjects"], retention=KINDS[now["kind"]])
        losses.add_sample(sample, look)
        counted.append((losses.total, losses.losing, losses.purged, losses.account))
    return counted


@given(steps)
def test_what_is_computed_only_where_it_may_have_changed_is_never_out_of_date(steps: list[Step]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_loss, "is_same_kind", lambda *one: False)
        expected = accounts(steps)
    assert accounts(steps) == expected


@pytest.mark.no_cover  # traced, it takes four times as long
def test_checkpoints_are_bounded() -> None:
    world = World(Retention(max_age=1e6), names=("a",))
    for _ in range(20 * CHECKPOINTS):
        world.do("publish", "s.a", 2, False)
        world.do("wait", 1.0)
        world.read()
        assert len(world.losses["a"]._checkpoints.points) <= CHECKPOINTS


def loses(retention: Retention, *ops: tuple[Any, ...], waiting: int = 40, filter_: str = "a") -> World:
    """One consumer with messages waiting, two readings, then what makes the stream lose them."""
    world = World(retention, names=(filter_,))
    world.do("publish", "s.a", waiting, False)
    world.read()
    world.read()
    for op in ops:
        world.do(*op) if op[0] != "read" else world.read()
    return world


def test_a_filtered_backlog_that_expires_is_lost_at_once_and_once() -> None:
    world = loses(Retention(max_age=60.0), ("wait", 61.0), ("read",))
    assert world.losses["a"].losing
    assert world.counted("a") == 40
    for _ in range(30):
        world.read()
        assert not world.losses["a"].losing
    assert world.counted("a") == 40


def test_a_filtered_backlog_that_another_subject_pushes_out_is_lost() -> None:
    world = loses(Retention(max_msgs=50), ("publish", "s.c", 200, False), ("read",))
    assert world.losses["a"].losing and world.counted("a") == 40


def test_a_filtered_backlog_goes_with_lower_limits() -> None:
    world = loses(Retention(max_msgs=50), ("limit", 5), ("read",), ("read",))
    assert world.counted("a") == 35


def test_a_stream_at_its_limit_loses_what_it_gets() -> None:
    world = loses(Retention(max_msgs=50), waiting=50)
    for _ in range(20):
        world.do("publish", "s.a", 25, False)
        world.read()
        assert world.fake.sample(ConsumerKey("S", "a")).pending == 50
    world.read()
    assert 300 <= world.counted("a") <= world.lost("a") == 500  # each window of 50 costs a reading more


def test_a_slow_eviction_is_counted_to_the_last_message_that_was_seen() -> None:
    world = World(Retention(max_age=100.0), names=("a",))
    for _ in range(300):
        world.do("publish", "s.a", 1, False)
        world.do("publish", "s.c", 3, False)
        world.do("wait", 1.0)
        world.read()
    world.do("wait", 101.0)
    world.read()
    world.read()
    assert 250 <= world.counted("a") <= world.lost("a") == 300


def test_a_loss_while_nobody_looked_is_counted_once() -> None:
    for filter_ in ("a", "all"):
        world = loses(Retention(max_age=60.0), ("restart",), ("wait", 61.0), ("read",), ("read",), filter_=filter_)
        assert world.counted(filter_) == 40, filter_
        world.do("restart")
        world.read()
        world.read()
        assert world.counted(filter_) == 40, filter_


def test_holes_are_not_lost() -> None:
    for filter_ in FILTERS:
        world = World(Retention(max_age=60.0), names=(filter_,))
        world.do("publish", "s.a", 30, False)
        world.do("publish", "s.b", 30, False)
        world.read()
        for seq in range(11, 21):
            world.fake.delete_message("S", seq)
        for _ in range(3):
            world.read()
        world.do("wait", 61.0)
        for _ in range(3):
            world.read()
        assert world.counted(filter_) == world.lost(filter_) == {"a": 20, "b": 30}.get(filter_, 50), filter_


def test_a_worker_that_gets_all_there_is_loses_nothing_beside_holes() -> None:
    for filter_ in BY_SEQUENCE:
        world = World(Retention(max_msgs=40), names=(filter_,))
        world.do("publish", "s.a", 10, False)
        world.do("publish", "s.b", 10, False)
        world.do("purge", 0, "s.b")
        for _ in range(20):
            world.do("work", filter_, 100, 100)
            world.read()
            world.do("publish", "s.a", 10, False)
            world.do("publish", "s.b", 3, False)
        assert world.counted(filter_) == world.lost(filter_) == 0
        assert not world.losses[filter_].losing


def test_a_limit_per_subject_that_is_never_reached_hides_no_loss() -> None:
    for filter_ in ("a", "all"):
        ops = [("publish", "s.c", 25, False), ("read",), ("publish", "s.c", 25, False), ("read",), ("read",)]
        world = loses(Retention(per_subject=1000, max_msgs=50), *ops, filter_=filter_)
        assert 40 <= world.counted(filter_) <= world.lost(filter_), filter_


def test_messages_whose_own_life_time_ends_are_lost_wherever_they_stand() -> None:
    for filter_ in ("a", "all"):
        world = World(Retention(life_times=True), names=(filter_,))
        world.do("publish", "s.c", 5, False)
        world.do("publish", "s.a", 40, True)
        world.read()
        world.read()
        world.do("wait", 3.0)
        world.read()
        assert world.losses[filter_].losing
        world.read()
        assert world.counted(filter_) == world.lost(filter_) == 40, filter_


def test_a_purge_while_nobody_looked_is_no_loss() -> None:
    for filter_ in ("a", "all"):
        world = loses(Retention(max_age=60.0), ("restart",), ("purge", 0, ">"), ("read",), ("read",), filter_=filter_)
        assert world.counted(filter_) == 0, filter_


def test_a_purge_between_the_sample_and_the_look_is_no_loss() -> None:
    for filter_ in ("a", "all"):
        world = loses(Retention(max_age=60.0), filter_=filter_)
        world.read(("purge", 0, ">"))
        assert not world.losses[filter_].losing
        world.read()
        assert world.losses[filter_].purged
        world.read()
        assert world.counted(filter_) == 0, filter_


def test_a_consumer_that_is_read_by_itself_loses_what_it_loses() -> None:
    for filter_ in ("a", "all"):
        world = World(Retention(max_age=60.0), names=(filter_,))
        world.do("publish", "s.a", 40, False)
        for wait in (0.1, 0.1, 61.0, 0.1, 0.1):
            world.do("wait", wait)
            world.do("look")
            world.read_singly()
            world.read_singly()
        assert world.counted(filter_) == 40, filter_


@pytest.mark.parametrize(("told_later", "counted"), [(True, 40), (False, 0)])
def test_an_account_of_another_life_counts_for_nothing(told_later: bool, counted: int) -> None:
    """But that of this life does, also where its creation was told a moment later."""
    world = loses(Retention(max_age=60.0))
    account = world.losses["a"].account
    assert account is not None
    world.losses["a"] = LossAccount(replace(account, kind=account.kind + 1 if told_later else mark("another")))
    world.do("wait", 61.0)
    world.read()
    world.read()
    assert world.counted("a") == counted


def test_a_consumer_that_started_with_the_last_messages_loses_no_more_than_waited() -> None:
    config = ConsumerConfig(last_per_subject=True)
    retention = Retention(max_msgs=100)
    account = LossAccount()
    for n, first in enumerate((1, 101, 201)):
        sample = Sample(ConsumerKey("S", "c"), "one", config, Now(n, n), 5, 0, 0, 0, 0, 0, 0, 0)
        look = StreamLook("S", "then", first, first + 99, 100, ("s.>",), retention=retention)
        account.add_sample(sample, look)
    assert account.total <= 10
