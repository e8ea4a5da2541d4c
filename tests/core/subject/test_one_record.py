"""What becomes of a record that another replica changed, removed, or set back, in the cases that are rare."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.subject.inputs import (
    ConsumerLeft,
    ConsumerRead,
    DropSubject,
    KeyRemoved,
    PublishEvent,
    RecordCreated,
    RecordFollowed,
    RecordLoaded,
    RecordMissing,
    RemoveKey,
    Tick,
    WriteRecord,
)
from nats_backpressure.core.subject.plan_writes import StepContext
from nats_backpressure.core.subject.state import REMOVE_AFTER
from nats_backpressure.core.subject.step import step
from nats_backpressure.core.subject.taking_over import UNSENT_WAIT
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import EventType, Status
from tests.core.subject.test_two_replicas import KEY, Replica, Store, types


def overloaded(*names: str) -> tuple[Store, list[Replica]]:
    """Replicas that have published an overload."""
    store = Store()
    replicas = [Replica(name, store) for name in names]
    for n, replica in enumerate(replicas):
        replica.read(1000.0 + n / 100, 1500, 20.0)
    assert types(store) == ["backpressure_active"]
    return store, replicas


def test_an_older_record_of_a_subject_without_members_is_replaced() -> None:
    store, (replica,) = overloaded("a")
    older = store.record
    replica.feed(ConsumerLeft(KEY), 1010.0)
    for at in (1010.5, 1045.0, 1046.0):
        replica.feed(Tick(), at)
    assert store.record is not None and store.record.unknown
    store.record, before = older, types(store)
    replica.feed(RecordMissing(), 1100.0)
    replica.feed(Tick(), 1100.5)
    assert store.record is not None and store.record.unknown and types(store) == before
    assert replica.state.record == store.record


def test_two_epochs_of_which_nothing_is_published_any_more_end_in_one_and_not_in_a_loop() -> None:
    store, replicas = overloaded("a", "b")
    first, _ = replicas
    for at in (1001.0, 1006.0):
        first.read(at, 20, 0.1)
    assert store.record is not None
    store.record = replace(store.record, epoch="other")  # it went on in another epoch while the other one was suspended
    first.state = replace(first.state, record=store.record)
    store.events.clear()
    since = store.revision
    for tenth in range(100):
        for replica in reversed(replicas):
            at = 1006.1 + tenth / 10
            if replica.state.revision != store.revision and replica.state.record is not None:
                replica.feed(RecordFollowed(store.record, store.revision), at)
            replica.read(at, 20, 0.1)
    assert store.revision - since <= 2 and types(store) == []
    assert {replica.state.record and replica.state.record.epoch for replica in replicas} == {"other"}


def test_writes_of_another_replica_postpone_no_event_that_it_does_not_publish() -> None:
    store, (_, replica) = overloaded("a", "b")
    assert store.record is not None
    event = store.events.pop()
    record = replace(store.record, unsent=(event,))
    replica.state = replace(replica.state, revision=store.revision - 1, record=replace(record, unsent=()))
    at, left = 1010.0, 0
    while not store.events:
        store.record, store.revision = replace(record, since=at), store.revision + 1
        replica.feed(RecordFollowed(store.record, store.revision), at)
        replica.feed(Tick(), at)
        at, left = at + 0.1, left + 1
        assert left < 20
    assert at - 1010.0 == pytest.approx(UNSENT_WAIT, abs=0.21)


def test_what_is_published_meanwhile_stays_published_over_a_write_of_another_replica() -> None:
    store, (_, replica) = overloaded("a", "b")
    event = store.events[0]
    record = replace(store.record, unsent=(event,))
    replica.state = replace(replica.state, record=record, published=frozenset({event.id}))
    replica.feed(RecordFollowed(replace(record, since=5.0), store.revision + 1), 1001.0)
    assert replica.state.published == {event.id}


@pytest.mark.parametrize("absent", [False, True])
def test_the_last_reading_of_a_consumer_that_the_newest_list_lacks_holds_no_latch(absent: bool) -> None:
    store, (replica,) = overloaded("a")
    assert store.record is not None
    fall = replace(store.events[0], id="fall", type=EventType.RECOVERY, seq=2, was=Status.ACTIVE, now=Status.INACTIVE)
    calm = replace(store.record, status=Status.INACTIVE, announced=Status.INACTIVE, latched=(), incident=None)
    calm = replace(calm, seq=2, unsent=(fall,))
    gone = frozenset({KEY}) if absent else frozenset()
    replica.feed(RecordFollowed(calm, store.revision + 1, absent=gone), 1000.5)
    assert replica.state.members[KEY].latches.pending.on == (not absent)


@pytest.mark.parametrize("conflict", [False, True])
def test_a_key_that_another_replica_wrote_just_before_its_removal_is_read_again(conflict: bool) -> None:
    _, (replica,) = overloaded("a")
    replica.feed(ConsumerLeft(KEY), 1010.0)
    replica.feed(Tick(), 1011.0)
    at = 1010.0 + REMOVE_AFTER
    context = StepContext(10.0, 30.0, writer="a", newest_read_at=at)
    state, effects = step(replica.state, Tick(), Now(at, at), context)
    assert [type(effect) for effect in effects] == [RemoveKey]
    state, effects = step(state, KeyRemoved(conflict), Now(at, at), context)
    assert any(isinstance(effect, DropSubject) for effect in effects) == (not conflict)
    assert state.loading == conflict and not any(isinstance(effect, PublishEvent) for effect in effects)


def test_of_a_reading_that_came_too_late_the_losses_count() -> None:
    store, (_, replica) = overloaded("a", "b")
    assert store.record is not None
    replica.feed(RecordFollowed(replace(store.record, since=5.0), store.revision + 1), 1020.0)
    before = replica.state.members[KEY]
    late = Now(1010.0, 1010.0)
    replica.feed(ConsumerRead(Reading(KEY, late, 20, 0, 0.0, 0.1, latency_evidence=True, lost=4)), 1020.1)
    after = replica.state.members[KEY]
    assert after.lost == before.lost + 4 and after.reading is before.reading and after.proof == before.proof


def test_an_older_record_that_is_read_again_before_ours_is_stored_is_not_taken_for_ours() -> None:
    """Its next event would have an id that was given already."""
    _, (replica,) = overloaded("a")
    assert replica.state.record is not None
    older = replace(replica.state.record, seq=0, status=Status.INACTIVE, announced=Status.INACTIVE, incident=None)
    created, revision = RecordCreated("new", 1), replica.state.revision
    assert revision > created.revision
    context = StepContext(10.0, 30.0, writer="a", newest_read_at=1001.0)
    state = replica.state
    for at in (1001.0, 1001.1):
        state, _ = step(state, RecordMissing(), Now(at, at), context)
        state, _ = step(state, RecordLoaded(older, created.revision, instead=created), Now(at, at), context)
        assert state.record is not None and state.record.epoch == "new" and not state.must_reload


def test_a_record_that_is_begun_anew_forgets_the_number_that_another_one_was_to_go_on_from() -> None:
    _, (replica,) = overloaded("a")
    state = replace(replica.state, renumber_from=("other", 7), must_reload=True, doubted=True, loading=True)
    assert state.record is not None
    older = replace(state.record, seq=0, status=Status.INACTIVE, announced=Status.INACTIVE, incident=None)
    context = StepContext(10.0, 30.0, writer="a", newest_read_at=1001.0)
    state, effects = step(state, RecordLoaded(older, 1, instead=RecordCreated("new", 1)), Now(1001.0, 1001.0), context)
    (write,) = effects
    assert isinstance(write, WriteRecord) and (write.writing.record.epoch, write.writing.record.seq) == ("new", 1)


def test_an_event_that_the_stream_has_lost_with_the_record_of_its_publication_is_published_again() -> None:
    """Both went back; else the next event would follow one that nobody has."""
    store, (replica,) = overloaded("a")
    event = store.events[0]
    assert replica.state.record is not None
    record = replace(replica.state.record, unsent=(event,))
    state = replace(replica.state, record=record, published=frozenset({event.id}), must_reload=True, loading=True)
    context = StepContext(10.0, 30.0, writer="a", newest_read_at=1001.0)
    state, effects = step(state, RecordCreated("new"), Now(1001.0, 1001.0), context)
    (write,) = effects
    assert isinstance(write, WriteRecord) and event.id not in state.published
    assert [(one.epoch, one.seq) for one in write.writing.record.unsent] == [("new", event.seq)]
