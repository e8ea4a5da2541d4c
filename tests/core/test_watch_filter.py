"""Which consumers count, under which subjects they count, and when they are gone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.core import read_interval, watch_filter
from nats_backpressure.core.model.samples import ConsumerConfig
from nats_backpressure.core.read_interval import Budget
from nats_backpressure.core.watch_filter import WatchEntry
from nats_backpressure.protocol.values import ConsumerKey

ALL = [WatchEntry("*")]
OURS = frozenset({"BACKPRESSURE_EVENTS", "KV_backpressure_state"})
DURABLE, EPHEMERAL = ConsumerConfig(), ConsumerConfig(durable=False)
ACK_ALL, ACK_NONE = ConsumerConfig(ack_policy="all"), ConsumerConfig(ack_policy="none")


@pytest.mark.parametrize(
    ("key", "config", "watch", "taken"),
    [
        pytest.param(("S", "c"), DURABLE, ALL, True, id="a durable that acknowledges counts"),
        pytest.param(("S", "c"), ACK_ALL, ALL, True, id="also where one ack stands for all before it"),
        pytest.param(("S", "c"), EPHEMERAL, ALL, False, id="somebody's subscription does not"),
        pytest.param(("S", "c"), ACK_NONE, ALL, False, id="nor what acknowledges nothing"),
        pytest.param(("S", "c"), EPHEMERAL, [WatchEntry("*", ("c",))], True, id="unless it is named exactly"),
        pytest.param(("S", "c"), EPHEMERAL, [WatchEntry("*", ("c*",))], False, id="a glob is no exact name"),
        pytest.param(("S", "audit"), DURABLE, [WatchEntry("S", ("router-*",))], False, id="others are not watched"),
        pytest.param(("S", "router-1"), DURABLE, [WatchEntry("S", ("router-*",))], True, id="what a glob covers is"),
        pytest.param(("T", "c"), DURABLE, [WatchEntry("S")], False, id="another stream is not watched"),
        pytest.param(("KV_b", "c"), DURABLE, ALL, False, id="a bucket is no work queue"),
        pytest.param(("OBJ_b", "c"), DURABLE, ALL, False, id="nor an object store"),
        pytest.param(("KV_b", "c"), DURABLE, [WatchEntry("KV_b")], True, id="unless it is named"),
        pytest.param(("BACKPRESSURE_EVENTS", "c"), DURABLE, ALL, False, id="what reads our events is not watched"),
    ],
)
def test_only_what_counts_is_watched(
    key: tuple[str, str], config: ConsumerConfig, watch: list[WatchEntry], taken: bool
) -> None:
    assert watch_filter.is_consumer_watched(ConsumerKey(*key), config, watch, OURS) is taken


@pytest.mark.parametrize(
    ("filters", "stream", "expected"),
    [
        pytest.param((), ("s.>",), ("s.>",), id="without a filter it stands under its stream's subjects"),
        pytest.param(("s.a", "s.b"), ("s.>",), ("s.a", "s.b"), id="with filters under each of them"),
        pytest.param((), (), "no subjects", id="with neither it is not watched"),
        pytest.param(tuple(f"s.{n}" for n in range(9)), (), "9 subjects", id="nor with more than eight"),
        pytest.param(("s." + "ü" * 200,), (), "longer than 1024 bytes", id="nor where one is too long encoded"),
    ],
)
def test_a_consumer_stands_under_its_subjects(
    filters: tuple[str, ...], stream: tuple[str, ...], expected: tuple[str, ...] | str
) -> None:
    got = watch_filter.consumer_subjects(ConsumerConfig(filters=filters), stream)
    assert expected in got if isinstance(expected, str) else got == expected


BUDGET = Budget(min_interval=0.1, max_interval=5.0, requests_per_second=50, server_share=0.05)


@pytest.mark.parametrize(
    ("streams", "requests", "took", "whole", "limited", "seconds"),
    [
        pytest.param(1, 2, 0.001, True, False, 0.1, id="a cheap stream is read as often as wanted"),
        pytest.param(10, 2, 0.001, True, False, 0.4, id="ten share the budget of requests"),
        pytest.param(1, 2, 0.02, True, False, 0.4, id="a costly one keeps to its share of the server's time"),
        pytest.param(1, 2, 0.001, False, False, 5.0, id="a list with members missing leaves the fast lane"),
        pytest.param(1, 2, 1.0, True, False, 5.0, id="and so does a slow one"),
        pytest.param(1, 2, 0.001, True, True, 0.4, id="a server that refuses is asked less often"),
        pytest.param(1000, 2, 0.001, True, False, 5.0, id="no stream is read less often than the longest interval"),
    ],
)
def test_a_stream_is_read_as_often_as_it_may_cost(
    streams: int, requests: int, took: float, whole: bool, limited: bool, seconds: float
) -> None:
    assert read_interval.read_interval(BUDGET, streams, requests, took, whole, limited) == pytest.approx(seconds)


@given(st.integers(0, 10_000), st.integers(1, 400), st.floats(0, 100), st.booleans(), st.booleans())
def test_the_interval_keeps_its_bounds(streams: int, requests: int, took: float, whole: bool, limited: bool) -> None:
    assert 0.1 <= read_interval.read_interval(BUDGET, streams, requests, took, whole, limited) <= 5.0


@pytest.mark.parametrize(
    ("config", "subjects"),
    [
        pytest.param(DURABLE, ("s.a", "s.b"), id="without a filter it has those of its stream"),
        pytest.param(ConsumerConfig(filters=("s.a",)), ("s.a",), id="a filter decides"),
        pytest.param(EPHEMERAL, (), id="none where it is not watched"),
    ],
)
def test_a_watched_consumer_counts_under_its_subjects(config: ConsumerConfig, subjects: tuple[str, ...]) -> None:
    assert watch_filter.counted_subjects(ConsumerKey("S", "c"), config, ("s.a", "s.b"), ALL, OURS) == subjects
