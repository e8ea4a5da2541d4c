"""From samples to signals: rates, drain, latency, stall, loss, and which samples are believed."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from sidecar.core.model import ConsumerConfig, ConsumerKey, Now, Reading, Sample, StreamLook
from sidecar.core.signals import Track

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
    at_limit: bool = False
    track: Track = field(default_factory=Track)

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
            config=ConsumerConfig(filters=self.filters, max_ack_pending=self.cap),
            at=Now(self.at, self.at),
            pending=self.last - max(self.delivered, self.first - 1),
            inflight=self.inflight,
            redelivered=0,
            waiting=0,
            delivered_stream=self.delivered,
            delivered_consumer=self.given,
            floor_stream=self.floor,
            floor_consumer=0,
            since_delivery=None if self.last_delivery is None else self.at - self.last_delivery,
            since_ack=None if self.last_ack is None else self.at - self.last_ack,
        )

    def look(self) -> StreamLook:
        return StreamLook("S", "then", self.first, self.last, self.last - self.first + 1, ("s",), self.at_limit)

    def take(self, after: float = 0.1) -> Reading | str:
        self.at += after
        return self.track.take(self.sample(), self.look())

    def read(self, after: float = 0.1) -> Reading:
        found = self.take(after)
        assert isinstance(found, Reading), found
        return found


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
    reading = consumer.read(7.0)
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
    assert consumer.read().losing
    reading = consumer.read()
    assert (reading.lost, reading.purged) == (500, False)


def test_one_loss_is_counted_once() -> None:
    consumer = Consumer()
    consumer.publish(1000)
    consumer.read()
    consumer.evict_to(501)
    assert sum(consumer.read(1.0).lost for _ in range(30)) == 500


def test_an_ongoing_loss_is_told_every_ten_seconds_with_the_sum() -> None:
    consumer = Consumer(at_limit=True)
    consumer.publish(1000)
    consumer.read()
    told = []
    for n in range(300):
        consumer.evict_to(12 + 10 * n)
        if lost := consumer.read().lost:
            told.append(lost)
    assert 3 <= len(told) <= 4
    assert sum(told) <= 12 + 2990


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
    assert consumer.track.take(blank, consumer.look()) == "a sequence went backwards"
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
    assert isinstance(consumer.track.take(wrapped, consumer.look()), str)
    assert isinstance(consumer.track.take(wrapped, consumer.look()), str)
