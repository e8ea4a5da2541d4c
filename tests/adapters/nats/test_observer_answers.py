"""Replies that no server should send, and lists that change or lack members: what is read, skipped and rejected."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.adapters.nats.list_reader import PAGES_LIMIT
from nats_backpressure.core.model.samples import Sample
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime import ports
from nats_backpressure.runtime.observations import ConsumerGone, StreamGone, Unavailable
from tests.fakes.clock import FakeClock
from tests.simulations.scripted_server import Message, Reader, Scripted, consumer, names, page, read, stream


async def test_new_fields_are_ignored_and_missing_fields_are_zero() -> None:
    reading, reader = await read(consumer(new_thing={"a": [1]}, config__brand_new=1))
    sample = reading.samples[0]
    assert (sample.waiting, sample.redelivered, sample.config.filters, sample.paused) == (0, 0, (), False)
    assert sample.since_delivery == 30.5 and sample.since_ack is None
    assert reading.complete and reader.counted == []


@pytest.mark.parametrize(
    "bad",
    [
        consumer("bad", num_pending=None),
        consumer("bad", num_ack_pending=None),
        consumer("bad", delivered=None),
        consumer("bad", ack_floor=None),
        consumer("bad", config=None),
        consumer("bad", created=None),
        consumer("bad", name=None),
        consumer("bad", delivered__stream_seq=None),
        consumer("bad", num_pending=-1),
        consumer("bad", num_ack_pending=-5),
        consumer("bad", delivered__consumer_seq=-1),
        consumer("bad", num_pending=2**63),
        consumer("bad", num_pending=2**64 - 1),
        consumer("bad", num_pending=10**400),
        consumer("bad", num_pending=1.5),
        consumer("bad", num_pending="7"),
        consumer("bad", num_pending=True),
        consumer("bad", num_pending=[]),
        consumer("bad", config="x"),
        consumer("bad", config__ack_policy=1),
        consumer("bad", config__filter_subjects="s.a"),
        consumer("bad", delivered__last_active="yesterday"),
        consumer("bad", ts=5),
        consumer("bad", paused="yes"),
        consumer("bad", name=""),
        consumer("bad", name="a.b"),
        consumer("bad", name="a b"),
        consumer("bad", name="*"),
        consumer("bad", name="a\r\nPUB x 0"),
        consumer("bad", name="x" * 257),
        {},
        [],
        "consumer",
        7,
        None,
    ],
    ids=lambda bad: json.dumps(bad)[:60] if not isinstance(bad, dict) else None,
)
async def test_a_malformed_item_is_left_out_and_the_others_are_read(bad: Any) -> None:
    reading, reader = await read(consumer("a"), bad, consumer("z"))
    assert names(reading) == ["a", "z"]
    assert len(reading.malformed) + reading.unnamed == 1 and reading.complete
    assert reader.counted in (["consumer_info_malformed"], ["name_unusable"])


NO_ANSWER = [
    b"",
    b"\xef\xbb\xbf{}",
    b"\xff\xfe",
    b"[]",
    b"null",
    b"7",
    b'"x"',
    b"{",
    b"[" * 200_000,
    b'{"consumers":' * 100_000,
    b'{"consumers":[NaN],"total":1}',
    b'{"consumers":"none","total":0}',
    b'{"consumers":[],"total":-1}',
    b'{"consumers":[],"total":0,"missing":7}',
    b'{"error":"bad"}',
]


@pytest.mark.parametrize("answer", NO_ANSWER, ids=lambda answer: repr(answer[:24]))
@pytest.mark.parametrize("op", ["CONSUMER_LIST", "STREAM_INFO", "STREAM_LIST", "CONSUMER_INFO"])
async def test_a_malformed_reply_is_unavailable(op: str, answer: bytes) -> None:
    reader = Reader(Scripted(**{"CONSUMER_LIST": page(consumer()), op: answer}))
    reads: dict[str, Callable[[], Any]] = {
        "STREAM_LIST": reader.streams,
        "CONSUMER_INFO": lambda: reader.consumer(ConsumerKey("S", "c")),
    }
    if op == "STREAM_LIST":
        answer = answer.replace(b"consumers", b"streams")
    with pytest.raises(Unavailable):
        await reads.get(op, lambda: reader.consumers("S"))()
    assert reader.counted


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        ({"code": 404, "err_code": 10059, "description": "stream not found"}, StreamGone),
        ({"code": 404, "err_code": 10014, "description": "consumer not found"}, ConsumerGone),
        ({"code": 503, "err_code": 10008, "description": "JetStream system temporarily unavailable"}, Unavailable),
        ({"code": 503, "err_code": 10039, "description": "JetStream not enabled for account"}, Unavailable),
        ({"code": 500, "err_code": 10059, "description": "x" * 9000}, Unavailable),
        ({}, Unavailable),
    ],
    ids=["stream", "consumer", "no leader", "no jetstream", "odd", "empty"],
)
async def test_each_error_of_the_server_has_its_exception(error: dict[str, Any], raised: type[Exception]) -> None:
    for op in ("CONSUMER_LIST", "STREAM_INFO", "CONSUMER_INFO"):
        reader = Reader(Scripted(**{"CONSUMER_LIST": page(), op: {"type": "t", "error": error}}))
        with pytest.raises(raised) as refused:
            await (reader.consumer(ConsumerKey("S", "c")) if op == "CONSUMER_INFO" else reader.consumers("S"))
        assert len(str(refused.value)) < 200
        assert reader.outcomes[-1] == f"{op.replace('_', '.')} error"


async def test_without_a_connection_it_is_unavailable() -> None:
    reader = Reader(Scripted(STREAM_LIST=ports.Unavailable("not connected to NATS")))
    with pytest.raises(Unavailable, match="not connected"):
        await reader.streams()
    assert reader.outcomes == ["STREAM.LIST unavailable"]


async def test_a_reading_over_two_connections_is_unavailable() -> None:
    def reconnects(offset: int) -> Any:
        script.epoch += 1
        return page(consumer())

    script = Scripted(CONSUMER_LIST=reconnects)
    with pytest.raises(Unavailable, match="replaced"):
        await Reader(script).consumers("S")


async def test_members_on_a_node_that_is_down_are_missing_not_gone() -> None:
    lacking = page(consumer("b"), total=4, missing=["a", "d"], offline={"c": "needs a newer server"})
    reading = await Reader(Scripted(CONSUMER_LIST=lacking)).consumers("S")
    assert names(reading) == ["b"] and reading.missing == ("a", "c", "d") and reading.complete
    reading = await Reader(Scripted(STREAM_LIST={"total": 2, "streams": [stream()], "missing": ["T"]})).streams()
    assert reading.missing == ("T",) and not reading.complete


NO_LEADER = {"name": "c", "replicas": [{"name": "n0", "current": False, "active": 650, "peer": "6DVFpukC"}]}
LED = {"name": "c", "leader": "n0"}


async def test_what_has_no_leader_is_missing_not_empty() -> None:
    """Servers before 2.14 answer for it, with zeros; and where all its nodes are down, as members of a list."""
    zeros = {"num_pending": 0, "num_ack_pending": 0, "delivered": {"consumer_seq": 0, "stream_seq": 0}}
    empty = consumer("empty", cluster=NO_LEADER, **zeros)
    reading, reader = await read(empty, consumer("led", cluster=LED), consumer("alone"))
    assert names(reading) == ["led", "alone"] and reading.missing == ("empty",) and reading.complete
    assert reader.counted == []
    down = stream("T", messages=0, first_seq=0, last_seq=0) | {"cluster": NO_LEADER}
    led = stream() | {"cluster": LED}
    all_of_them = Reader(Scripted(STREAM_LIST={"total": 2, "streams": [led, down]}))
    shown = await all_of_them.streams()
    assert [look.name for look in shown.looks] == ["S"] and shown.missing == ("T",) and not shown.complete
    reader = Reader(Scripted(CONSUMER_LIST=page(), CONSUMER_INFO=empty, STREAM_INFO=down))
    for reply in (reader.consumer(ConsumerKey("S", "empty")), reader.stream("T"), reader.consumers("T")):
        with pytest.raises(Unavailable, match="has no leader"):
            await reply
    singly = await Reader(Scripted(CONSUMER_INFO=empty)).consumers("S", ["empty"])
    assert singly.missing == ("empty",) and not singly.samples


async def test_a_page_of_members_without_a_leader_is_not_the_last() -> None:
    def pages(offset: int) -> Any:
        members = [consumer(f"a{i:03}", cluster=NO_LEADER) for i in range(256)] if offset == 0 else [consumer("b")]
        return page(*members, limit=256) | {"total": 257}

    reading = await Reader(Scripted(CONSUMER_LIST=pages)).consumers("S")
    assert names(reading) == ["b"] and len(reading.missing) == 256 and reading.complete


async def test_the_next_offset_follows_the_limit_of_the_server() -> None:
    """256 members a page, two of them missing: the next page begins at 256."""

    def pages(offset: int) -> Any:
        if offset == 0:
            return page(*(consumer(f"a{i:03}") for i in range(254)), total=300, missing=["m", "n"])
        assert offset == 256
        return page(*(consumer(f"b{i:03}") for i in range(44)), total=300)

    script = Scripted(CONSUMER_LIST=pages)
    reading = await Reader(script).consumers("S")
    assert len(reading.samples) == 298 and len(reading.missing) == 2 and reading.complete
    assert [subject for subject, _ in script.asked][-1] == "$JS.API.STREAM.INFO.S"  # after the pages


@pytest.mark.parametrize(
    ("totals", "second"),
    [
        ((300, 299), [consumer(f"b{i}") for i in range(43)]),
        ((300, 301), [consumer(f"b{i}") for i in range(45)]),
        ((300, 300), [consumer("a0"), *(consumer(f"b{i}") for i in range(43))]),
        ((300, 300), []),
    ],
    ids=["one deleted", "one created", "one shown twice", "nothing more"],
)
async def test_a_list_that_changes_while_it_is_read_is_not_complete(totals: tuple[int, int], second: Any) -> None:
    first = [consumer(f"a{i}") for i in range(256)]
    script = Scripted(
        CONSUMER_LIST=lambda offset: page(*second, total=totals[1]) if offset else page(*first, total=totals[0])
    )
    reading = await Reader(script).consumers("S")
    assert not reading.complete
    assert len(set(names(reading))) == len(reading.samples) >= 256


async def test_a_list_without_an_end_is_read_up_to_the_limit() -> None:
    script = Scripted(CONSUMER_LIST=lambda offset: page(consumer(f"c{offset}"), total=2**62, limit=1))
    reading = await Reader(script).consumers("S")
    assert len(reading.samples) == PAGES_LIMIT and not reading.complete


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


FIELDS = sorted(consumer())


@given(st.lists(st.tuples(st.sampled_from(FIELDS), JUNK), max_size=3), st.binary(max_size=40), st.integers(0, 900))
async def test_any_reply_gives_a_reading_or_unavailable(changes: list[tuple[str, Any]], noise: bytes, at: int) -> None:
    answer = json.dumps(page(consumer() | dict(changes))).encode()
    for data in (answer, answer[:at] + noise + answer[at + len(noise) :]):
        try:
            reading = await Reader(Scripted(CONSUMER_LIST=data)).consumers("S")
        except Unavailable:
            continue
        for sample in reading.samples:
            assert_sound(sample)


def assert_sound(sample: Sample) -> None:
    numbers = (sample.pending, sample.inflight, sample.redelivered, sample.delivered_stream, sample.floor_consumer)
    assert all(type(n) is int and 0 <= n < 2**63 for n in numbers)
    assert sample.since_delivery is None or sample.since_delivery >= 0


@pytest.mark.parametrize(("round_trip", "share"), [(0.0, 0.0), (0.15, 0.75), (60.0, 1.0)])
async def test_what_the_link_takes_is_known_of_every_reading(round_trip: float, share: float) -> None:
    lists = {"STREAM_LIST": {"streams": [stream()], "total": 1, "limit": 256}, "CONSUMER_LIST": page(consumer())}
    scripted = Scripted(**lists, CONSUMER_INFO=consumer())
    scripted.round_trip, observer = round_trip, Reader(scripted)
    answer, clock = scripted.request, observer._clock
    assert isinstance(clock, FakeClock)

    async def slow(*asked: Any) -> Message:
        clock.advance(0.2)
        return await answer(*asked)

    scripted.request = slow  # type: ignore[method-assign]
    for requests, reading in (
        (1, await observer.stream("S")),
        (1, await observer.streams()),
        (2, await observer.consumers("S")),
        (2, await observer.consumers("S", ("good",))),
    ):
        assert (reading.took, reading.trip) == pytest.approx((0.2 * requests, 0.2 * requests * share))
