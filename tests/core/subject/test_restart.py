"""A restart at any time: a latch stays until there is evidence that could have set it."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.core.signals.tracker import ConsumerTracker
from nats_backpressure.policy.schema import AdmissionRule, AlertRule, Override, PendingRule, Policy, When
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Diagnosis, Status
from tests.core.signals.test_tracker import KEY, Consumer
from tests.simulations.consumer_life import EVERY, QUIET, Life, Step, nothing, steady, work
from tests.support.exploring import examples


def slow_samples(consumer: Consumer) -> None:
    """Acks that took 8 s, and always something in flight."""
    for _ in range(3):
        consumer.track.ack_seen(8.0, 1, Now(consumer.at, consumer.at))
    work(3)(consumer)


def redelivered(consumer: Consumer) -> None:
    """A dead worker's messages come again every other second, and nobody acknowledges them."""
    consumer.ack_wait = 2.0
    if round(consumer.at / EVERY) % 11 == 0:
        consumer.given += 5
        consumer.last_delivery = consumer.at


def backlog(n: int, inflight: int = 0, waiting: int = 0, cap: int = 10_000) -> Step:
    def step(consumer: Consumer) -> None:
        consumer.cap, consumer.waiting = cap, waiting
        consumer.publish(n)
        if inflight:
            consumer.deliver(inflight)

    return step


@dataclass
class Way:
    """One way to be active or a warning: how it begins, what goes on all the time, and the reasons at least."""

    why: str
    begin: Step
    each: Step = nothing
    policy: Policy = QUIET
    reasons: tuple[str, ...] = ()
    falls: int = 1


def alert(when: When, seconds: float = 0.0) -> Policy:
    return replace(QUIET, alerts=(AlertRule("one", when, for_seconds=seconds),))


NO_DRAIN = replace(QUIET, drain_seconds=replace(QUIET.drain_seconds, overload=1e6))
NOBODY = When(diagnosis=Diagnosis.NOBODY_PULLING)
HUNG = ("latency_p95", "stalled")
CAPPED = ("pending", "inflight", *HUNG, "cap_reached")
SHEDS = replace(QUIET, admission=AdmissionRule(mode="adaptive", floor=0.05))

WAYS = [
    Way("pending", backlog(1500), work(100), NO_DRAIN, ("pending",)),
    Way("pending alone", backlog(20_000), work(100), reasons=("pending", "drain")),
    Way("drain", backlog(1500), work(10), reasons=("pending", "drain")),
    Way("in flight", backlog(600, 600), reasons=("inflight", *HUNG)),
    Way("a stall", backlog(20, 20), reasons=HUNG),
    Way("samples", backlog(20, 20), slow_samples, reasons=("latency_p95",)),
    Way("nobody pulls", backlog(1500), reasons=("pending", "nobody_pulling")),
    Way("nobody pulls, a few in flight", backlog(1500, 3), reasons=("pending", *HUNG, "nobody_pulling")),
    Way("the server is stuck", backlog(1500, waiting=1), reasons=("pending", "server_stuck")),
    Way("the cap is reached", backlog(1500, 20, cap=20), reasons=CAPPED),
    Way("a small cap is hung", backlog(1500, 5, cap=5), reasons=CAPPED),
    Way("a small cap is hung, and its messages come again", backlog(1500, 5, cap=5), redelivered, reasons=CAPPED),
    Way("an alert on pending", backlog(500), policy=alert(When(pending_above=400))),
    Way("an alert on a diagnosis", backlog(50), policy=alert(NOBODY)),
    Way("an alert that pends", backlog(50), policy=alert(NOBODY, 600.0)),
    Way("an alert on latency", backlog(20, 20), policy=alert(When(latency_p95_above_ms=4000)), reasons=HUNG),
    Way("an override", nothing, policy=replace(QUIET, override=(Override("reject", 1e10),)), reasons=("override",)),
    Way(
        "an override over a backlog",
        backlog(1500),
        policy=replace(QUIET, override=(Override("open", 1e10),)),
        reasons=("pending", "nobody_pulling", "override"),
    ),
    Way("a share is shed", backlog(20_000), work(100), SHEDS, ("pending", "drain", "shedding"), falls=2),
]


def started(way: Way) -> Life:
    life = Life(way.policy)
    life.see()
    way.begin(life.consumer)
    life.watch(20.0, way.each)
    assert set(way.reasons) <= set(life.stored.reasons)
    return life


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.why)
@pytest.mark.parametrize("down", [0.5, 45.0], ids=["soon", "late"])
@pytest.mark.no_cover  # traced, it takes four times as long
def test_a_restart_without_a_change_publishes_nothing(way: Way, down: float) -> None:
    life = started(way)
    published, shown = list(life.world.published), life.shown
    for _ in range(2):
        life.restart(down)
        life.watch(15.0, way.each)
        assert life.world.published == published
        assert life.shown == shown


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.why)
def test_what_is_calm_after_a_restart_is_published_once(way: Way) -> None:
    life = started(way)
    before, was = list(life.world.published), life.status
    life.restart()
    consumer = life.consumer
    consumer.deliver(consumer.last - max(consumer.delivered, consumer.first - 1))
    consumer.ack(consumer.inflight)
    consumer.waiting = 1
    life.policy = life.world.policy = replace(life.policy, override=())
    life.watch(20.0)
    after = life.world.published[len(before) :]
    assert life.status is Status.INACTIVE
    assert after.count("recovery") == (way.falls if was > Status.INACTIVE else 0)
    assert set(after) <= {"recovery", "alert_resolved"}
    assert not [one for one in life.stored.alerts if one.state != "resolved"]


def test_a_worker_that_comes_back_during_a_restart_ends_what_was_diagnosed() -> None:
    life = started(next(way for way in WAYS if way.why == "nobody pulls"))
    life.restart()
    life.watch(12.0, lambda consumer: (consumer.waiting, work(50)(consumer))[1])
    assert "nobody_pulling" not in life.stored.reasons
    assert life.world.published[-1] == "recovery" or "drain" in life.stored.reasons


@pytest.mark.parametrize("waits", [0, 50], ids=["nothing waits", "a few wait"])
def test_a_recovery_to_inactive_names_no_cause_that_counts_no_more(waits: int) -> None:
    life = started(next(way for way in WAYS if way.why == "nobody pulls"))
    life.consumer.deliver(1500 - waits)
    life.consumer.ack(1500 - waits)
    life.watch(5.0)
    assert [(event.now, event.reasons) for event in life.world.stream[-1:]] == [(Status.INACTIVE, ())]
    assert life.stored.reasons == ()


def test_what_was_diagnosed_goes_on_being_counted_without_the_time_in_which_nobody_looked() -> None:
    life = Life()
    backlog(1500)(life.consumer)
    before = life.watch(32.0).diagnosed_for
    life.restart(100.0)
    after = life.watch(6.0)
    assert after.diagnosis is Diagnosis.NOBODY_PULLING
    assert before - 31.0 < after.diagnosed_for < before + 6.0


DYNAMIC = replace(QUIET, pending=PendingRule(10, 100, 1000, overload_seconds=10, min=10, max=700))


def test_what_was_learnt_of_capacity_outlives_a_restart_of_a_calm_subject() -> None:
    life = Life(DYNAMIC)
    life.consumer.publish(200)
    before = life.watch(40.0, work(10)).capacity
    assert life.world.published == []
    life.restart()
    assert life.see().capacity == pytest.approx(before, rel=0.2)
    before = life.watch(40.0, work(40)).capacity
    life.consumer.deliver(200)
    life.consumer.ack(200)
    life.watch(31.0)
    life.restart()
    assert life.see().capacity == pytest.approx(before, rel=0.2)


def test_a_mark_that_follows_never_exceeds_its_maximum_known_or_not() -> None:
    life = Life(DYNAMIC)
    life.consumer.publish(800)
    life.see()
    member = life.world.state.members[KEY]
    assert member.marks is not None and member.marks.pending.overload == 700
    assert life.status is Status.WARNING


def test_history_that_is_left_out_is_so_after_a_restart_too() -> None:
    life = Life(replace(QUIET, count_backfill=False))
    life.consumer.track = ConsumerTracker(held=5000)
    life.consumer.publish(5000)
    life.watch(5.0)
    life.watch(31.0)
    life.restart()
    life.watch(15.0)
    assert life.world.published == []
    life.consumer.deliver(5000)
    life.consumer.ack(5000)
    life.consumer.publish(1500)
    life.see()
    assert life.world.published


def writes(life: Life, seconds: float, each: Step) -> int:
    before = life.world.revision
    life.watch(seconds, each)
    return life.world.revision - before


def now_and_then(consumer: Consumer) -> None:
    """A message every 3 s, in flight for a moment."""
    beat = round(consumer.at / EVERY) % 15
    if beat == 0:
        consumer.publish(1)
        consumer.deliver(1)
    elif beat == 1:
        consumer.ack(consumer.inflight)


def test_a_changed_diagnosis_is_stored_within_half_a_minute_and_not_one_by_one() -> None:
    life = Life()
    life.watch(5.0)
    assert writes(life, 300.0, now_and_then) <= 10
    life.consumer.ack(life.consumer.inflight)
    life.consumer.publish(50)
    life.watch(31.0 + 2.5)
    assert life.stored.diagnosis is Diagnosis.NOBODY_PULLING
    assert dict(life.stored.carried)[KEY].diagnosis is Diagnosis.NOBODY_PULLING


@pytest.mark.no_cover  # traced, it takes four times as long
def test_nothing_is_stored_of_a_subject_of_which_nothing_changes() -> None:
    life = Life()
    life.watch(40.0, work(5))
    assert writes(life, 600.0, work(5)) == 0


EVIDENCE = 13.0
"""Seconds after which what was seen since a restart is as good as what was seen before: the window of the rates, and
what a diagnosis and a release take."""


@settings(max_examples=examples(30, most=400, why="0.3 s each: two lives of minutes"))
@given(seed=st.integers(0, 2**32))
def test_a_run_that_is_cut_comes_to_what_the_whole_run_comes_to(seed: int) -> None:
    """The same load twice, steady for some time, then another; one life is cut short somewhere. Within what evidence
    takes, the cut one neither falls nor rises where the other did not."""
    chance = random.Random(seed)
    policy = chance.choice([QUIET, DYNAMIC, replace(QUIET, active_signals=1)])
    cap = chance.choice([5, 100, 10_000])
    loads: list[Step] = []
    for _ in range(chance.randint(2, 4)):
        loads += [steady(chance)] * round(chance.uniform(14.0, 30.0) / EVERY)
    cut, down = chance.randrange(len(loads) - 20), chance.choice([0.0, 1.0, 20.0])
    slack = round(EVIDENCE / EVERY)
    loads[cut:cut] = [loads[cut]] * slack  # what ends before there is evidence need not be seen
    whole, other = (Life(policy, Consumer(cap=cap)) for _ in range(2))
    was: list[Status] = []
    now: list[Status] = []
    for n, load in enumerate(loads):
        if n == cut:
            other.restart(down)
            whole.consumer.at += down  # nobody looked, and nothing moved
            whole.world.at = whole.consumer.at
        for life, result in ((whole, was), (other, now)):
            load(life.consumer)
            life.see()
            result.append(life.status)
    for n in range(cut, len(loads)):
        near = was[max(0, n - slack) : n + slack]
        assert min(near) <= now[n] <= max(near), f"{n - cut} samples after the cut: {now[n]!r}, else {set(near)}"
