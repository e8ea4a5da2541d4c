"""Which stored record is the newest one, and what of one's own conclusions stays when it is taken over."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.core.model.member import NO_LATCHES, NOTHING_CARRIED, Latch, Latches, Member
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.status import thresholds
from nats_backpressure.core.subject.inputs import RecordCreated
from nats_backpressure.core.subject.newest_record import agrees, continues, is_lost, is_newest
from nats_backpressure.core.subject.record import Record
from nats_backpressure.core.subject.record_builder import event_id
from nats_backpressure.core.subject.restart_facts import with_latches_of
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, EventType, Status

W, I = Status.WARNING, Status.INACTIVE  # noqa: E741
KEY = ConsumerKey("S", "c")
POLICY = Policy(recovery_hold_seconds=1.0)


def event(seq: int, to: Status, epoch: str = "e") -> SubjectEvent:
    kind = EventType.RECOVERY if to is I else EventType.WARNING
    marks = {"reading": None, "marks": None, "pressure": None, "retry_after": 0, "admit_ratio": 1.0, "reasons": ()}
    was = W if to is I else I
    return SubjectEvent(
        id=event_id("s", epoch, seq),
        type=kind,
        subject="s",
        at=1.0,
        epoch=epoch,
        seq=seq,
        incident="e-1",
        was=was,
        now=to,
        **marks,  # type: ignore[arg-type]
    )


OURS = Record("s", "e", seq=3, status=W, announced=W, incident="e-1")
STREAM = RecordCreated("new", 9, seq=3, status=W, moved=True, incident="e-1")


@pytest.mark.parametrize(
    ("theirs", "surely", "newest"),
    [
        pytest.param(replace(OURS, reasons=("pending",)), True, True, id="no event since"),
        pytest.param(replace(OURS, seq=4, announced=I, unsent=(event(4, I),)), True, True, id="with the event since"),
        pytest.param(replace(OURS, seq=4, announced=I), False, False, id="an event that nobody has"),
        pytest.param(replace(OURS, announced=I, status=I), False, False, id="calm without an event"),
        pytest.param(replace(OURS, seq=2, announced=I, status=I), False, False, id="older"),
        pytest.param(replace(OURS, epoch="f"), False, True, id="another epoch"),
        pytest.param(replace(OURS, epoch="f", seq=2), False, False, id="another epoch, behind the stream"),
        pytest.param(replace(OURS, epoch="f", announced=I), False, False, id="another epoch, calm without an event"),
        pytest.param(replace(OURS, epoch="f", seq=40), False, False, id="another epoch, events that nobody has"),
        pytest.param(replace(OURS, epoch="f", incident="f-2"), False, False, id="another epoch, another incident"),
    ],
)
def test_a_record_is_the_newest_if_its_status_is_that_of_the_newest_event(
    theirs: Record, surely: bool, newest: bool
) -> None:
    assert continues(OURS, theirs) is surely
    assert is_newest(OURS, theirs, STREAM) is newest


def test_where_stream_and_bucket_went_back_no_record_of_before_is_the_newest() -> None:
    older = replace(OURS, epoch="d", seq=1, incident="d-1")
    published = replace(STREAM, seq=1, incident="d-1")
    assert is_newest(OURS, older, published), "the stream alone lost its events, and another one began anew"
    assert not is_newest(OURS, older, published, went_back=True)
    ours, before = (Record("s", epoch, seq=0, status=I, announced=I) for epoch in "ed")
    assert not is_newest(ours, before, RecordCreated("new"), went_back=True), "the numbers after it may have been given"


def test_a_stream_without_events_contradicts_nothing_and_proves_nothing() -> None:
    nothing = RecordCreated("new")
    assert agrees(OURS, nothing) and is_lost(OURS, nothing)
    assert not is_lost(replace(OURS, seq=1, unsent=(event(1, W),)), nothing)
    assert is_newest(OURS, replace(OURS, epoch="f"), nothing)
    assert not is_newest(OURS, replace(OURS, epoch="f", announced=I), nothing)
    assert is_newest(OURS, replace(OURS, seq=4, announced=I), nothing), "the stream was purged after this event"
    assert not is_newest(OURS, replace(OURS, announced=I), nothing)


def member(waiting: int, at: float, **latches: Latch) -> Member:
    reading = Reading(KEY, Now(at, at), waiting, 0, 0.0, None, latency_evidence=True)
    marks = thresholds.marks(POLICY, reading)
    return Member(KEY, POLICY, Latches(**latches), reading=reading, proof=at, marks=marks)


@pytest.mark.parametrize(
    ("before", "stored", "after"),
    [
        pytest.param(member(1500, 9.5, pending=Latch(True)), (), ("pending",), id="above its mark now"),
        pytest.param(member(1500, 8.0, pending=Latch(True)), (), (), id="above its mark before the hold"),
        pytest.param(member(600, 9.9, pending=Latch(True)), (), (), id="between the marks"),
        pytest.param(member(0, 9.9, pending=Latch(True, 9.5)), (), (), id="in its own hold"),
        pytest.param(member(0, 9.9), ("pending",), ("pending",), id="set elsewhere"),
        pytest.param(member(0, 9.9, pending=Latch(False, 8.0)), ("pending",), (), id="a release that was hidden"),
    ],
)
def test_a_latch_that_the_record_lacks_stays_only_while_its_value_is_above_the_mark_now(
    before: Member, stored: tuple[str, ...], after: tuple[str, ...]
) -> None:
    taken_over = with_latches_of(before, stored, NOTHING_CARRIED, Now(10.0, 10.0))
    assert taken_over.latches.names == after
    assert taken_over.status is (W if after else I)


def test_the_hold_of_a_latch_that_was_set_elsewhere_begins_with_the_next_reading() -> None:
    earlier = member(0, 9.0, pending=Latch(False, 5.0))
    calm = with_latches_of(earlier, (), NOTHING_CARRIED, Now(9.1, 9.1))
    assert calm.latches == NO_LATCHES, "what is stored as released needs no memory of its hold"
    assert with_latches_of(calm, ("pending",), NOTHING_CARRIED, Now(9.2, 9.2)).latches.pending == Latch(True)


@pytest.mark.parametrize("latch", [Latch(True, 9.5), Latch(False, 9.5)], ids=["in its hold", "released"])
def test_no_hold_from_before_an_incident_that_began_elsewhere_goes_on(latch: Latch) -> None:
    before = member(0, 9.9, pending=latch)
    taken_over = with_latches_of(before, ("pending",), NOTHING_CARRIED, Now(10.0, 10.0), other_incident=True)
    assert taken_over.latches.pending == Latch(True)
