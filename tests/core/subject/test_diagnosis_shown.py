"""The published diagnosis is never an outdated one."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import pairwise

import pytest

from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.signals.diagnosis import CALM_DIAGNOSES, SHORT_QUEUE
from nats_backpressure.core.subject.record_builder import reported_diagnosis
from nats_backpressure.core.subject.state import worst_member
from nats_backpressure.protocol.values import Diagnosis, Status
from tests.core.signals.test_tracker import Consumer
from tests.simulations.consumer_life import EVERY, Life, nothing, steady, work

pytestmark = pytest.mark.no_cover  # whole lives in memory: traced they take four times as long


def test_a_burst_into_an_idle_consumer_is_not_published_as_idle() -> None:
    life = Life()
    life.watch(5.0)
    assert life.stored.diagnosis is None or life.stored.diagnosis is Diagnosis.IDLE
    life.consumer.publish(1500)
    life.see()
    (event,) = life.world.stream
    assert (event.now, event.diagnosis) == (Status.WARNING, None)
    assert life.stored.diagnosis is None
    life.watch(15.0)
    assert life.world.stream[-1].diagnosis is Diagnosis.NOBODY_PULLING


def test_a_queue_that_suddenly_grows_faster_is_published_with_its_new_diagnosis() -> None:
    life = Life()
    life.consumer.publish(300)
    life.watch(5.0, lambda consumer: (consumer.deliver(10), consumer.ack(10))[1])
    assert life.see().lasting_diagnosis is Diagnosis.DRAINING
    life.consumer.publish(2000)
    life.see(0.1)
    rise = life.world.stream[-1]
    assert rise.now > rise.was and rise.diagnosis is None


def test_a_worker_with_gaps_is_healthy_all_the_time() -> None:
    life = Life()

    def batches(consumer: Consumer) -> None:
        consumer.publish(2)
        if round(consumer.at / EVERY) % 7 == 0:
            work(0)(consumer)
            n = consumer.last - consumer.delivered
            consumer.deliver(n)
            consumer.ack(n)

    life.watch(5.0, batches)
    assert {life.watch(EVERY, batches).diagnosis for _ in range(200)} == {Diagnosis.HEALTHY}


def test_a_restart_reports_nothing_until_it_has_seen_for_itself() -> None:
    life = Life()
    life.consumer.publish(1500)
    life.watch(20.0)
    life.restart()
    life.see()
    assert reported_diagnosis(worst_member(life.world.state.members.values()), life.status) is None


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_no_report_contradicts_what_it_stands_beside(seed: int) -> None:
    chance = random.Random(seed)
    life = Life(consumer=Consumer(cap=chance.choice([5, 100, 10_000])))
    readings: list[Reading] = []
    published = 0
    for _ in range(chance.randint(3, 8)):
        load = chance.choice([steady(chance), nothing, work(5)])
        life.consumer.publish(chance.choice([0, 0, 50, 1500, 20_000]))
        for _ in range(chance.randint(1, 60)):
            load(life.consumer)
            readings.append(life.see(chance.choice([0.1, EVERY, 1.0])))
            record, member = life.stored, worst_member(life.world.state.members.values())
            shown = reported_diagnosis(member, record.status)
            assert record.status is Status.INACTIVE or not {record.diagnosis, shown} & set(CALM_DIAGNOSES)
            for event in life.world.stream[published:]:
                _borne_out(event, readings)
            published = len(life.world.stream)
            if shown is not None:
                _fits(shown, readings)


def _borne_out(event: SubjectEvent, readings: list[Reading]) -> None:
    assert event.now is Status.INACTIVE or event.diagnosis not in CALM_DIAGNOSES
    if event.diagnosis is not None:
        _fits(event.diagnosis, readings)


def _few(odd: Iterable[bool]) -> bool:
    """A rule bears with one odd sample among those it takes up, and not all are taken up."""
    seen = list(odd)
    return sum(seen) <= max(1, len(seen) // 2)


def _fits(diagnosis: Diagnosis, readings: list[Reading]) -> None:
    """What the newest readings must show for this diagnosis."""
    now = readings[-1]
    recent = [r for r in readings if now.at.mono - r.at.mono <= 2.0]
    moved = any(a.delivered_consumer != b.delivered_consumer for a, b in pairwise(recent))
    match diagnosis:
        case Diagnosis.IDLE:
            assert _few(bool(r.pending or r.inflight) for r in recent)
            assert not moved
        case Diagnosis.NOBODY_PULLING | Diagnosis.SERVER_STUCK:
            assert _few(not r.pending for r in recent)
            assert not moved
        case Diagnosis.CAP_REACHED:
            assert _few((r.inflight or 0) < (r.cap or 0) for r in recent)
        case Diagnosis.FALLING_BEHIND:
            assert now.pending > SHORT_QUEUE
        case Diagnosis.DRAINING:
            assert now.pending < max(r.pending for r in readings)
