"""How many messages in flight a worker returned with a delayed NAK."""

from __future__ import annotations

from itertools import pairwise

import pytest
from msgspec.structs import replace

from nats_backpressure.core.model.samples import ConsumerConfig, Sample
from nats_backpressure.core.signals.delayed_naks import DelayedNaks
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey

CONFIG = ConsumerConfig(ack_wait=5.0)
ONE = Sample(
    ConsumerKey("S", "c"), "one", CONFIG, Now(100.0, 100.0), 0, 1, 0, 1, 10, 10, 9, 9, since_delivery=1.0, since_ack=1.0
)
"""One message in flight, delivered a second ago; a pull waits."""


def later(sample: Sample, seconds: float, **changes) -> Sample:
    since = changes.pop("since_delivery", sample.since_delivery and sample.since_delivery + seconds)
    return replace(sample, at=Now(sample.at.mono + seconds, 0.0), since_delivery=since, **changes)


def after(*samples: Sample, naks: int = 0) -> DelayedNaks:
    tracker = DelayedNaks()
    tracker.add_sample(None, samples[0])
    for _ in range(naks):
        tracker.add_naks()
    for last, sample in pairwise(samples):
        tracker.add_sample(last, sample)
    return tracker


def test_a_nak_returns_one_message_until_it_is_redelivered() -> None:
    still = later(ONE, 0.1)
    assert after(ONE, still, naks=1).count_in_flight(still) == 1
    again = later(still, 0.1, delivered_consumer=11, since_delivery=0.05)
    assert after(ONE, still, again, naks=1).count_in_flight(again) == 0


def test_no_more_are_returned_than_are_in_flight() -> None:
    still = later(ONE, 0.1)
    assert after(ONE, still, naks=3).count_in_flight(still) == 1
    done = later(still, 0.1, inflight=0)
    assert after(ONE, still, done, naks=3).count_in_flight(done) == 0


def test_beside_a_queue_none_counts_as_returned() -> None:
    queued = later(ONE, 0.1, pending=1)
    assert after(ONE, queued, naks=1).count_in_flight(queued) == 0


def test_a_worker_that_acted_without_a_delivery_returned_its_message() -> None:
    touched = later(ONE, 1.0, since_delivery=0.1)
    assert after(ONE, touched).count_in_flight(touched) == 1


def test_what_a_waiting_pull_did_not_get_after_the_ack_wait_is_returned() -> None:
    overdue = later(ONE, 6.0)
    assert after(ONE, overdue).count_in_flight(overdue) == 1
    assert after(ONE, replace(overdue, waiting=0)).count_in_flight(replace(overdue, waiting=0)) == 0


@pytest.mark.parametrize(
    ("gap", "restarted"), [pytest.param(2.0, True, id="too early"), pytest.param(5.0, False, id="after the ack wait")]
)
def test_what_is_redelivered_before_its_ack_wait_was_returned(gap: float, restarted: bool) -> None:
    delayed = after(ONE)
    assert delayed.add_sample(ONE, later(ONE, gap, delivered_consumer=11, since_delivery=0.0)) is restarted


@pytest.mark.parametrize(("gap", "restarted"), [(2.0, True), (3.0, False)])
def test_with_backoff_only_what_is_redelivered_before_the_shortest_wait_was_surely_returned(
    gap: float, restarted: bool
) -> None:
    one = replace(ONE, config=ConsumerConfig(ack_wait=8.0, backoff=(3.5, 8.0)))
    assert after(one).add_sample(one, later(one, gap, delivered_consumer=11, since_delivery=0.0)) is restarted


@pytest.mark.parametrize(
    ("changes", "may"),
    [
        pytest.param({}, True, id="a pull waits for each message in flight"),
        pytest.param({"waiting": 0}, False, id="no pull waits"),
        pytest.param({"pending": 1}, False, id="a message waits"),
        pytest.param({"since_delivery": None}, False, id="an old server reports no times"),
    ],
)
def test_messages_in_flight_may_be_returned_while_pulls_wait(changes: dict, may: bool) -> None:
    assert after(ONE).all_may_be(replace(ONE, **changes)) is may


def test_but_not_after_one_was_redelivered_in_time() -> None:
    redelivered = replace(ONE, redelivered=1)
    assert not after(redelivered).all_may_be(redelivered)


def test_a_filtered_consumer_counts_redeliveries_by_the_servers_own_number() -> None:
    filtered = replace(ONE, config=replace(CONFIG, filters=("a",)))
    moved = later(filtered, 0.1, delivered_stream=12, delivered_consumer=12, redelivered=1, inflight=2)
    assert after(filtered, moved, naks=1).count_in_flight(moved) == 0
    still = later(filtered, 0.1, delivered_consumer=11)
    assert after(filtered, still, naks=1).count_in_flight(still) == 0


def test_without_times_no_worker_is_seen_to_act() -> None:
    old = replace(ONE, since_delivery=None)
    still = later(old, 0.1)
    assert after(old, still).count_in_flight(still) == 0


@pytest.mark.parametrize(
    ("delivered", "returned"),
    [(None, 4), (10, 4), (8, 2), (6, 0), (2, 0), (50, 0)],
    ids=["stored by an older version", "none since", "some", "all", "more than all", "created again"],
)
def test_what_was_delivered_while_no_sidecar_ran_is_not_returned_any_more(delivered: int | None, returned: int) -> None:
    found = later(ONE, 0.0, inflight=4, waiting=0)
    naks = DelayedNaks(4, delivered)
    naks.add_sample(None, found)
    assert naks.count_in_flight(found) == returned


@pytest.mark.parametrize(
    ("stored", "delivered", "returned"),
    [(4, 10, 4), (9, 10, 4), (4, 8, 2), (4, 6, 1), (0, 10, 1)],
    ids=["as many", "never more than are in flight", "some were delivered since", "all were", "none"],
)
def test_what_another_replica_knows_to_be_returned_counts_here(stored: int, delivered: int, returned: int) -> None:
    found = later(ONE, 0.0, inflight=4, waiting=0)
    naks = DelayedNaks()
    naks.add_sample(None, found)
    naks.add_naks()
    naks.take_stored(stored, delivered, found)
    assert naks.count_in_flight(found) == returned
