"""Each history is a list; the test names the expected result of every rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.core.model.samples import ConsumerConfig
from nats_backpressure.core.signals.diagnosis import RULES, diagnose
from nats_backpressure.core.signals.evidence import (
    MAX_POINTS,
    MIN_POINTS,
    SPACING,
    SPAN,
    Evidence,
    Point,
    ReplyFacts,
)
from nats_backpressure.core.signals.lasting_diagnosis import DiagnosisTracker
from nats_backpressure.protocol.values import Diagnosis

CAP_100 = ReplyFacts(ConsumerConfig(max_ack_pending=100))
CAP_1 = ReplyFacts(ConsumerConfig(max_ack_pending=1))
PUSH = ReplyFacts(ConsumerConfig(push=True))


class Row(NamedTuple):
    """at, pending, in flight, pulls waiting, deliveries, arrived, acked."""

    at: float
    pending: int
    inflight: int = 0
    waiting: int = 0
    deliveries: int = 0
    arrived: float = 0
    acked: float = 0


def evidence(rows: list[Row], facts: ReplyFacts) -> Evidence:
    seen = Evidence()
    for row in rows:
        seen.add(Point(*row), facts)
    return seen


def still(pending: int, inflight: int = 0, waiting: int = 0, until: int = 3) -> list[Row]:
    """The same numbers every second."""
    return [Row(at, pending, inflight, waiting) for at in range(until)]


@dataclass
class Case:
    """`says` are the rules that hold, besides `healthy`; the most severe is the verdict."""

    why: str
    rows: list[Row]
    says: str
    facts: ReplyFacts = field(default_factory=ReplyFacts)


TABLE = [
    Case("nothing at all", still(0), "idle"),
    Case("one message came and went", [Row(0, 0), Row(1, 0, 0, 1, 1, 1, 1), Row(2, 0, 0, 1, 1, 1, 1)], ""),
    Case("a worker keeps up", [Row(0, 0, 2, 1, 0, 0, 0), Row(1, 1, 2, 0, 9, 10, 9), Row(2, 0, 2, 1, 20, 20, 20)], ""),
    Case("a queue and pulls, and nothing is delivered", still(50, waiting=1), "server_stuck"),
    Case("so with priority groups", still(50, waiting=1), "", ReplyFacts(ConsumerConfig(priority_groups=True))),
    Case("so with a rate limit", still(50, waiting=1), "", ReplyFacts(ConsumerConfig(rate_limited=True))),
    Case(
        "so while history is replayed as it came",
        still(50, waiting=1),
        "",
        ReplyFacts(ConsumerConfig(original_replay=True)),
    ),
    Case("so while paused", still(50, waiting=1), "paused", ReplyFacts(paused=True)),
    Case("so by push, of which we see no pulls", still(50, waiting=1), "", PUSH),
    Case("so at the cap", still(50, 100, 1), "cap_reached", CAP_100),
    Case(
        "so with one pull that ran out at the last sample",
        [*still(50, waiting=1), Row(3, 50, 0, 0)],
        "server_stuck",
    ),
    Case("at the cap, and messages wait", still(50, 100), "cap_reached", CAP_100),
    Case("at the cap, and nothing waits", still(0, 100), "", CAP_100),
    Case("just under the cap", still(50, 99), "", CAP_100),
    Case(
        "at a large cap although acks move",
        [Row(0, 50, 100, 0, 0, 0, 0), Row(1, 50, 100, 0, 9, 9, 9), Row(2, 50, 100, 0, 19, 19, 19)],
        "cap_reached",
        CAP_100,
    ),
    Case(
        "at a cap of one, whose worker works",
        [Row(100, 50, 1, 0, 0, 0, 0), Row(101, 50, 1, 0, 9, 9, 9), Row(102, 50, 1, 0, 19, 19, 19)],
        "",
        CAP_1,
    ),
    Case("at a cap of one, and no ack for 5 s", still(50, 1, until=6), "cap_reached nobody_pulling", CAP_1),
    Case("a queue and nobody there", still(50), "nobody_pulling"),
    Case("a queue and a pull seen once", [Row(0, 50), Row(1, 50, 0, 1), Row(2, 50)], "nobody_pulling"),
    Case(
        "batches with gaps between the pulls",
        [Row(0, 50), Row(1, 40, 0, 0, 10, 0, 10), Row(2, 40, 0, 0, 10, 0, 10)],
        "draining",
    ),
    Case("a worker busy with what it has for 3 s", still(50, 10, until=4), ""),
    Case("a worker that holds messages for 6 s without a sign", still(50, 10, until=7), "nobody_pulling"),
    Case(
        "and for longer than they may be held",
        still(50, 10),
        "nobody_pulling",
        ReplyFacts(ConsumerConfig(ack_wait=1.0)),
    ),
    Case(
        "a worker that acks what it has, and asks for no more yet",
        [Row(at, 50, 100 - 10 * at, 0, 0, 0, 10 * at) for at in range(8)],
        "",
    ),
    Case(
        "a worker just through with what it had",
        [Row(0, 50, 5), Row(1, 50, 0, 0, 0, 0, 5), Row(2, 50, 0, 0, 0, 0, 5)],
        "",
    ),
    Case("a worker that takes and has not acked yet", [Row(at, 50 - at, at, 0, at) for at in range(8)], ""),
    Case("nobody there, and paused", still(50), "paused", ReplyFacts(paused=True)),
    Case("push, and nobody subscribed", still(50), "nobody_pulling", PUSH),
    Case("a message given up a minute ago", still(0), "poison idle", ReplyFacts(given_up=-57.0)),
    Case("a message given up longer ago", still(0), "idle", ReplyFacts(given_up=-59.0)),
    Case("poison, and nobody there", still(50), "nobody_pulling poison", ReplyFacts(given_up=0.0)),
    Case("a stream that refuses what is new", still(0), "stream_full idle", ReplyFacts(fill=0.995)),
    Case("a stream that will drop old ones soon", still(0), "idle", ReplyFacts(fill=None)),
    Case("a stream nearly full", still(0), "idle", ReplyFacts(fill=0.98)),
    Case(
        "a stream that drops old ones, and a queue",
        [Row(0, 10, 0, 0, 0, 0, 0), Row(1, 10, 0, 0, 9, 9, 9), Row(2, 10, 0, 0, 18, 18, 18)],
        "stream_full",
        ReplyFacts(pushes_out=True, fill=1.0),
    ),
    Case("a stream that drops old ones, and no queue", still(0), "idle", ReplyFacts(pushes_out=True, fill=1.0)),
    Case(
        "more comes than goes",
        [Row(0, 100, 5, 0, 0, 0, 0), Row(1, 150, 5, 0, 50, 100, 50), Row(2, 200, 5, 0, 100, 200, 100)],
        "falling_behind",
    ),
    Case(
        "more comes than goes, by less than the margin",
        [Row(0, 100, 5, 0, 0, 0, 0), Row(1, 105, 5, 0, 100, 105, 100), Row(2, 110, 5, 0, 200, 210, 200)],
        "",
    ),
    Case(
        "a handful more comes than goes",
        [Row(0, 0, 5, 0, 0, 0, 0), Row(1, 5, 5, 0, 1, 6, 1), Row(2, 9, 5, 0, 2, 11, 2)],
        "",
    ),
    Case(
        "a queue that jumped in one sample",
        [Row(0, 100, 5, 0, 0, 0, 0), Row(1, 100, 5, 0, 10, 10, 10), Row(2, 900, 5, 0, 20, 820, 20)],
        "",
    ),
    Case(
        "a queue that grows while paused",
        [Row(0, 100, 0, 1, 0, 0, 0), Row(1, 150, 0, 1, 0, 50, 0), Row(2, 200, 0, 1, 0, 100, 0)],
        "paused",
        ReplyFacts(paused=True),
    ),
    Case(
        "a queue that grows with nobody there",
        [Row(0, 100, 0, 0, 0, 0, 0), Row(1, 150, 0, 0, 0, 50, 0), Row(2, 200, 0, 0, 0, 100, 0)],
        "nobody_pulling falling_behind",
    ),
    Case(
        "history being read",
        [Row(0, 900, 9, 0, 0, 0, 0), Row(1, 800, 9, 0, 100, 0, 100), Row(2, 700, 9, 0, 200, 0, 200)],
        "backfilling draining",
        ReplyFacts(backfilling=True),
    ),
    Case(
        "more goes than comes",
        [Row(0, 900, 9, 0, 0, 0, 0), Row(1, 850, 9, 0, 100, 50, 100), Row(2, 800, 9, 0, 200, 100, 200)],
        "draining",
    ),
    Case(
        "a handful more goes than comes",
        [Row(0, 10, 5, 0, 0, 0, 0), Row(1, 6, 5, 0, 5, 1, 5), Row(2, 2, 5, 0, 10, 2, 10)],
        "",
    ),
]


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.why)
def test_the_table_of_diagnoses(case: Case) -> None:
    seen = evidence(case.rows, case.facts)
    says = [name.value for name, holds in RULES if holds(seen)]
    assert says == [*case.says.split(), "healthy"]
    assert diagnose(seen) == says[0]


def test_the_table_has_every_diagnosis() -> None:
    assert {(case.says.split() or ["healthy"])[0] for case in TABLE} == {diagnosis.value for diagnosis in Diagnosis}


def test_the_rules_stand_in_the_order_of_severity() -> None:
    assert [name for name, _ in RULES] == list(Diagnosis)


@pytest.mark.parametrize("rows", [[], still(50, until=2), [Row(0, 50), Row(0.5, 50), Row(1.9, 50)]], ids=len)
def test_too_few_points_give_no_diagnosis(rows: list[Row]) -> None:
    assert diagnose(evidence(rows, ReplyFacts())) is None


def diagnoses(course: DiagnosisTracker, rows: list[Row], facts: ReplyFacts | None = None) -> list[str | None]:
    for_each = []
    for row in rows:
        if course.due(row.at):
            course.add_point(Point(*row), facts or ReplyFacts())
        for_each.append(course.lasting)
    return for_each


def test_a_diagnosis_begins_with_enough_samples_and_counts_from_there() -> None:
    course = DiagnosisTracker()
    assert diagnoses(course, still(50, until=5)) == [None, None, *["nobody_pulling"] * 3]
    assert course.since == 2.0


@pytest.mark.parametrize("odd", [{"waiting": 3}, {"pending": 0}, {"inflight": 7}, {"pending": 10**6}], ids=str)
@pytest.mark.parametrize("rows", [still(50, until=20), still(50, 100, until=20)], ids=["nobody", "at the cap"])
@pytest.mark.parametrize("every", [0.1, 0.5, 1.0, 5.0])
@pytest.mark.no_cover  # traced, it takes four times as long
def test_one_odd_sample_neither_ends_a_diagnosis_nor_begins_another(
    odd: dict[str, int], rows: list[Row], every: float
) -> None:
    for place in range(len(rows) * 5):
        course = DiagnosisTracker()
        many = [rows[0]._replace(at=n * every) for n in range(len(rows) * 5)]
        many[place] = many[place]._replace(**odd)
        printed = [s for s in diagnoses(course, many, CAP_100) if s is not None]
        if place > 60:
            assert set(printed[-40:]) == {"cap_reached" if rows[0].inflight else "nobody_pulling"}


def test_one_odd_sample_does_not_begin_a_trend() -> None:
    for place in range(3, 20):
        course = DiagnosisTracker()
        calm = [Row(float(n), 100, 5, 1, 10 * n, 10 * n, 10 * n) for n in range(25)]
        for odd in (0, 5000):
            calm[place] = calm[place]._replace(pending=odd)
            assert set(diagnoses(course, calm)[2:]) == {"healthy"}


def test_a_worker_with_gaps_between_its_batches_does_not_flicker() -> None:
    """It fetches ten every 1.5 s, acks them at once and sleeps; the queue grows a little, then falls a little."""
    course, rows = DiagnosisTracker(), []
    for n in range(600):
        given = 10 * (n // 15 + 1)
        rows.append(Row(n * 0.1, 5000 + n // 3 - given // 4, 0, 0, given, n * 2.0, given))
    assert "nobody_pulling" not in diagnoses(course, rows)


def test_the_diagnosis_changes_once_the_old_one_failed_twice() -> None:
    course = DiagnosisTracker()
    diagnoses(course, still(50, until=5))
    assert course.lasting is Diagnosis.NOBODY_PULLING
    moving = [Row(5.0 + n, 40 - 10 * n, 0, 0, 10 + 10 * n, 0, 10 + 10 * n) for n in range(4)]
    assert diagnoses(course, moving) == ["nobody_pulling", "draining", "draining", "draining"]
    assert course.since == 6.0


def test_a_verdict_that_fails_now_and_then_stays() -> None:
    course = DiagnosisTracker()
    diagnoses(course, still(50, until=5))
    for n in range(5, 30):
        course.add_point(Point(float(n), 50, 0, 0, 0, 0, 0), ReplyFacts(paused=n % 2 == 0))
        assert (course.lasting, course.since) == (Diagnosis.NOBODY_PULLING, 2.0)


def test_two_verdicts_that_take_turns_do_not_keep_a_third() -> None:
    course = DiagnosisTracker()
    diagnoses(course, still(50, until=5))
    for n in range(5, 20):
        course.add_point(Point(float(n), 50, 0, 0, n, 0, n), ReplyFacts(backfilling=n % 2 == 0))
    assert course.lasting in (Diagnosis.BACKFILLING, Diagnosis.HEALTHY)


@given(st.lists(st.tuples(st.floats(0.01, 30.0), *[st.integers(0, 2000)] * 6), max_size=60), st.booleans())
def test_the_evidence_is_bounded_and_always_gives_a_diagnosis(steps: list[tuple[float, ...]], push: bool) -> None:
    course, at = DiagnosisTracker(), 0.0
    for after, pending, inflight, waiting, deliveries, arrived, acked in steps:
        at += after
        if course.due(at):
            course.add_point(
                Point(at, int(pending), int(inflight), int(waiting), int(deliveries), arrived, acked), CAP_100
            )
        points = course.evidence.points
        assert len(points) <= MAX_POINTS
        assert (course.lasting is not None) == (len(points) >= MIN_POINTS and points[-1].at - points[0].at >= SPAN)
        assert at - points[-1].at < SPACING
