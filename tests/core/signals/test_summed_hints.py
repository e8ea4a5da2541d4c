"""Hints that are counted together show the same as one after another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.signals.quantiles import Quantiles
from nats_backpressure.core.signals.tracker import ConsumerTracker
from nats_backpressure.protocol.timestamps import Now
from tests.core.signals.test_rest import LOOK, RESTING

WORKING = replace(RESTING, pending=20, inflight=5, since_delivery=0.1, since_ack=0.1)
steps = st.lists(
    st.tuples(
        st.sampled_from(["ack", "nak", "drop"]),
        st.floats(0.001, 5.0),
        st.integers(1, 4),
        st.integers(1, 30),
        st.floats(0.0, 3.0),
    ),
    max_size=15,
)


def count(tracker: ConsumerTracker, what: str, seconds: float, deliveries: int, now: Now, times: int) -> None:
    match what:
        case "ack":
            tracker.ack_seen(seconds, deliveries, now, times)
        case "nak":
            tracker.nak_seen(now, times)
        case _:
            tracker.dropped_seen(now, times)


@given(steps)
def test_summed_hints_show_the_same(script: list[tuple[str, float, int, int, float]]) -> None:
    summed, single, at, delivered = ConsumerTracker(), ConsumerTracker(), 100.0, 50
    look: StreamLook = LOOK
    for what, seconds, deliveries, times, wait in script:
        at += wait
        now = Now(at, at)
        count(summed, what, seconds, deliveries, now, times)
        for _ in range(times):
            count(single, what, seconds, deliveries, now, 1)
        delivered += times
        sample = replace(WORKING, at=now, delivered_consumer=delivered, delivered_stream=500 + delivered - 50)
        assert summed.add_sample(sample, look) == single.add_sample(sample, look)


def test_more_than_a_small_number_holds() -> None:
    quantiles = Quantiles()
    quantiles.add(1.0, 0.1, 60_000)
    quantiles.add(1.0, 0.1, 1_000_000)
    quantiles.add(1.0, 10.0, 1_000_000)
    shown = quantiles.at(1.0, 0.5, 0.6)
    assert shown is not None
    assert 0.09 < shown[0] < 0.11
    assert 9.0 < shown[1] < 11.0
