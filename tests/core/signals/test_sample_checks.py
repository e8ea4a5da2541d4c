"""Samples that are impossible, or cannot follow the sample before."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nats_backpressure.core.model.samples import ConsumerConfig, Sample, StreamLook
from nats_backpressure.core.signals.sample_checks import contradiction, impossible_reason
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey

SAMPLE = Sample(ConsumerKey("S", "c"), "one", ConsumerConfig(), Now(1.0, 1.0), 10, 0, 0, 0, 90, 90, 90, 90)
LOOK = StreamLook("S", "then", 1, 100, 100)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({}, None, id="a sample within its stream"),
        pytest.param({"pending": 100, "delivered_stream": 100}, None, id="up to the end"),
        pytest.param({"pending": 101}, "more pending than the stream ever held", id="too much pending"),
        pytest.param({"delivered_stream": 101}, "delivered past the end of the stream", id="delivered too far"),
        pytest.param({"delivered_stream": 199, "floor_stream": 199, "pending": 0}, None, id="starts behind the end"),
        pytest.param(
            {"delivered_stream": 199, "floor_stream": 199, "pending": 0, "inflight": 1},
            "delivered past the end of the stream",
            id="something in flight from behind the end",
        ),
    ],
)
def test_no_sample_is_beyond_its_stream(change: dict[str, int], reason: str | None) -> None:
    assert impossible_reason(replace(SAMPLE, **change), LOOK) == reason


@pytest.mark.parametrize(
    ("sample", "look", "reason"),
    [
        pytest.param({}, {}, None, id="nothing changed"),
        pytest.param({"delivered_stream": 95, "delivered_consumer": 95}, {"last_seq": 105}, None, id="progress"),
        pytest.param({}, {"created": "later"}, "another incarnation of the stream", id="the stream is another"),
        pytest.param({}, {"last_seq": 99}, "another incarnation of the stream", id="the stream is shorter"),
        pytest.param({"created": "two"}, {}, "another incarnation of the consumer", id="the consumer is another"),
        pytest.param({"delivered_stream": 89}, {}, "a sequence went backwards", id="delivered less of the stream"),
        pytest.param({"delivered_consumer": 89}, {}, "a sequence went backwards", id="delivered less"),
        pytest.param({"floor_stream": 89}, {}, "a sequence went backwards", id="acknowledged less"),
    ],
)
def test_what_cannot_follow_the_sample_before(sample: dict, look: dict, reason: str | None) -> None:
    assert contradiction(SAMPLE, replace(SAMPLE, **sample), LOOK, replace(LOOK, **look)) == reason
