"""How many messages a stream may have dropped by itself between two looks."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nats_backpressure.core.model.samples import ConsumerConfig, Retention, Sample, StreamLook
from nats_backpressure.core.signals.stream_drops import (
    gets_whole_stream,
    has_holes,
    may_drop,
    removed_by_operator,
    was_purged,
    was_reset,
)
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey

LOOK = StreamLook("S", "then", 1, 100, 100, ("s.>",), oldest_age=10.0, retention=Retention())
SAMPLE = Sample(ConsumerKey("S", "c"), "one", ConsumerConfig(), Now(1.0, 1.0), 10, 0, 0, 0, 90, 90, 90, 90)


def with_retention(**limits: object) -> StreamLook:
    return replace(LOOK, retention=Retention(**limits))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("look", "arrived", "elapsed", "drops"),
    [
        pytest.param(replace(LOOK, retention=None), 0, 1.0, True, id="unknown limits: it may"),
        pytest.param(LOOK, 50, 1.0, False, id="no limits"),
        pytest.param(with_retention(max_msgs=100), 0, 1.0, False, id="full, and nothing arrived"),
        pytest.param(with_retention(max_msgs=100), 1, 1.0, True, id="full, and something arrived"),
        pytest.param(with_retention(max_msgs=200), 50, 1.0, False, id="not full"),
        pytest.param(with_retention(max_bytes=1), 1, 1.0, True, id="bytes: it may"),
        pytest.param(with_retention(max_msgs=100, discards_old=False), 1, 1.0, False, id="it refuses new ones"),
        pytest.param(with_retention(max_age=60.0), 1, 1.0, False, id="nothing is old enough"),
        pytest.param(with_retention(max_age=60.0), 0, 50.0, True, id="the oldest has reached its age"),
        pytest.param(with_retention(life_times=True), 0, 1.0, True, id="a message may have its own life time"),
        pytest.param(with_retention(max_msgs=100), 0, None, True, id="one look alone: whether it ever does"),
    ],
)
def test_what_a_stream_may_have_dropped(look: StreamLook, arrived: int, elapsed: float | None, drops: bool) -> None:
    assert may_drop(look, replace(look, last_seq=100 + arrived), elapsed) is drops


def test_changed_limits_may_have_dropped_anything() -> None:
    assert may_drop(with_retention(max_msgs=500), with_retention(max_msgs=50), 1.0)


@pytest.mark.parametrize(
    ("fell", "moved", "given", "drops", "purged"),
    [
        pytest.param(10, 10, 0, True, True, id="moved on without a delivery"),
        pytest.param(10, 10, 5, False, True, id="with deliveries, where nothing can be dropped"),
        pytest.param(10, 10, 5, True, False, id="with deliveries it may be a drop"),
        pytest.param(0, 10, 0, False, False, id="pending did not fall"),
        pytest.param(10, 5, 5, False, False, id="it moved by its deliveries"),
    ],
)
def test_a_purge_moves_a_consumer_without_deliveries(
    fell: int, moved: int, given: int, drops: bool, purged: bool
) -> None:
    assert was_purged(fell, moved, given, drops, SAMPLE, LOOK) is purged


@pytest.mark.parametrize(
    ("fell", "moved", "given", "place", "look", "reset"),
    [
        pytest.param(10, 10, 0, 90, LOOK, True, id="moved past what the stream still holds"),
        pytest.param(100, 100, 0, 0, LOOK, True, id="also from before its first message"),
        pytest.param(10, 10, 0, 90, replace(LOOK, first_seq=95, messages=6), False, id="a part of it is gone: a purge"),
        pytest.param(10, 10, 0, 90, replace(LOOK, messages=99), False, id="one may be missing anywhere"),
        pytest.param(10, 10, 0, 90, replace(LOOK, first_seq=101, messages=0), False, id="all is gone"),
        pytest.param(0, 10, 0, 90, LOOK, False, id="pending did not fall"),
        pytest.param(10, 10, 10, 90, LOOK, False, id="it moved by its deliveries"),
    ],
)
def test_a_reset_moves_a_consumer_and_takes_nothing_from_the_stream(
    fell: int, moved: int, given: int, place: int, look: StreamLook, reset: bool
) -> None:
    assert was_reset(fell, moved, given, place, look) is reset


@pytest.mark.parametrize(
    ("config", "retention", "whole"),
    [
        pytest.param({}, {}, True, id="no filter"),
        pytest.param({"filters": ("s.>",)}, {}, True, id="a filter over everything"),
        pytest.param({"filters": ("s.a",)}, {}, False, id="a filter over a part"),
        pytest.param({"last_per_subject": True}, {}, False, id="started with the last messages"),
        pytest.param({}, {"policy": "workqueue"}, False, id="acks remove messages"),
        pytest.param({}, {"per_subject": 5}, False, id="newer messages replace older ones"),
    ],
)
def test_which_consumers_get_the_whole_stream(config: dict, retention: dict, whole: bool) -> None:
    sample = replace(SAMPLE, config=ConsumerConfig(**config))
    assert gets_whole_stream(sample, replace(LOOK, retention=Retention(**retention))) is whole


def test_holes_and_what_was_deleted_by_hand() -> None:
    assert not has_holes(LOOK)
    assert has_holes(replace(LOOK, messages=97))
    after = replace(LOOK, last_seq=110, messages=105)
    assert removed_by_operator(LOOK, after) == 5
    assert removed_by_operator(LOOK, replace(after, retention=None)) == 0
