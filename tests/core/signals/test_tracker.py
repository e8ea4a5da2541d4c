"""From samples to signals: rates, drain, latency, stall, loss, and which samples are used."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from msgspec.structs import replace

from nats_backpressure.core.model.member import Carried
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.model.samples import ConsumerConfig, Retention, Sample, StreamLook
from nats_backpressure.core.model.worker_reports import NO_REPORTS, WorkerReports
from nats_backpressure.core.signals import incarnations
from nats_backpressure.core.signals.incarnations import mark
from nats_backpressure.core.signals.tracker import ConsumerTracker
from nats_backpressure.protocol.timestamps import Now, parse_rfc3339
from nats_backpressure.protocol.values import ConsumerKey, Diagnosis

KEY = ConsumerKey("S", "c")


@dataclass
class Consumer:
    """A consumer in arithmetic: what happens to it is called by name, and `read` gives what the server would say."""

    filters: tuple[str, ...] = ()
    cap: int | None = 1000
    at: float = 100.0
    first: int = 1
    last: int = 0
    delivered: int = 0
    given: int = 0
    floor: int = 0
    inflight: int = 0
    last_ack: float | None = None
    last_delivery: float | None = None
    created: str = "one"
    stream_created: str = "then"
    at_limit: bool = False
    redelivered: int = 0
    waiting: int = 0
    paused: bool = False
    bound: bool = True
    push: bool = False
    fill: float | None = None
    retention: Retention | None = None
    first_age: float | None = None
    ack_wait: float = 30.0
    sampled: bool = False
    ack_policy: str = "explicit"
    reports: WorkerReports = NO_REPORTS
    track: ConsumerTracker = field(default_factory=ConsumerTracker)

    def publish(self, n: int) -> None:
        self.last += n

    def deliver(self, n: int) -> None:
        self.delivered = max(self.delivered, self.first - 1) + n
        self.given += n
        self.inflight += n
        self.last_delivery = self.at

    def ack(self, n: int) -> None:
        self.inflight -= n
        self.floor = self.delivered - self.inflight
        self.last_ack = self.at

    def evict_to(self, first: int) -> None:
        self.first = first

    def purge(self) -> None:
        self.first = self.last + 1
        self.delivered = self.floor = self.last
        self.inflight = 0

    def sample(self) -> Sample:
        return Sample(
            key=KEY,
            created=self.created,
            config=ConsumerConfig(
                filters=self.filters,
                max_ack_pending=self.cap,
                push=self.push,
                ack_wait=self.ack_wait,
                sampled=self.sampled,
                ack_policy=self.ack_policy,
            ),
            at=Now(self.at, self.at),
            pending=self.last - max(self.delivered, self.first - 1),
            inflight=self.inflight,
            redelivered=self.redelivered,
            waiting=self.waiting,
            delivered_stream=self.delivered,
            delivered_consumer=self.given,
            floor_stream=self.floor,
            floor_consumer=0,
            since_delivery=None if self.last_delivery is None else self.at - self.last_delivery,
            since_ack=None if self.last_ack is None else self.at - self.last_ack,
            paused=self.paused,
            bound=self.bound,
        )

    def look(self) -> StreamLook:
        held = self.last - self.first + 1
        return StreamLook(
            "S",
            self.stream_created,
            self.first,
            self.last,
            held,
            ("s.>",),
            self.at_limit,
            None,
            self.fill,
            self.first_age,
            self.retention,
        )

    def take(self, after: float = 0.1) -> Reading | str:
        self.at += after
        return self.track.add_sample(self.sample(), self.look(), reports=self.reports)

    def read(self, after: float = 0.1) -> Reading:
        reading = self.take(after)
        assert isinstance(reading, Reading), reading
        return reading


def worked(consumer: Consumer, rounds: int = 20, each: int = 10) -> Reading:
    """A worker that takes and acks `each` messages every 100 ms, behind a queue."""
    reading = consumer.read()
    for _ in range(rounds):
        consumer.deliver(each)
        consumer.ack(each)
        reading = consumer.read()
    return reading


def test_drain_is_pending_over_the_ack_rate_while_messages_wait() -> None:
    consumer = Consumer()
    consumer.publish(1700)
    assert worked(consumer).drain == pytest.approx(15.0)


def test_drain_is_unknown_until_a_second_of_waiting_was_seen() -> None:
    consumer = Consumer()
    consumer.publish(1700)
    assert worked(consumer, rounds=9).drain is None
    assert worked(consumer, rounds=2).drain is not None


def test_an_idle_worker_teaches_nothing_about_drain() -> None:
    consumer = Consumer()
    for _ in range(30):
        consumer.publish(1)
        consumer.deliver(1)
        consumer.ack(1)
        reading = consumer.read()
    assert reading.drain is None
    assert reading.ack_rate == pytest.approx(10.0, rel=0.1)


def test_what_leaves_in_flight_without_the_server_seeing_an_ack_is_no_ack() -> None:
    consumer = Consumer()
    consumer.publish(100)
    consumer.deliver(50)
    consumer.read()
    consumer.inflight -= 10
    assert [consumer.read().ack_rate for _ in range(15)][-1] == 0.0


def test_no_ack_at_all_is_no_drain_rate() -> None:
    consumer = Consumer()
    consumer.publish(1500)
    for _ in range(30):
        reading = consumer.read()
    assert reading.drain is None


def test_in_flight_without_acks_stalls() -> None:
    consumer = Consumer()
    consumer.publish(10)
    consumer.read()
    consumer.deliver(5)
    consumer.read()
    for _ in range(7):
        reading = consumer.read(1.0)
    assert reading.latency_source == "stall"
    assert reading.latency == reading.p95 == reading.stall == pytest.approx(7100.0, rel=0.02)


def test_the_stall_of_an_old_worker_is_seen_at_first_sight() -> None:
    consumer = Consumer()
    consumer.publish(10)
    consumer.deliver(5)
    assert consumer.read(60.0).stall == pytest.approx(60_000.0)


def test_a_message_just_taken_after_a_long_idle_is_no_stall() -> None:
    consumer = Consumer()
    consumer.publish(10)
    consumer.deliver(5)
    consumer.ack(5)
    consumer.at += 60.0
    consumer.deliver(1)
    assert consumer.read().stall == pytest.approx(100.0)


def test_nothing_in_flight_is_no_stall_however_long_ago_the_last_ack() -> None:
    consumer = Consumer()
    consumer.publish(10)
    consumer.deliver(5)
    consumer.ack(5)
    reading = consumer.read(60.0)
    assert (reading.stall, reading.latency) == (0.0, None)


def test_without_samples_latency_is_estimated_from_what_is_in_flight() -> None:
    consumer = Consumer()
    consumer.publish(3000)
    consumer.deliver(50)
    reading = worked(consumer, rounds=30)
    assert reading.latency_source == "estimated"
    assert reading.latency == pytest.approx(3 * 50 / 100 * 1000, rel=0.05)
    assert reading.p50 is None


@pytest.mark.parametrize(
    ("sampled", "every", "seconds", "source", "latency"),
    [
        pytest.param(False, None, 3, "estimated", 1500, id="without sample_freq it is estimated at once"),
        pytest.param(True, None, 3, "stall", 100, id="with it, too few metrics are no estimate yet"),
        pytest.param(True, 0.5, 3, "stall", 100, id="nor with some"),
        pytest.param(True, 10.0, 58, "stall", 100, id="nor with a metric every 10 s"),
        pytest.param(True, 0.1, 3, "sampled", 600, id="enough metrics count at once"),
        pytest.param(True, 1.0, 25, "sampled", 600, id="so do those of one percent"),
        pytest.param(True, None, 61, "estimated", 1500, id="without any for a minute none are expected"),
        pytest.param(True, 10.0, 65, "estimated", 1500, id="as where they come too rarely"),
    ],
)
def test_a_sampled_consumer_is_not_estimated_in_the_first_minute(
    sampled: bool, every: float | None, seconds: int, source: str, latency: float
) -> None:
    """After a restart, three times the mean of a steady latency would be an overload that is none."""
    consumer = steady(sampled)
    reading = worked_for(consumer, seconds, every)
    assert reading.latency_source == source
    assert (reading.latency, reading.p95) == (pytest.approx(latency, rel=0.05), pytest.approx(latency, rel=0.05))
    assert reading.latency_evidence == (source != "stall" and seconds >= 10)


def test_after_time_without_readings_the_minute_begins_again() -> None:
    """The ack metrics of that time are missing, too."""
    consumer = steady(sampled=True)
    assert worked_for(consumer, 65, 0.1).latency_source == "sampled"
    consumer.at += 70.0
    for seconds, source in ((58, "stall"), (3, "estimated")):
        assert worked_for(consumer, seconds, None).latency_source == source


def steady(sampled: bool) -> Consumer:
    """Half a second in flight, always: its estimate is 1.5 s."""
    consumer = Consumer(sampled=sampled)
    consumer.publish(20_000)
    consumer.deliver(50)
    return consumer


def worked_for(consumer: Consumer, seconds: int, every: float | None) -> Reading:
    """100 messages a second for so long, and an ack metric of 0.6 s from time to time."""
    reading = consumer.read()
    for step in range(seconds * 10):
        consumer.deliver(10)
        consumer.ack(10)
        if every is not None and step % round(every * 10) == 0:
            consumer.track.ack_seen(0.6, 1, Now(consumer.at, 0.0))
        reading = consumer.read()
    return reading


@pytest.mark.parametrize("taken_for", [0.8, 2.0, 4.5])
@pytest.mark.parametrize("rate", [1, 5])
def test_an_estimate_is_no_longer_than_the_time_since_there_was_nothing_to_do(rate: int, taken_for: float) -> None:
    """When work begins, there are many in flight and few acks: that is no long latency."""
    consumer, under_way = Consumer(), round(taken_for * 10)
    for round_ in range(3):
        consumer.at += 20.0 * round_
        began = consumer.at
        assert consumer.read().latency == 0.0
        latencies = []
        for step in range(150):
            consumer.publish(rate)
            consumer.deliver(rate)
            if step >= under_way:
                consumer.ack(rate)
            reading = consumer.read()
            assert reading.latency is not None or step < under_way
            latencies.append(reading.latency or 0.0)
            assert latencies[-1] <= (consumer.at - began) * 1000
        assert max(latencies) <= 4 * (taken_for + 0.1) * 1000
        assert latencies[-1] == pytest.approx(3000 * taken_for, rel=0.15)
        consumer.ack(consumer.inflight)
        consumer.read()


@pytest.mark.parametrize("seen_before", [False, True])
def test_a_backlog_that_workers_begin_on_has_no_latency_longer_than_they_work(seen_before: bool) -> None:
    consumer = Consumer()
    consumer.publish(5000)
    for _ in range(20 if seen_before else 1):
        consumer.read()
    began = consumer.at
    for step in range(100):
        consumer.deliver(32 if step == 0 else 1)
        consumer.ack(0 if step == 0 else 1)
        reading = consumer.read()
        assert max(reading.latency or 0.0, reading.p95 or 0.0) <= (consumer.at - began) * 1000 + 1e-6


def worked_beside_returned(returned: int, told: bool) -> Consumer:
    """150 messages a second in work for 20 ms each, while so many wait for the end of their delay."""
    consumer = Consumer(reports=WorkerReports(returned) if told else NO_REPORTS)
    consumer.publish(20_000)
    consumer.deliver(returned)
    for _ in range(200):
        consumer.deliver(15)
        consumer.ack(12)
        consumer.read()
        consumer.ack(3)
        consumer.read()
    return consumer


@pytest.mark.parametrize("told", [True, False])
def test_what_workers_said_they_returned_with_a_delay_is_in_no_estimate(told: bool) -> None:
    reading = worked_beside_returned(260, told).read()
    assert reading.latency is not None and (reading.latency < 200) is told
    assert reading.inflight == 260


@pytest.mark.parametrize("said", [40, 1000])
def test_a_worker_that_returned_all_it_had_stalls_only_beside_a_queue(said: int) -> None:
    """It does no work, but without a queue nobody waits for it."""
    consumer = Consumer()
    consumer.publish(40)
    consumer.read()
    consumer.deliver(40)
    consumer.reports = WorkerReports(said, refused=True)
    assert [consumer.read().stall for _ in range(100)] == [0.0] * 100
    consumer.publish(1)
    for _ in range(8):
        reading = consumer.read(1.0)
    assert reading.stall > 6000


@pytest.mark.parametrize("refused", [False, True])
def test_nobody_pulls_is_not_said_while_those_that_ask_are_refused(refused: bool) -> None:
    consumer = Consumer(reports=WorkerReports(refused=refused))
    consumer.publish(100)
    consumer.deliver(40)
    for _ in range(400):
        reading = consumer.read()
    assert reading.diagnosis is (None if refused else Diagnosis.NOBODY_PULLING)


def test_no_estimate_while_redeliveries_pass_for_acks() -> None:
    consumer = Consumer()
    consumer.publish(3000)
    consumer.deliver(50)
    worked(consumer, rounds=30)
    consumer.track.nak_seen(Now(consumer.at, 0.0))
    assert consumer.read().latency_source == "stall"


def test_ack_samples_give_quantiles() -> None:
    consumer = Consumer()
    for n in range(100):
        consumer.track.ack_seen(0.010 * (n + 1), 1, Now(consumer.at, 0.0))
    reading = consumer.read()
    assert reading.latency_source == "sampled"
    assert (reading.p50, reading.p95) == (pytest.approx(500, rel=0.03), pytest.approx(950, rel=0.03))


def test_a_hung_worker_outweighs_its_fast_samples() -> None:
    consumer = Consumer()
    consumer.publish(10)
    consumer.read()
    for _ in range(100):
        consumer.track.ack_seen(0.01, 1, Now(consumer.at, 0.0))
    consumer.deliver(5)
    consumer.read()
    reading = consumer.read(8.0)
    assert reading.latency_source == "stall"
    assert not reading.latency_evidence or reading.latency == reading.stall
    assert (reading.p50, reading.p99) == (None, None), "beside the stall they would look calm"


def test_old_samples_do_not_hold_an_idle_consumer() -> None:
    consumer = Consumer()
    for _ in range(100):
        consumer.track.ack_seen(9.0, 1, Now(consumer.at, 0.0))
    reading = consumer.read()
    assert (reading.latency, reading.latency_evidence) == (0.0, True)


def test_the_ack_rate_of_a_filtered_consumer_does_not_count_naks() -> None:
    consumer = Consumer(filters=("s.a",))
    consumer.publish(100)
    consumer.deliver(10)
    consumer.read()
    for _ in range(20):
        consumer.given += 10
        for _ in range(10):
            consumer.track.nak_seen(Now(consumer.at, 0.0))
        reading = consumer.read()
    assert reading.ack_rate == 0.0


def test_eviction_before_delivery_is_loss_with_its_number() -> None:
    consumer = Consumer()
    consumer.publish(1000)
    consumer.read()
    consumer.publish(500)
    consumer.evict_to(501)
    consumer.read()
    reading = consumer.read()
    assert (reading.lost, reading.losing, reading.purged) == (500, True, False)


def test_one_loss_is_counted_once() -> None:
    consumer = Consumer()
    consumer.publish(1000)
    consumer.read()
    consumer.evict_to(501)
    assert sum(consumer.read(1.0).lost for _ in range(30)) == 500


def test_what_was_delivered_before_it_went_is_no_loss() -> None:
    consumer = Consumer()
    consumer.publish(1000)
    consumer.read()
    consumer.deliver(600)
    consumer.read()
    consumer.evict_to(501)
    reading = [consumer.read() for _ in range(3)]
    assert not any(r.lost or r.losing for r in reading)


def test_a_purge_is_no_loss() -> None:
    consumer = Consumer()
    consumer.publish(1000)
    consumer.deliver(10)
    consumer.read()
    consumer.purge()
    reading = consumer.read()
    assert (reading.purged, reading.losing, reading.lost) == (True, False, 0)
    assert not consumer.read().purged


def test_a_consumer_that_was_moved_forward_is_not_purged() -> None:
    consumer = Consumer()
    consumer.publish(500)
    for _ in range(5):
        consumer.read()
    consumer.delivered = consumer.floor = consumer.last
    reading = consumer.read()
    assert (reading.pending, reading.reset, reading.purged, reading.losing, reading.lost) == (0, True, False, False, 0)
    assert not consumer.read().reset


def test_a_workqueue_that_drains_is_neither_purged_nor_losing() -> None:
    consumer = Consumer()
    consumer.publish(1000)
    consumer.read()
    for _ in range(100):
        consumer.deliver(10)
        consumer.ack(10)
        consumer.evict_to(consumer.floor + 1)
        reading = consumer.read()
        assert not (reading.purged or reading.losing or reading.lost)


def test_the_empty_default_state_of_a_new_member_is_set_aside() -> None:
    consumer = Consumer()
    consumer.publish(1000)
    consumer.deliver(500)
    consumer.read()
    blank = replace(consumer.sample(), pending=0, inflight=0, delivered_stream=0, delivered_consumer=0, floor_stream=0)
    assert consumer.track.add_sample(blank, consumer.look()) == "a sequence went backwards"
    assert consumer.read().inflight == 500


def test_two_samples_in_sequence_of_another_incarnation_are_believed() -> None:
    consumer = Consumer()
    consumer.publish(1000)
    consumer.deliver(500)
    consumer.read()
    consumer.created, consumer.delivered, consumer.given, consumer.inflight = "two", 0, 0, 0
    assert consumer.take() == "another incarnation of the consumer"
    assert consumer.read().pending == 1000


def test_more_pending_than_the_stream_ever_held_is_never_believed() -> None:
    consumer = Consumer()
    consumer.publish(10)
    wrapped = replace(consumer.sample(), pending=2**64 - 1)
    assert isinstance(consumer.track.add_sample(wrapped, consumer.look()), str)
    assert isinstance(consumer.track.add_sample(wrapped, consumer.look()), str)


def test_a_reading_says_what_is_going_on_and_for_how_long() -> None:
    consumer = Consumer()
    consumer.publish(50)
    readings = [consumer.read(0.5) for _ in range(25)]
    assert [r.diagnosis for r in readings[:4]] == [None] * 4
    assert {r.diagnosis for r in readings[4:]} == {Diagnosis.NOBODY_PULLING}
    assert (readings[3].diagnosed_for, readings[4].diagnosed_for) == (0.0, 0.0)
    assert readings[-1].diagnosed_for == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("changes", "diagnosis"),
    [
        ({"waiting": 1}, Diagnosis.SERVER_STUCK),
        ({"paused": True}, Diagnosis.PAUSED),
        ({"push": True, "bound": False}, Diagnosis.NOBODY_PULLING),
        ({"push": True, "bound": True}, Diagnosis.HEALTHY),
        ({"fill": 1.0}, Diagnosis.NOBODY_PULLING),
        ({"fill": 1.0, "waiting": 1, "paused": True}, Diagnosis.STREAM_FULL),
    ],
    ids=["pulls wait", "paused", "push to nobody", "push to somebody", "full, and nobody", "full, and paused"],
)
def test_what_the_server_shows_reaches_the_rules(changes: dict[str, Any], diagnosis: Diagnosis) -> None:
    consumer = Consumer(**changes)
    consumer.publish(50)
    assert [consumer.read(0.5).diagnosis for _ in range(6)][-1] is diagnosis


@pytest.mark.parametrize(
    ("discards_old", "held", "queue", "diagnosis"),
    [
        (True, 994, 0, Diagnosis.IDLE),
        (True, 995, 0, Diagnosis.IDLE),
        (True, 1000, 0, Diagnosis.IDLE),
        (True, 995, 50, Diagnosis.PAUSED),
        (True, 1000, 50, Diagnosis.STREAM_FULL),
        (False, 985, 0, Diagnosis.IDLE),
        (False, 995, 0, Diagnosis.STREAM_FULL),
        (False, 1000, 50, Diagnosis.STREAM_FULL),
    ],
)
def test_a_stream_is_full_where_it_refuses_or_drops_what_waits(
    discards_old: bool, held: int, queue: int, diagnosis: Diagnosis
) -> None:
    consumer = Consumer(
        fill=held / 1000,
        at_limit=discards_old and held == 1000,
        retention=Retention(max_msgs=1000, discards_old=discards_old),
        paused=queue > 0,
    )
    consumer.publish(queue)
    assert [consumer.read(0.5).diagnosis for _ in range(8)][-1] is diagnosis


def test_a_message_given_up_is_poison_for_a_minute() -> None:
    consumer = Consumer()
    consumer.read()
    consumer.track.dropped_seen(Now(consumer.at, 0.0))
    diagnoses = [consumer.read(1.0).diagnosis for _ in range(70)]
    assert diagnoses[2:60] == [Diagnosis.POISON] * 58
    assert diagnoses[62:] == [Diagnosis.IDLE] * 8


def test_another_incarnation_is_diagnosed_from_its_own_samples() -> None:
    consumer = Consumer()
    consumer.publish(50)
    assert [consumer.read(0.5).diagnosis for _ in range(6)][-1] is Diagnosis.NOBODY_PULLING
    consumer.created = "two"
    consumer.take(0.5)
    assert consumer.read(0.5).diagnosis is None


def test_a_terminated_message_is_no_ack() -> None:
    consumer = Consumer()
    consumer.publish(100)
    consumer.deliver(20)
    consumer.read()
    for _ in range(20):
        consumer.ack(1)
        consumer.track.dropped_seen(Now(consumer.at, 0.0))
        reading = consumer.read()
    assert reading.ack_rate == 0.0


def test_a_redelivery_counter_that_never_falls_is_reported_once() -> None:
    """From 2.14 on num_redelivered stays where max_deliver left it."""
    consumer = Consumer()
    consumer.publish(1000)
    consumer.deliver(10)
    consumer.read()
    consumer.redelivered = 10
    ratios = [(consumer.deliver(5), consumer.ack(5), consumer.read(0.5).redelivery_ratio)[2] for _ in range(40)]
    assert max(ratios[:15]) > 0
    assert set(ratios[25:]) == {0.0}


def test_capacity_is_what_it_got_through_while_messages_waited() -> None:
    consumer = Consumer()
    consumer.publish(10_000)
    assert worked(consumer, rounds=9).capacity is None
    assert worked(consumer, rounds=40).capacity == pytest.approx(100.0, rel=0.05)


def test_capacity_forgets_by_the_time_it_worked() -> None:
    consumer = Consumer()
    consumer.publish(100_000)
    worked(consumer, rounds=1000, each=10)
    reading = worked(consumer, rounds=300, each=20)
    assert reading.capacity == pytest.approx(200 - 100 / math.e, rel=0.02)


def test_an_idle_consumer_teaches_nothing_about_capacity() -> None:
    consumer = Consumer()
    consumer.publish(400)
    before = worked(consumer, rounds=39).capacity
    consumer.deliver(10)
    consumer.ack(10)
    consumer.read()
    for _ in range(600):
        consumer.publish(1)
        consumer.deliver(1)
        consumer.ack(1)
        reading = consumer.read()
    assert before == reading.capacity == pytest.approx(100.0, rel=0.01)


def test_an_interval_of_which_too_little_was_seen_teaches_nothing_about_capacity() -> None:
    consumer = Consumer()
    consumer.publish(100_000)
    before = worked(consumer, rounds=50).capacity
    consumer.deliver(10)
    consumer.ack(10)
    assert consumer.read(11.0).capacity == before


@pytest.mark.parametrize("what", ["nak", "max deliver", "redelivered by metric", "redelivered by counter", "paused"])
def test_capacity_is_frozen_while_messages_come_again(what: str) -> None:
    consumer = Consumer()
    consumer.publish(100_000)
    before = worked(consumer, rounds=50).capacity
    for _ in range(100):
        now = Now(consumer.at, 0.0)
        match what:
            case "nak":
                consumer.track.nak_seen(now)
            case "max deliver":
                consumer.track.dropped_seen(now)
            case "redelivered by metric":
                consumer.track.ack_seen(0.1, 2, now)
            case "redelivered by counter":
                consumer.redelivered += 1
            case "paused":
                consumer.paused = True
        consumer.deliver(90)
        consumer.ack(90)
        assert consumer.read().capacity == before


def test_who_appears_on_a_stream_that_holds_messages_reads_history_until_it_is_through() -> None:
    consumer = Consumer(track=ConsumerTracker(held=100))
    consumer.publish(100)
    assert consumer.read().backfilling
    consumer.publish(50)
    consumer.deliver(99)
    assert consumer.read().backfilling
    consumer.deliver(1)
    assert not consumer.read().backfilling


def test_history_is_through_when_nothing_waits_although_the_last_messages_are_for_others() -> None:
    consumer = Consumer(filters=("s.a",), track=ConsumerTracker(held=100))
    consumer.publish(100)
    assert consumer.read().backfilling
    consumer.deliver(90)
    through = consumer.track.add_sample(replace(consumer.sample(), pending=0), consumer.look())
    assert isinstance(through, Reading) and not through.backfilling
    assert not consumer.read().backfilling


@pytest.mark.parametrize("found", [0, 100])
def test_only_messages_from_before_it_was_there_are_history(found: int) -> None:
    consumer = Consumer(track=ConsumerTracker())
    consumer.publish(found)
    consumer.read()
    consumer.publish(100)
    assert not consumer.read().backfilling


@pytest.mark.parametrize(
    ("change", "backfills"),
    [({"created": "two"}, True), ({"created": "two", "stream_created": "now"}, False), ({}, False)],
    ids=["the consumer was recreated", "the stream was", "its sequence was set back"],
)
def test_a_consumer_that_was_created_again_appears_too(change: dict[str, str], backfills: bool) -> None:
    consumer = Consumer()
    consumer.publish(1000)
    consumer.deliver(500)
    consumer.ack(500)
    consumer.read()
    for name, value in change.items():
        setattr(consumer, name, value)
    consumer.delivered = consumer.given = consumer.floor = 0
    assert isinstance(consumer.take(), str)
    assert consumer.read().backfilling is backfills


def test_a_consumer_created_again_for_new_messages_reads_no_history() -> None:
    consumer = Consumer(filters=("s.a",))
    consumer.publish(1000)
    consumer.deliver(500)
    consumer.read()
    consumer.created, consumer.delivered, consumer.given, consumer.floor, consumer.inflight = "two", 0, 0, 0, 0
    consumer.at += 0.1
    consumer.track.add_sample(replace(consumer.sample(), pending=0), consumer.look())
    assert not consumer.read().backfilling


def test_a_consumer_created_again_on_a_shortened_stream_has_lost_nothing() -> None:
    consumer = Consumer()
    consumer.publish(1000)
    consumer.evict_to(501)
    consumer.deliver(100)
    consumer.read()
    consumer.created, consumer.delivered, consumer.given, consumer.floor, consumer.inflight = "two", 0, 0, 0, 0
    consumer.take()
    assert [consumer.read().lost for _ in range(3)] == [0, 0, 0]


def test_the_oldest_waiting_message_is_timed_by_our_own_looks() -> None:
    consumer = Consumer()
    consumer.publish(10)
    consumer.deliver(10)
    assert consumer.read().oldest_age == 0.0
    consumer.publish(5)
    assert consumer.read(1.0).oldest_age == 0.0
    consumer.publish(5)
    assert [consumer.read(1.0).oldest_age for _ in range(3)] == pytest.approx([1.0, 2.0, 3.0])
    consumer.deliver(5)
    assert consumer.read(1.0).oldest_age == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("filters", "age"), [((), 77.0), (("s.>",), 77.0), (("s.*",), None), (("s.a", ">"), 77.0)], ids=str
)
def test_the_first_message_of_a_stream_is_timed_by_the_server(filters: tuple[str, ...], age: float | None) -> None:
    consumer = Consumer(filters=filters, first_age=77.0)
    consumer.publish(10)
    assert consumer.read().oldest_age == age
    consumer.deliver(3)
    assert consumer.read().oldest_age is None  # stored before our first look: its time is unknown
    consumer.evict_to(4)
    assert consumer.read().oldest_age == age


def test_how_full_the_stream_is_stands_in_the_reading() -> None:
    assert Consumer(fill=0.4).read().stream_fill == 0.4
    assert Consumer().read().stream_fill is None


@pytest.mark.parametrize(
    ("history", "backfilling"),
    [pytest.param(40, True, id="history of this stream"), pytest.param(10**6, False, id="of one that is gone")],
)
def test_history_that_was_stored_is_of_the_stream_as_it_is(history: int, backfilling: bool) -> None:
    consumer = Consumer(last=50, track=ConsumerTracker(carried=Carried(history=history)))
    assert consumer.read().backfilling is backfilling


def test_poison_from_before_a_restart_is_diagnosed_for_another_minute() -> None:
    consumer = Consumer(track=ConsumerTracker(carried=Carried(diagnosis=Diagnosis.POISON, diagnosed_for=5.0)))
    diagnoses = [consumer.read(0.5).diagnosis for _ in range(8)]
    assert diagnoses[-1] is Diagnosis.POISON


def test_what_was_stored_of_another_consumer_of_this_name_says_nothing_of_it() -> None:
    carried = Carried(Diagnosis.POISON, 300.0, 50.0, handed_back=3, history=90, made=mark("another"))
    consumer = Consumer(track=ConsumerTracker(carried=carried))
    consumer.publish(100)
    consumer.deliver(3)
    for _ in range(40):
        read = consumer.read()
        assert (read.handed_back, read.backfilling, read.capacity) == (0, False, None)
        assert read.lasting_diagnosis is None or read.diagnosed_for < 10.0


def test_one_that_does_not_acknowledge_works_as_fast_as_it_takes() -> None:
    consumer = Consumer(ack_policy="none")
    for _ in range(40):
        consumer.publish(20)
        consumer.deliver(10)
        consumer.inflight = 0  # and no time of an ack
        read = consumer.read()
    assert read.ack_rate and read.drain is not None


BORN = "2026-11-27T20:26:13.296414572Z"


@pytest.mark.parametrize(
    ("created", "deliveries", "is_other"),
    [
        pytest.param("2026-11-27T20:26:13.296523474Z", 0, False, id="a server before 2.12 has restarted"),
        pytest.param("2026-11-27T20:26:15.1Z", 0, True, id="created later"),
        pytest.param("2026-11-27T20:26:13.9Z", -30, True, id="created at once, and begins anew"),
    ],
)
def test_a_consumer_whose_creation_is_reported_a_moment_later_is_the_same(
    created: str, deliveries: int, is_other: bool
) -> None:
    consumer = Consumer(created=BORN)
    consumer.publish(60)
    consumer.deliver(30)
    for _ in range(30):
        before = consumer.read()
    consumer.created = created
    consumer.given += deliveries
    for _ in range(2):
        reading = consumer.take()
    assert isinstance(reading, Reading)
    assert (reading.made != before.made) is is_other
    assert (reading.diagnosed_for < before.diagnosed_for) is is_other


LATER = "2026-11-27T20:26:13.296523474Z"


def test_a_consumer_that_goes_back_after_its_creation_was_told_later_is_not_another_one() -> None:
    """What is still told with the first creation, and what goes back with the second: it is moved, not recreated."""
    consumer = Consumer(created=BORN)
    consumer.publish(300)
    worked(consumer)
    before = consumer.read()
    for consumer.created in (LATER, BORN, LATER):
        assert consumer.read().made == before.made
    consumer.given -= 50
    assert consumer.take() == "a sequence went backwards"
    assert consumer.read().made == before.made


def test_one_that_was_created_again_is_told_apart_from_the_creation_that_was_told_later() -> None:
    consumer = Consumer(created=BORN)
    consumer.publish(300)
    worked(consumer)
    consumer.created = LATER
    before = consumer.read()
    consumer.created, consumer.given = "2026-11-27T20:26:13.9Z", 0
    assert consumer.take() == "another incarnation of the consumer"
    assert consumer.read().made != before.made
    worked(consumer, rounds=5)
    consumer.created, consumer.given = LATER, 0
    assert consumer.take() == "another incarnation of the consumer"


def test_a_creation_that_is_told_later_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []

    def parse(text: str) -> float | None:
        parsed.append(text)
        return parse_rfc3339(text)

    monkeypatch.setattr(incarnations, "parse_rfc3339", parse)
    consumer = Consumer(created=BORN)
    consumer.read()
    for consumer.created in (LATER, LATER, BORN, LATER):
        consumer.read()
    assert parsed.count(LATER) == 1


@pytest.mark.parametrize(
    ("created", "taken"), [(BORN, 5), ("2026-11-27T20:26:13.297001Z", 5), ("2026-11-27T20:26:15.1Z", 0)]
)
def test_what_another_replica_stored_is_taken_where_it_was_told_another_creation_of_the_same(
    created: str, taken: int
) -> None:
    other = Consumer(created=created)
    consumer = Consumer(created=BORN)
    for each in (consumer, other):
        each.publish(5)
        each.deliver(5)
        reading = each.read()
    consumer.track.take_stored(Carried(made=reading.made, delivered=5, handed_back=5))
    assert consumer.read().handed_back == taken
    started = Consumer(created=BORN, track=ConsumerTracker(carried=Carried(capacity=50.0, made=reading.made)))
    assert (started.read().capacity == 50.0) is bool(taken)
