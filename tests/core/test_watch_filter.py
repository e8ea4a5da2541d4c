"""Which consumers count, under which subjects they count, and when they are gone."""

from __future__ import annotations

import pytest

from nats_backpressure.core import watch_filter
from nats_backpressure.core.model.samples import ConsumerConfig
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
