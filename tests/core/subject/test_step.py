"""A subject from its first reading to its last: what is stored and published, and what a crash at any point leaves."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.core.admission.adaptive import Shedding
from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.core.model.member import Carried
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.status.latches import COUNTED
from nats_backpressure.core.subject.apply import apply
from nats_backpressure.core.subject.inputs import (
    ConsumerJoined,
    ConsumerLeft,
    ConsumerRead,
    Dismissed,
    DropSubject,
    Effect,
    EventConflict,
    EventDropped,
    EventSent,
    GatewayReported,
    Input,
    KeyRemoved,
    LoadRecord,
    PolicyChanged,
    PolicyRefused,
    PublishEvent,
    RecordCreated,
    RecordLoaded,
    RecordMissing,
    RemoveKey,
    Tick,
    WriteConflict,
    WriteDone,
    WriteFailing,
    WriteRecord,
)
from nats_backpressure.core.subject.member_update import LOSS_INTERVAL
from nats_backpressure.core.subject.next_record import build_record, is_quiescent, is_stale_alone, is_unobserved
from nats_backpressure.core.subject.plan_writes import StepContext
from nats_backpressure.core.subject.record import MOST_REJECTIONS, UNSENT_LIMIT, Loss, Record, Writing
from nats_backpressure.core.subject.state import REMOVE_AFTER, SubjectState, worst_member
from nats_backpressure.core.subject.step import step
from nats_backpressure.core.subject.taking_over import UNSENT_WAIT
from nats_backpressure.policy.schema import AdmissionRule, AlertRule, Override, Policy, Rejection, When
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import STATUS_EVENTS, Action, ConsumerKey, Diagnosis, EventType, Status
from tests.support.exploring import examples

ONE, TWO = ConsumerKey("S", "one"), ConsumerKey("T", "two")
INSTANT = Policy(recovery_hold_seconds=0.0, alert_on_active=False)
"""Without the alert that every rise to active brings, but where a test is about alerts."""
AT_ONCE = Policy(recovery_hold_seconds=0.0, alert_for_seconds=0)
ALERTING = Policy(recovery_hold_seconds=0.0, alert_on_warning=True, alert_for_seconds=0)


@dataclass
class World:
    """The subject's state with a store and an events stream in arithmetic; acts wait until they are performed."""

    policy: Policy = INSTANT
    at: float = 1000.0
    stored: Record | None = None
    revision: int = 0
    stream: list[SubjectEvent] = field(default_factory=list)
    todo: list[Effect] = field(default_factory=list)
    starts: int = 0
    dropped: bool = False
    publishing: bool = True
    held: list[Effect] = field(default_factory=list)
    """What could not be published."""
    swept: float | None = None
    graceful: bool = False
    """Whether alerts wait for what the absence has left to go; otherwise it has been watched for long."""

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """A fresh process: nothing is remembered but what is stored."""
        self.starts += 1
        self.todo.clear()
        self.state = SubjectState(
            subject="s", policy=self.policy, unread_since=self.at, watched_since=None if self.graceful else -math.inf
        )
        if self.stored is not None:
            self.feed(RecordLoaded(self.stored, self.revision))

    def feed(self, input_: Input) -> None:
        context, now = (
            StepContext(10.0, 30.0, writer=f"w{self.starts}", newest_read_at=self.swept),
            Now(self.at, self.at),
        )
        self.state, acts = step(self.state, input_, now, context)
        aging = is_stale_alone(self.state, context, self.swept)
        if is_quiescent(self.state) and not is_unobserved(self.state, now, context) and not aging:
            assert build_record(self.state, now, context, self.swept) is None, (
                "what is taken for calm has nothing to publish"
            )
        self.todo += acts

    def read(self, pending: int = 0, inflight: int = 0, key: ConsumerKey = ONE, **more) -> None:
        self.at += 0.1
        self.feed(ConsumerJoined(key, self.policy))
        now = Now(self.at, self.at)
        self.feed(
            ConsumerRead(
                Reading(
                    key, now, pending, inflight, **{"latency": 0.0, "drain": None, "latency_evidence": True, **more}
                )
            )
        )

    def perform(self, n: int = 1000) -> None:
        """Do what waits, and what follows from it."""
        for _ in range(n):
            if not self.todo:
                return
            self.do(self.todo.pop(0))

    def do(self, act: Effect) -> None:
        match act:
            case LoadRecord(doubted=doubted) if self.stored is not None:
                self.feed(RecordLoaded(self.stored, self.revision, instead=self.created() if doubted else None))
            case LoadRecord():
                self.feed(self.created())
            case WriteRecord():
                assert act.writing.expected == self.revision
                self.apply(act)
                self.feed(WriteDone(act.writing.nonce, self.revision))
            case PublishEvent() if not self.publishing:
                self.held.append(act)
            case PublishEvent():
                if act.event.id not in {e.id for e in self.stream}:
                    self.stream.append(act.event)
                self.feed(EventSent(act.event.id))
            case RemoveKey() if self.state.removing:
                self.stored, self.revision = None, 0
                self.feed(KeyRemoved())
            case DropSubject():
                self.dropped = True

    def created(self) -> RecordCreated:
        """What the events stream shows."""
        last = max(self.stream, key=lambda e: e.seq, default=None)
        published = [e for e in self.stream if e.type in STATUS_EVENTS]
        created = RecordCreated(f"e{self.starts}.{len(self.stream)}", self.revision, last.seq if last else 0)
        if published:
            created = replace(created, status=published[-1].now, incident=published[-1].incident, moved=True)
        monitoring = [e.type for e in self.stream if "monitoring" in e.type.value]
        return replace(created, lost=monitoring[-1:] == [EventType.MONITORING_LOST])

    def apply(self, act: WriteRecord) -> None:
        self.stored, self.revision = act.writing.record, self.revision + 1

    @property
    def published(self) -> list[str]:
        return [e.type.value for e in self.stream]

    def settled(self, **reading) -> None:
        self.read(**reading)
        self.perform()


def test_the_first_known_status_is_stored_at_once_without_an_event() -> None:
    world = World()
    world.settled(pending=5)
    assert world.stored is not None
    assert (world.stored.status, world.stored.seq, world.published) == (Status.INACTIVE, 0, [])


def test_the_step_to_active_is_direct_and_numbered_one() -> None:
    world = World()
    world.settled(pending=1500, inflight=600)
    (event,) = world.stream
    assert (event.type, event.seq, event.was, event.now) == (EventType.ACTIVE, 1, Status.INACTIVE, Status.ACTIVE)
    assert event.reasons == ("pending", "inflight")
    assert event.id == f"s:{event.epoch}:1"
    assert (event.retry_after, event.admit_ratio) == (30, 0.0)


def test_one_incident_spans_rise_to_inactive() -> None:
    world = World()
    world.settled(pending=1500, inflight=600)
    world.settled(pending=1500)
    world.settled(pending=0)
    assert world.published == ["backpressure_active", "recovery", "recovery"]
    assert len({e.incident for e in world.stream}) == 1
    assert world.stored is not None and world.stored.incident is None
    assert world.stored.recoveries.total == 1
    world.settled(pending=1500)
    assert world.stream[-1].incident != world.stream[0].incident


def test_a_published_event_is_removed_from_the_list_by_its_own_write() -> None:
    world = World()
    world.settled(pending=1500)
    assert world.stored is not None and world.stored.unsent == ()


def test_nothing_is_published_before_it_is_stored() -> None:
    world = World()
    world.settled(pending=0)
    world.read(pending=1500)
    assert [type(a) for a in world.todo] == [WriteRecord]


def test_a_failed_write_leaves_the_old_state_and_the_latest_reading_is_evaluated_after_it() -> None:
    world = World()
    world.settled(pending=0)
    world.read(pending=1500, inflight=600)
    (write,) = world.todo
    assert isinstance(write, WriteRecord)
    world.feed(WriteFailing(write.writing.nonce))
    assert world.state.writing is not None and world.state.writing.failing
    assert world.state.record is not None and world.state.record.status is Status.INACTIVE
    world.read(pending=0)
    world.perform()
    assert world.published == ["backpressure_active", "recovery"]


def test_changes_beyond_eight_unsent_events_are_folded_into_one() -> None:
    world = World()
    world.settled(pending=0)
    for n in range(15):
        world.read(pending=1500 if n % 2 == 0 else 0)
        while any(isinstance(a, WriteRecord) for a in world.todo):
            world.do(world.todo.pop(next(i for i, a in enumerate(world.todo) if isinstance(a, WriteRecord))))
    assert world.stored is not None and len(world.stored.unsent) == UNSENT_LIMIT
    assert world.stored.status is Status.WARNING
    world.perform()
    assert [e.seq for e in world.stream] == list(range(1, len(world.stream) + 1))
    assert world.stream[-1].now is Status.WARNING
    assert all(a.now is b.was for a, b in pairwise(world.stream))


def test_an_unsent_event_of_a_dead_process_is_published_by_the_next() -> None:
    world = World()
    world.settled(pending=0)
    world.read(pending=1500)
    world.perform(1)
    world.start()
    world.perform()
    assert world.published == ["backpressure_warning"]


def test_a_subject_that_is_active_before_and_after_a_restart_is_published_once() -> None:
    world = World()
    world.settled(pending=1500, inflight=600)
    world.start()
    world.settled(pending=700, inflight=300)
    assert world.published == ["backpressure_active"]


def test_a_recovery_during_a_restart_is_published() -> None:
    world = World()
    world.settled(pending=1500, inflight=600)
    world.start()
    world.settled(pending=0, inflight=0)
    assert world.published == ["backpressure_active", "recovery"]


def test_a_member_not_read_again_yet_keeps_the_status_it_had_before_the_restart() -> None:
    world = World()
    world.settled(pending=0, key=TWO)
    world.settled(pending=1500, inflight=600)
    world.start()
    world.settled(pending=0, key=TWO)
    assert world.published == ["backpressure_active"]
    world.settled(pending=0)
    assert world.published == ["backpressure_active", "recovery"]


def test_the_worst_consumer_speaks() -> None:
    world = World()
    world.settled(pending=1500, key=TWO)
    world.settled(pending=0)
    assert world.published == ["backpressure_warning"]


def test_a_deleted_worst_consumer_is_a_recovery_with_its_cause() -> None:
    world = World()
    world.settled(pending=0)
    world.settled(pending=1500, inflight=600, key=TWO)
    world.feed(ConsumerLeft(TWO))
    world.perform()
    assert world.stream[-1].type is EventType.RECOVERY
    assert world.stream[-1].reasons == ("consumer_deleted",)


def test_a_deleted_consumer_that_was_not_the_worst_is_no_cause_of_the_next_recovery() -> None:
    world = World()
    world.settled(pending=0, key=TWO)
    world.settled(pending=1500, inflight=600)
    world.feed(ConsumerLeft(TWO))
    world.settled(pending=0)
    assert (world.stream[-1].type, world.stream[-1].reasons) == (EventType.RECOVERY, ())


def test_the_last_consumer_gone_is_monitoring_lost_and_the_incident_stays_open() -> None:
    world = World()
    world.settled(pending=1500, inflight=600)
    world.feed(ConsumerLeft(ONE))
    world.perform()
    assert world.published == ["backpressure_active", "monitoring_lost"]
    assert world.stored is not None and world.stored.unknown and world.stored.incident is not None
    lost = world.stream[-1]
    assert lost.was is lost.now is Status.ACTIVE
    world.settled(pending=0)
    assert world.published[2:] == ["monitoring_restored", "recovery"]


OWN = AlertRule("long", When(pending_above=100))
"""Below every mark: nothing is latched by it."""


@pytest.mark.parametrize("pending", [200, 1500], ids=["an own rule", "and a built-in one"])
@pytest.mark.parametrize("end", ["deleted", "another subject", "deleted while down", "forgotten after that"])
def test_whatever_fires_is_resolved_once_no_consumer_is_left(pending: int, end: str) -> None:
    world = World(policy=replace(ALERTING, alerts=(OWN,)))
    world.settled(pending=pending)
    fired = world.published.count("alert_firing")
    if end.endswith(("down", "that")):
        world.start()
        if world.state.members:  # the stored latch names it, so lists that lack it show that it is gone
            world.feed(ConsumerLeft(ONE))
        world.at += 30.0 if end.startswith("forgotten") else REMOVE_AFTER
        world.feed(Dismissed() if end.startswith("forgotten") else Tick())
    else:
        world.feed(ConsumerLeft(ONE, exists=end == "another subject"))
    world.perform()
    assert world.published.count("alert_resolved") == fired > 0
    assert world.stored is None or not world.stored.alerts, "the next evaluation leaves out what has no rule"


def test_no_alert_is_resolved_while_its_consumer_may_only_be_unreadable_since_a_restart() -> None:
    world = World(policy=replace(INSTANT, alerts=(OWN,)))
    world.settled(pending=200)
    world.start()
    world.at += REMOVE_AFTER - 1
    world.feed(Tick())
    world.perform()
    assert world.published == ["alert_firing", "monitoring_lost"]


def test_what_is_stored_does_not_open_each_reader_opens_it_by_its_own_clock() -> None:
    world = World()
    world.settled(pending=1500, inflight=600)
    world.feed(ConsumerLeft(ONE))
    world.perform()
    assert world.stored is not None
    stored = world.stored
    for _ in range(80):
        world.at += 0.5
        world.feed(Tick())
        world.perform()
    assert world.stored is stored and stored.admission.action is Action.REJECT, "one write, and no opening in it"


def test_the_state_of_a_subject_without_consumers_goes_after_an_hour() -> None:
    world = World()
    world.settled(pending=0)
    world.feed(ConsumerLeft(ONE))
    world.perform()
    world.at += REMOVE_AFTER
    world.feed(Tick())
    assert [type(a) for a in world.todo] == [RemoveKey]


def test_a_subject_without_consumers_goes_at_once_when_an_operator_wants_it() -> None:
    world = World()
    world.settled(pending=0)
    world.feed(Dismissed())
    world.perform()
    assert world.stored is not None and not world.state.dismissed, "it has a consumer"
    world.feed(ConsumerLeft(ONE))
    world.feed(Dismissed())
    world.perform()
    assert world.stored is None and world.dropped
    assert [event.type for event in world.stream] == [EventType.MONITORING_LOST], "what was to be published is"


def test_a_consumer_that_returns_calls_a_removal_off() -> None:
    world = World()
    world.settled(pending=0)
    world.feed(ConsumerLeft(ONE))
    world.publishing = False
    world.feed(Dismissed())
    world.perform()
    assert world.stored is not None, "an event waits to be published"
    world.publishing = True
    world.read()
    world.perform()
    world.at += 1
    world.feed(Tick())
    world.perform()
    assert world.stored is not None and not world.state.dismissed


def emptied_for_an_hour() -> World:
    world = World()
    world.settled(pending=0)
    world.feed(ConsumerLeft(ONE))
    world.perform()
    world.at += REMOVE_AFTER
    for _ in range(10):
        world.at += 0.5
        world.feed(Tick())
    return world


def test_a_key_is_removed_once_however_long_that_takes() -> None:
    world = emptied_for_an_hour()
    assert [type(a) for a in world.todo] == [RemoveKey]
    world.perform()
    assert world.dropped and world.stored is None


def test_a_consumer_that_returns_while_its_key_is_being_removed_calls_that_off() -> None:
    world = emptied_for_an_hour()
    world.settled(pending=1500)
    assert not world.dropped and world.stored is not None
    assert world.stored.status is Status.WARNING


def test_a_consumer_that_returns_after_its_key_was_removed_is_taken_up() -> None:
    world = emptied_for_an_hour()
    world.read(pending=1500)
    world.stored, world.revision, world.todo = None, 0, []  # the removal was on its way, and the write came too late
    world.feed(KeyRemoved())
    world.perform()
    assert not world.dropped and world.stored is not None
    assert (world.stored.status, world.state.revision) == (Status.WARNING, world.revision)


@pytest.mark.parametrize("room", [0, 1, 2])
def test_a_subject_that_goes_blind_with_the_list_full_comes_back(room: int) -> None:
    world = World()
    world.settled(pending=0)
    world.publishing = False
    for n in range(UNSENT_LIMIT - room):
        world.settled(pending=1500 * (1 - n % 2))
    world.at += 31.0
    world.feed(Tick())
    world.perform()
    assert world.stored is not None and world.stored.unknown
    world.settled(pending=20000)
    assert (world.stored.unknown, world.stored.status) == (False, Status.ACTIVE)
    world.publishing, world.todo, world.held = True, world.held, []
    world.perform()
    world.settled(pending=20000)
    assert [event.seq for event in world.stream] == list(range(1, len(world.stream) + 1))
    assert world.published.count("monitoring_lost") == world.published.count("monitoring_restored") == min(room, 1)
    assert world.stream[-1].now is Status.ACTIVE


def test_silence_becomes_monitoring_lost_once_and_no_recovery() -> None:
    world = World()
    world.settled(pending=1500, inflight=600)
    for _ in range(200):
        world.at += 1.0
        world.feed(Tick())
        world.perform()
    assert world.published == ["backpressure_active", "monitoring_lost"]


def test_a_restart_without_any_sample_is_silent_until_unknown() -> None:
    world = World()
    world.settled(pending=1500, inflight=600)
    world.start()
    world.at += 29.0
    world.feed(Tick())
    assert world.todo == []
    world.at += 1.0
    world.feed(Tick())
    world.perform()
    assert world.published == ["backpressure_active", "monitoring_lost"]


@pytest.mark.parametrize(
    ("on_unknown", "expected"), [("hold", Action.REJECT), ("continue", Action.CONTINUE), ("reject", Action.REJECT)]
)
def test_what_is_stored_of_the_unknown_is_what_its_policy_says(on_unknown: str, expected: Action) -> None:
    world = World(policy=replace(INSTANT, on_unknown=on_unknown))
    world.settled(pending=1500, inflight=600)
    world.at += 31.0
    world.feed(Tick())
    world.perform()
    assert world.stored is not None and world.stored.unknown
    assert world.stored.admission.action is expected


def test_data_loss_is_published_and_is_no_recovery() -> None:
    world = World()
    world.settled(pending=1500)
    world.settled(pending=100, losing=True, lost=1400)
    assert world.published == ["backpressure_warning", "data_loss"]
    assert world.stream[-1].lost == 1400


def test_an_ongoing_loss_is_reported_every_ten_seconds_with_the_sum() -> None:
    world = World()
    world.settled(pending=1500)
    for _ in range(100):
        world.at += 0.3
        world.settled(pending=1500, losing=True, lost=2)
    assert 3 <= world.published.count("data_loss") <= 4
    world.at += 10.0
    world.feed(Tick())
    world.perform()
    assert sum(event.lost or 0 for event in world.stream) == 200


def test_a_recovery_comes_after_all_that_was_lost() -> None:
    world = World()
    world.settled(pending=1500)
    world.settled(pending=1200, losing=True, lost=300)
    world.settled(pending=0, losing=True, lost=1200)
    world.settled(pending=0)
    assert [event.lost for event in world.stream] == [None, 300, 1200, None]


def test_a_recovery_in_which_a_loss_had_part_names_it() -> None:
    world = World()
    world.settled(pending=1500)
    world.settled(pending=0, losing=True, lost=1500)
    world.settled(pending=0)
    assert world.published == ["backpressure_warning", "data_loss", "recovery"]
    assert world.stream[-1].reasons == ("data_loss",)
    world.settled(pending=1500)
    world.settled(pending=0)
    assert world.stream[-1].reasons == ()


def test_a_loss_that_finds_the_list_full_is_reported_once_there_is_room() -> None:
    world = World()
    world.settled(pending=0)
    world.publishing = False
    for n in range(UNSENT_LIMIT + 2):
        world.settled(pending=1500 * (1 - n % 2))
    world.settled(pending=1500, lost=7)
    world.settled(pending=0)
    assert world.state.record is not None and len(world.state.record.unsent) == UNSENT_LIMIT
    world.publishing, world.todo, world.held = True, world.held, []
    world.perform()
    world.settled(pending=0)
    assert [event.lost for event in world.stream if event.type is EventType.DATA_LOSS] == [7]


def beaten(world: World, lost: int, *, reported: bool) -> None:
    """A write that reports a loss meets the one of another, which reports it too or does not know of it."""
    world.read(pending=0, lost=lost)
    (write,) = world.todo
    assert isinstance(write, WriteRecord)
    record = write.writing.record
    if not reported:
        assert world.stored is not None
        record = world.stored
    world.stored, world.revision, world.todo = record, world.revision + 1, []
    world.feed(WriteConflict(write.writing.nonce))
    world.perform()


@pytest.mark.parametrize("reported", [False, True], ids=["who does not know of it", "who reported it"])
def test_a_loss_whose_write_lost_to_another_is_reported_once(reported: bool) -> None:
    world = World()
    world.settled(pending=0)
    beaten(world, 7, reported=reported)
    for _ in range(3):
        world.settled(pending=0)
    assert [event.lost for event in world.stream if event.type is EventType.DATA_LOSS] == [7]


def test_a_loss_that_another_replica_reported_first_is_not_reported_when_it_is_seen_here() -> None:
    world = World()
    world.settled(pending=0)
    (carried,) = world.stored.carried if world.stored and world.stored.carried else ((ONE, Carried()),)
    other = replace(world.stored, seq=1, carried=((carried[0], replace(carried[1], lost=7)),))
    world.stored, world.revision = other, world.revision + 1
    world.feed(RecordMissing())
    world.perform()
    world.settled(pending=0, lost=7)
    world.settled(pending=0)
    assert world.published == []
    world.at += LOSS_INTERVAL
    world.settled(pending=0, lost=5)
    assert [event.lost for event in world.stream] == [5]


def test_what_a_consumer_lost_is_reported_though_it_is_deleted_before() -> None:
    world = World()
    world.settled(pending=0, lost=5)
    world.settled(pending=0, lost=7)
    world.feed(ConsumerLeft(ONE))
    world.perform()
    assert world.published == ["data_loss", "data_loss", "monitoring_lost"]
    assert [event.lost for event in world.stream] == [5, 7, None]


def test_what_was_unknown_before_a_restart_stays_so_until_somebody_is_read() -> None:
    world = World()
    world.settled(pending=20_000)
    world.at += 31.0
    world.feed(Tick())
    world.perform()
    assert world.stored is not None and world.stored.unknown
    world.start()
    assert world.state.unproved_at_load
    world.settled(pending=20_000)
    assert not world.state.unproved_at_load


def test_a_loss_before_a_restart_is_not_reported_again() -> None:
    world = World()
    world.settled(pending=0, lost=7)
    world.start()
    world.settled(pending=0, lost=5)
    assert [event.lost for event in world.stream if event.type is EventType.DATA_LOSS] == [7, 5]


def test_restoration_loss_and_status_come_in_that_order() -> None:
    world = World()
    world.settled(pending=0)
    world.at += 31.0
    world.feed(Tick())
    world.perform()
    world.settled(pending=1500, lost=3)
    assert world.published == ["monitoring_lost", "monitoring_restored", "data_loss", "backpressure_warning"]


def test_a_purge_is_a_recovery_with_its_reason() -> None:
    world = World()
    world.settled(pending=1500)
    world.settled(pending=0, purged=True)
    assert world.stream[-1].reasons == ("purged",)


def lost_to_another() -> World:
    """Another replica stored the same change first."""
    world = World()
    world.settled(pending=0)
    world.read(pending=1500)
    (write,) = world.todo
    assert isinstance(write, WriteRecord)
    world.todo.clear()
    world.apply(write)
    world.feed(WriteConflict(write.writing.nonce))
    return world


def test_a_conflicting_writer_wins_and_the_difference_is_published_once() -> None:
    world = lost_to_another()
    world.perform()
    assert world.published == [], "left to its writer at first"
    world.at += UNSENT_WAIT
    world.feed(Tick())
    world.perform()
    assert world.published == ["backpressure_warning"]
    assert [e.seq for e in world.stream] == [1]


def test_a_write_of_ones_own_does_not_publish_what_another_replica_is_publishing() -> None:
    world = lost_to_another()
    world.settled(pending=1500, inflight=600)
    assert world.stored is not None and [event.seq for event in world.stored.unsent] == [1, 2]
    assert world.published == []
    world.at += UNSENT_WAIT
    world.feed(Tick())
    world.perform()
    assert world.published == ["backpressure_warning", "backpressure_active"]


@pytest.mark.parametrize("hold", [0.0, 1.0])
def test_a_change_is_one_write_and_one_more_once_it_is_published(hold: float) -> None:
    world = World(policy=replace(INSTANT, recovery_hold_seconds=hold))
    world.settled(pending=0)
    before = world.revision
    world.settled(pending=1500)
    assert world.revision == before + 2
    world.settled(pending=0)
    world.at += hold
    world.settled(pending=0)
    assert world.published == ["backpressure_warning", "recovery"]
    assert world.revision == before + 4


def test_an_events_stream_that_is_ahead_begins_a_new_epoch_after_it() -> None:
    world = World()
    world.settled(pending=0)
    world.read(pending=1500)
    world.perform(1)
    (publish,) = [a for a in world.todo if isinstance(a, PublishEvent)]
    world.todo.clear()
    world.feed(EventConflict(publish.event.id, 41, "new"))
    world.perform()
    assert [(e.epoch, e.seq, e.type.value) for e in world.stream] == [("new", 42, "backpressure_warning")]


def test_after_a_bucket_was_created_again_nothing_is_published_twice() -> None:
    world = World()
    world.settled(pending=1500, inflight=600)
    world.stored, world.revision = None, 0
    world.feed(RecordMissing())
    world.perform()
    assert world.published == ["backpressure_active"]
    assert world.stored is not None and world.stored.seq == 1
    world.settled(pending=0)
    assert [e.seq for e in world.stream] == [1, 2]


LOADS = st.sampled_from([(0, 0), (700, 0), (1500, 0), (1500, 600), (0, 600), (20_000, 0)])
MOVES = st.one_of(
    st.tuples(st.just("settled"), LOADS, st.sampled_from([ONE, TWO])),
    st.tuples(st.just("read"), LOADS, st.sampled_from([ONE, TWO])),
    st.tuples(st.just("perform"), st.integers(1, 3)),
    st.tuples(st.just("late"), st.integers(0, 3)),
    st.tuples(st.just("crash")),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 1.0, 12.0, 31.0])),
    st.tuples(st.just("gone"), st.sampled_from([ONE, TWO])),
    st.tuples(st.just("unstored")),
)


@settings(max_examples=examples(400))
@given(st.lists(MOVES, max_size=60), st.sampled_from([0.0, 1.0]))
def test_the_stream_has_each_change_once(moves: list[tuple], hold: float) -> None:
    world = World(policy=replace(ALERTING, recovery_hold_seconds=hold))
    for move in moves:
        match move:
            case ("read", (pending, inflight), key):
                world.read(pending, inflight, key)
            case ("settled", (pending, inflight), key):
                world.read(pending, inflight, key)
                world.perform()
            case ("perform", n):
                world.perform(n)
            case ("late", n) if len(world.todo) > n:
                # The last act asked for is applied, and the process dies before it hears of it.
                act = world.todo[n]
                if isinstance(act, WriteRecord) and act.writing.expected == world.revision:
                    world.apply(act)
                elif isinstance(act, PublishEvent) and act.event.id not in {e.id for e in world.stream}:
                    world.stream.append(act.event)
                world.start()
            case ("crash",):
                world.start()
            case ("wait", seconds):
                world.at += seconds
                world.feed(Tick())
            case ("gone", key):
                world.feed(ConsumerLeft(key))
            case ("unstored",) if not world.todo:
                world.stored, world.revision = None, 0
                world.feed(RecordMissing())
    world.read(20_000, 0, ONE)
    world.perform()
    world.read(20_000, 0, ONE)
    world.perform()
    assert [e.seq for e in world.stream] == list(range(1, len(world.stream) + 1))
    assert len({e.id for e in world.stream}) == len(world.stream)
    statuses = [e for e in world.stream if e.type in STATUS_EVENTS]
    assert all(a.now is b.was for a, b in pairwise(statuses))
    assert all(e.was is not e.now for e in statuses)
    assert statuses[-1].now is Status.ACTIVE
    assert world.stored is not None and world.stored.unsent == ()
    monitoring = [e.type for e in world.stream if "monitoring" in e.type.value]
    assert all(a is not b for a, b in pairwise(monitoring))
    alerts = [(e.epoch, e.alert.name, e.type) for e in world.stream if e.alert is not None]
    for epoch, name in {(epoch, name) for epoch, name, _ in alerts}:
        published = [kind for e, n, kind in alerts if (e, n) == (epoch, name)]
        assert all(a is not b for a, b in pairwise(published))


@pytest.mark.parametrize("key", [ONE, TWO])
def test_a_reading_of_an_unknown_member_changes_nothing(key: ConsumerKey) -> None:
    world = World()
    world.feed(ConsumerRead(Reading(key, Now(0, 0), 1500, 600, 0.0, None)))
    assert world.state.members == {} and world.todo == []


def test_a_policy_refused_is_published_once_and_numbered_with_the_rest() -> None:
    world = World()
    world.settled(pending=1500, inflight=600)
    refusal = Rejection("b:7", (("pending.warn", "must not be above critical"),))
    for _ in range(3):
        world.feed(PolicyRefused(refusal))
        world.perform()
    world.start()
    world.feed(PolicyRefused(refusal))
    world.settled(pending=0)
    assert world.published == ["backpressure_active", "policy_rejected", "recovery"]
    rejected = world.stream[1]
    assert (rejected.seq, rejected.errors, rejected.policy_revision) == (2, refusal.errors, "b:7")
    assert (rejected.was, rejected.now) == (Status.ACTIVE, Status.ACTIVE)


def test_several_refused_policies_are_published_once_each_also_after_restarts() -> None:
    """Of the bucket, and of the metadata of two consumers: each start refuses all of them again."""
    world = World()
    refusals = [Rejection(mark, ()) for mark in ("b:7", "m1", "m2")]
    for order in (refusals, refusals[::-1], [*refusals, *refusals]):
        for refusal in order:
            world.feed(PolicyRefused(refusal))
        world.settled(pending=5)
        world.settled(pending=5)
        assert world.published == ["policy_rejected"] * 3
        world.start()
    assert {event.policy_revision for event in world.stream} == {"b:7", "m1", "m2"}
    for n in range(2 * UNSENT_LIMIT):
        world.feed(PolicyRefused(Rejection(f"many {n}", ())))
        world.settled(pending=5)
    assert len(world.published) == 3 + 2 * UNSENT_LIMIT and world.stored is not None
    assert world.stored.announced_rejections == tuple(f"many {n}" for n in range(MOST_REJECTIONS))


def test_an_override_is_stored_at_once_and_gone_when_it_expires() -> None:
    world = World()
    world.settled(pending=5)
    world.feed(PolicyChanged(replace(INSTANT, override=(Override("reject", world.at + 60),))))
    world.policy = world.state.policy
    world.settled(pending=5)
    assert world.stored is not None and world.stored.override == world.policy.override[0]
    assert world.stored.reasons == ("override",)
    assert world.published == []
    world.at += 60
    world.settled(pending=5)
    assert (world.stored.override, world.stored.reasons) == (None, ())


def test_an_event_says_which_override_was_in_force_and_what_is_answered_under_it() -> None:
    world = World(policy=replace(INSTANT, override=(Override("open", 1e10),)))
    world.settled(pending=1500, inflight=600)
    (event,) = world.stream
    assert (event.type, event.override) == (EventType.ACTIVE, Override("open", 1e10))
    assert (event.retry_after, event.admit_ratio, event.reasons) == (0, 1.0, ("pending", "inflight", "override"))


def test_a_diagnosis_that_lasts_counts_beside_an_overloaded_backlog_and_is_named() -> None:
    world = World()
    world.settled(pending=1500, diagnosis=Diagnosis.NOBODY_PULLING, diagnosed_for=9.9)
    world.settled(pending=1500, diagnosis=Diagnosis.NOBODY_PULLING, diagnosed_for=10.0)
    assert world.published == ["backpressure_warning", "backpressure_active"]
    assert world.stream[1].reasons == ("pending", "nobody_pulling")
    assert world.stored is not None and world.stored.diagnosis is Diagnosis.NOBODY_PULLING
    world.settled(pending=0)
    assert world.stream[-1].reasons == ()


def test_a_hung_worker_is_named_stalled() -> None:
    world = World()
    world.settled(inflight=600, latency=6000.0, stalled=True)
    assert world.stream[-1].reasons == ("inflight", "latency_p95", "stalled")


def test_a_consumer_that_surely_reads_history_is_left_out_where_the_policy_says_so() -> None:
    for count, published in ((True, ["backpressure_active"]), (False, [])):
        world = World(policy=replace(INSTANT, count_backfill=count))
        world.settled(pending=50_000, inflight=600, backfilling=True)
        assert world.published == published
    assert worst_member(world.state.members.values()).pressure == 0.0


@pytest.mark.parametrize("diagnosis", [d for d in Diagnosis if d not in COUNTED])
def test_other_diagnoses_do_not_count_however_long_they_last(diagnosis: Diagnosis) -> None:
    world = World()
    world.settled(pending=1500, diagnosis=diagnosis, diagnosed_for=1e6)
    assert world.published == ["backpressure_warning"]


def test_an_alert_is_published_after_the_status_and_outlives_a_restart() -> None:
    world = World(policy=ALERTING)
    world.settled(pending=1500, inflight=600)
    world.start()
    world.settled(pending=1500, inflight=600)
    world.settled(pending=0)
    assert world.published == [
        "backpressure_active", "alert_firing", "alert_firing", "recovery", "alert_resolved", "alert_resolved",
    ]  # fmt: skip
    fired = world.stream[1]
    assert fired.alert is not None
    assert (fired.alert.name, fired.alert.severity, fired.alert.when) == (
        "backpressure_active",
        "critical",
        "status: active",
    )
    assert (fired.was, fired.now, fired.incident) == (Status.ACTIVE, Status.ACTIVE, world.stream[0].incident)


def test_more_alerts_than_the_list_has_room_for_are_published_when_it_has() -> None:
    rules = tuple(AlertRule(f"above-{n}", When(pending_above=n)) for n in range(2 * UNSENT_LIMIT))
    world = World(policy=replace(INSTANT, alerts=rules))
    world.settled(pending=500)
    for _ in range(3):
        world.settled(pending=500)
    assert world.published == ["alert_firing"] * len(rules)
    assert world.stored is not None and {a.state for a in world.stored.alerts} == {"firing"}


def test_nothing_is_drawn_from_time_alone_while_the_truth_is_stale() -> None:
    world = World(policy=replace(INSTANT, alerts=(AlertRule("long", When(pending_above=5), for_seconds=12),)))
    world.settled(pending=500)
    for _ in range(20):
        world.at += 1
        world.feed(Tick())
        world.perform()
    assert world.published == []
    for _ in range(120):
        world.settled(pending=500)
        assert world.published == [], "time in which nobody looked counts for nothing"
    world.settled(pending=500)
    world.settled(pending=500)
    assert world.published == ["alert_firing"]


@pytest.mark.parametrize("consumers", [1, 2, 3])
def test_a_message_that_several_consumers_missed_counts_for_each(consumers: int) -> None:
    world = World()
    keys = [ConsumerKey("S", f"c{n}") for n in range(consumers)]
    for lost in (0, 100):
        for key in keys:
            world.settled(pending=5, key=key, lost=lost, losing=lost > 0)
    assert sum(event.lost or 0 for event in world.stream) == 100 * consumers


def test_a_loss_under_a_calm_subject_is_published_all_the_same() -> None:
    world = World()
    world.settled(pending=5)
    world.settled(pending=5, lost=3, losing=True)
    assert world.published == ["data_loss"]
    assert world.stream[0].lost == 3


ADAPTIVE = replace(INSTANT, admission=AdmissionRule(mode="adaptive", floor=0.05, target_drain_seconds=2))


def shed(world: World, seconds: float = 6.0) -> None:
    """Two hundred arrive each second where a hundred are done."""
    pending = delivered = 0
    for _ in range(int(seconds / 0.1)):
        pending, delivered = pending + 10, delivered + 10
        world.settled(pending=pending, delivered_consumer=delivered, capacity=100.0)


def test_adaptive_admission_sheds_a_share_and_nobody_in_silence() -> None:
    world = World(policy=ADAPTIVE)
    shed(world)
    assert world.stored is not None
    verdict = world.stored.admission
    assert verdict.action is Action.THROTTLE
    assert 0.05 <= verdict.admit_ratio < 0.9 and 1 <= verdict.retry_after <= 30
    assert world.published[0] == "backpressure_warning" and "shedding" in world.stream[0].reasons
    assert "shedding" in world.stored.reasons
    assert world.stored.status >= Status.WARNING


def test_what_was_admitted_before_a_restart_is_gone_on_with() -> None:
    world = World(policy=ADAPTIVE)
    shed(world)
    assert world.stored is not None
    before = world.stored.admission.admit_ratio
    world.start()
    assert world.state.shedding.ratio == before


def test_binary_mode_knows_no_share() -> None:
    world = World()
    shed(world, 15)
    assert world.stored is not None and world.stored.admission.action is not Action.THROTTLE
    assert "shedding" not in world.stored.reasons


def test_a_member_that_only_counts_no_more_was_not_deleted() -> None:
    world = World()
    world.read()
    world.read(pending=20_000, key=TWO)
    world.perform()
    world.feed(ConsumerLeft(TWO, exists=True))
    world.perform()
    assert (world.stream[-1].type, world.stream[-1].reasons) == (EventType.RECOVERY, ())
    world.read(pending=20_000, key=TWO)
    world.perform()
    world.feed(ConsumerLeft(TWO))
    world.perform()
    assert world.stream[-1].reasons == ("consumer_deleted",)


class TestASubjectThatAgesAlone:
    def world(self) -> World:
        world = World()
        world.read()
        world.perform()
        world.swept = world.at
        return world

    def aged(self, world: World, seconds: float, *, alone: bool = True) -> None:
        world.at += seconds
        world.swept = world.at if alone else world.swept
        world.feed(Tick())
        world.perform()

    def test_it_is_stored_as_stale_once_and_as_known_again(self) -> None:
        world = self.world()
        self.aged(world, 9.9)
        assert world.stored is not None and not world.stored.stale
        self.aged(world, 0.2)
        assert world.stored.stale and world.stream == []
        revision = world.revision
        self.aged(world, 5.0)
        assert world.revision == revision
        world.read()
        world.perform()
        assert not world.stored.stale

    def test_where_all_age_together_nothing_is_stored(self) -> None:
        world = self.world()
        revision = world.revision
        self.aged(world, 20.0, alone=False)
        assert world.revision == revision

    def test_lost_is_not_stale(self) -> None:
        world = self.world()
        self.aged(world, 12.0)
        self.aged(world, 20.0)
        assert world.stored is not None and (world.stored.unknown, world.stored.stale) == (True, False)

    def test_reasons_and_readings_are_those_of_the_member_with_the_status(self) -> None:
        """An idle neighbour that cannot be read makes nobody less overloaded; an overloaded one may have recovered."""
        world = self.world()
        world.read(key=TWO)
        world.read(pending=20_000)
        world.perform()
        for _ in range(400):
            world.swept = world.at
            world.read(pending=20_000)
            world.perform()
        assert world.stored is not None and (world.stored.status, world.stored.stale) == (Status.ACTIVE, False)
        for _ in range(110):
            world.swept = world.at
            world.read(key=TWO)
            world.perform()
        assert world.stored.stale
        for _ in range(200):
            world.swept = world.at
            world.read(key=TWO)
            world.perform()
        assert world.stored.unknown and world.stream[-1].type is EventType.MONITORING_LOST

    def test_after_a_restart_nobody_read_means_nothing_proved(self) -> None:
        world = self.world()
        world.start()
        world.at += 5
        world.feed(Tick())
        assert world.stored is not None and not world.stored.stale
        world.swept = world.at
        world.feed(Tick())
        world.perform()
        assert world.stored.stale


class TestAlertsAfterAnAbsence:
    """What piled up while nobody limited the load is shown and pages nobody, unless it stays."""

    def published(self, world: World, pending: int, seconds: float) -> list[str]:
        """What was published within this number of seconds of such readings."""
        before = len(world.stream)
        for _ in range(round(seconds * 10)):
            world.read(pending)
            world.perform()
        return [event.type.value for event in world.stream[before:]]

    def test_a_start_under_load_publishes_the_status_and_alerts_only_for_what_stays(self) -> None:
        world = World(AT_ONCE, graceful=True)
        assert self.published(world, 20_000, 9.8) == ["backpressure_active"]
        assert self.published(world, 20_000, 1.0) == ["alert_firing"]

    def test_what_went_meanwhile_pages_nobody(self) -> None:
        world = World(AT_ONCE, graceful=True)
        assert self.published(world, 20_000, 5) == ["backpressure_active"]
        assert self.published(world, 0, 20) == ["recovery"]
        assert self.published(world, 20_000, 0.3) == ["backpressure_active", "alert_firing"], "by now it is news"

    def test_after_a_restart_an_alert_that_fired_goes_on_and_another_one_waits(self) -> None:
        world = World(ALERTING, graceful=True)
        self.published(world, 1500, 10.5)
        world.start()
        assert self.published(world, 20_000, 9.8) == ["backpressure_active"]
        assert self.published(world, 20_000, 1.0) == ["alert_firing"]
        world.start()
        assert self.published(world, 0, 1) == ["recovery", "alert_resolved", "alert_resolved"]

    def test_a_gap_in_what_is_read_is_an_absence_too(self) -> None:
        world = World(AT_ONCE, graceful=True)
        self.published(world, 0, 30)
        world.at += 12.0
        assert self.published(world, 20_000, 9.8) == ["backpressure_active"]
        assert self.published(world, 20_000, 1.0) == ["alert_firing"]


@pytest.mark.parametrize(
    ("on_unknown", "gap", "least", "most"),
    [
        pytest.param("hold", 5.0, 0.2, 0.5, id="no gap: it rises by its own rule"),
        pytest.param("hold", 12.0, 0.69, 0.96, id="from where gateways had opened it to"),
        pytest.param("hold", 60.0, 1.0, 1.0, id="they were open: an empty queue closes nothing"),
        pytest.param("continue", 11.0, 1.0, 1.0, id="continue: they were open at once"),
        pytest.param("reject", 11.0, 0.2, 0.46, id="reject: they opened nothing"),
    ],
)
def test_after_a_gap_a_share_goes_on_from_where_gateways_opened_it_to(
    on_unknown: str, gap: float, least: float, most: float
) -> None:
    adaptive = AdmissionRule("adaptive")
    world = World(policy=replace(INSTANT, on_unknown=on_unknown, admission=adaptive))
    world.settled(pending=0)
    world.state = replace(world.state, shedding=Shedding(ratio=0.2, retry_after=5, at=world.at, unstepped_ratio=0.2))
    world.at += gap - 0.1
    world.settled(pending=0)
    assert world.stored is not None
    assert least - 0.01 <= world.stored.admission.admit_ratio <= most


@pytest.mark.parametrize(
    "late",
    [
        pytest.param(WriteDone("another", 9), id="a write that is not under way"),
        pytest.param(WriteFailing("another"), id="a failure of it"),
        pytest.param(WriteConflict("another"), id="a conflict of it"),
        pytest.param(EventSent("another"), id="an event that is not being published"),
        pytest.param(EventConflict("another", 9, "e"), id="a conflict of it"),
        pytest.param(EventDropped("another", "e"), id="a drop of it"),
        pytest.param(ConsumerLeft(ConsumerKey("S", "another")), id="a consumer that is no member"),
        pytest.param(
            ConsumerRead(Reading(ConsumerKey("S", "another"), Now(1000.3, 1000.3), 0, 0, 0.0, None)),
            id="a reading of one",
        ),
    ],
)
def test_an_input_that_comes_too_late_changes_nothing(late: Input) -> None:
    world = World()
    world.read()
    world.perform()
    before = world.state
    after = apply(late, before, Now(world.at, world.at))
    assert after == before


def test_what_is_no_input_is_refused() -> None:
    with pytest.raises(TypeError, match="str is no input"):
        apply("tick", World().state, Now(0.0, 0.0))  # type: ignore[arg-type]


@pytest.mark.parametrize("unsent", [True, False], ids=["listed", "no longer listed"])
def test_an_event_that_can_never_be_published_gives_its_number_to_the_next(unsent: bool) -> None:
    world = World(publishing=False)
    world.read(pending=1500, inflight=600)
    world.perform()
    state = world.state
    assert state.record is not None
    assert state.publishing is not None
    if not unsent:
        state = replace(state, record=replace(state.record, unsent=()))
    dropped = apply(EventDropped(state.publishing, "new"), state, Now(world.at, world.at))
    assert (dropped.publishing, dropped.renumber_from) == (None, ("new", 0))
    assert dropped.published == {state.publishing}


def test_what_gateways_report_is_summed_up() -> None:
    state = apply(GatewayReported(100, 40, 1.0), World().state, Now(1000.0, 1000.0))
    assert state.offered_load is not None
    assert state.offered_load.share(1000.0) == 0.4


def test_a_report_alone_concludes_nothing() -> None:
    """Up to a thousand come a second, and a conclusion looks at all consumers."""
    world = World()
    world.read()
    world.perform()
    before = world.state
    state, effects = step(
        replace(before, policy=Policy(mode="observe")),
        GatewayReported(100, 40, 1.0),
        Now(world.at, world.at),
        StepContext(10.0, 30.0),
    )
    assert effects == [] and state.writing is None


def test_a_stored_loss_of_a_consumer_that_left_meanwhile_changes_no_other_member() -> None:
    world = World()
    world.read()
    world.perform()
    writing = Writing(world.stored, world.revision, "n", losses=(Loss(ConsumerKey("S", "gone"), 5, None),))
    state = apply(WriteDone("n", 9), replace(world.state, writing=writing), Now(world.at, world.at))
    assert (state.writing, state.revision, state.members) == (None, 9, world.state.members)
