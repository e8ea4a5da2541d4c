"""The seconds to drain are those of a worker that works: not of a backlog that nobody has pulled from."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.core.signals.test_tracker import Consumer


@given(
    backlog=st.integers(200, 20_000),
    away=st.floats(0.0, 30.0),
    each=st.floats(0.01, 0.2),
    batch=st.integers(1, 5),
    every=st.sampled_from([0.05, 0.1, 0.25]),
    worked_before=st.booleans(),
    acks_at_once=st.booleans(),
)
@example(backlog=200, away=1.2, each=0.025, batch=1, every=0.1, worked_before=False, acks_at_once=False)
def test_time_before_anybody_pulled_makes_no_worker_slow(
    backlog: int, away: float, each: float, batch: int, every: float, worked_before: bool, acks_at_once: bool
) -> None:
    """A backlog waits, then a worker pulls: it is as fast as it is, from its first ack on. It was said to need minutes,
    by one ack after a second in which nobody pulled."""
    consumer = Consumer()
    consumer.publish(1)
    consumer.read()
    if worked_before:
        consumer.deliver(1)
        consumer.ack(1)
        consumer.read()
    consumer.publish(backlog)
    for _ in range(int(away / every)):
        consumer.read(every)
    done, began = 0, consumer.at
    for _ in range(int(min(3.0, (backlog - 50) * each) / every)):
        while done < int((consumer.at + every - began) / each):
            consumer.deliver(min(batch, backlog - done))
            consumer.ack(consumer.inflight if acks_at_once else max(0, consumer.inflight - 1))
            done += batch
        reading = consumer.read(every)
        if reading.drain is not None:
            assert reading.drain <= 2.5 * reading.pending * each + 1.0, f"{done} since {consumer.at - began:.2f} s"
    if done > 5 and consumer.at - began > 2.0:
        assert reading.drain is not None
        assert worked_before or (reading.capacity is not None and reading.capacity >= 0.4 / each)


@pytest.mark.parametrize("every", [0.05, 0.25])
@pytest.mark.parametrize("burst", [1, 20])
@pytest.mark.parametrize("period", [2.0, 4.0, 8.0])
def test_a_worker_that_comes_and_goes_is_as_slow_as_that_makes_it(period: float, burst: int, every: float) -> None:
    """It pulls once in a while, and is done between two readings: the time between is part of its rate."""
    consumer, drains = Consumer(), []
    consumer.publish(10_000)
    consumer.read()
    for round_ in range(6):
        consumer.deliver(burst)
        consumer.ack(burst)
        readings = [consumer.read(every) for _ in range(int(period / every))]
        drains += readings if round_ > 1 else []
    known = [each.drain * burst / period / each.pending for each in drains if each.drain is not None]
    assert len(known) > len(drains) / 4 and all(0.4 < ratio < 2.5 for ratio in known), sorted(known)
