"""Answers no server should give, and lists that change or lack members: what is read, left out and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from nats_backpressure.adapters.nats.observer import PAGES_LIMIT, JetStreamObserver, RequestBudget
from nats_backpressure.core.model import Sample
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime import ports
from nats_backpressure.runtime.observations import ConsumerGone, ConsumersReading, StreamGone, Unavailable
from tests.fakes.clock import FakeClock

TS = "2026-01-01T00:01:00.5Z"


def consumer(name: str = "good", /, **changes: Any) -> dict[str, Any]:
    """As a server tells it; `changes` take fields away (None) or set them, `config__x` inside the configuration."""
    info: dict[str, Any] = {
        "stream_name": "S",
        "name": name,
        "created": "2026-01-01T00:00:00Z",
        "config": {"durable_name": name, "ack_policy": "explicit", "ack_wait": 30_000_000_000, "max_ack_pending": 1000},
        "delivered": {"consumer_seq": 3, "stream_seq": 3, "last_active": "2026-01-01T00:00:30Z"},
        "ack_floor": {"consumer_seq": 1, "stream_seq": 1, "last_active": "0001-01-01T00:00:00Z"},
        "num_ack_pending": 2,
        "num_pending": 7,
        "ts": TS,
    }
    for name_, value in changes.items():
        outer, _, inner = name_.partition("__")
        place, field = (info[outer], inner) if inner else (info, outer)
        if value is None:
            place.pop(field)
        else:
            place[field] = value
    return info


def stream(name: str = "S", config: dict[str, Any] | None = None, **state: Any) -> dict[str, Any]:
    numbers = {"messages": 10, "bytes": 100, "first_seq": 1, "last_seq": 10, **state}
    return {"config": {"name": name, "subjects": ["s.>"], **(config or {})}, "created": "then", "state": numbers}


class Message(Struct):
    data: bytes


class Scripted:
    """A server that answers as told: bytes, anything as JSON, an exception, or a function of the request."""

    def __init__(self, **answers: Any) -> None:
        self.epoch = 1
        self.asked: list[tuple[str, bytes]] = []
        self._answers = {"STREAM_INFO": stream(), **answers}

    async def request(self, subject: str, payload: bytes, seconds: float) -> Message:
        op = "_".join(subject.removeprefix("$JS.API.").split(".")[:2])
        self.asked.append((subject, payload))
        answer = self._answers[op]
        if callable(answer):
            answer = answer(json.loads(payload).get("offset", 0))
        if isinstance(answer, Exception):
            raise answer
        return Message(answer if isinstance(answer, bytes) else json.dumps(answer).encode())


class Reader(JetStreamObserver):
    def __init__(self, script: Scripted) -> None:
        self.counted: list[str] = []
        self.outcomes: list[str] = []

        def count_request(op: str, outcome: str, seconds: float) -> None:
            self.outcomes.append(f"{op} {outcome}")

        clock = FakeClock()
        super().__init__(script, clock, count=self.counted.append, count_request=count_request, requests_per_second=1e6)


def page(*consumers: Any, **more: Any) -> dict[str, Any]:
    return {"total": len(consumers), "offset": 0, "limit": 256, "consumers": list(consumers), **more}


async def read(*consumers: Any, **more: Any) -> tuple[ConsumersReading, Reader]:
    reader = Reader(Scripted(CONSUMER_LIST=page(*consumers, **more)))
    return await reader.consumers("S"), reader


def names(reading: ConsumersReading) -> list[str]:
    return [sample.key.consumer for sample in reading.samples]


async def test_what_a_newer_server_adds_is_ignored_and_what_go_leaves_out_is_zero() -> None:
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
async def test_an_item_that_cannot_be_so_is_left_out_and_the_others_are_read(bad: Any) -> None:
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
async def test_an_answer_nobody_can_read_is_no_answer(op: str, answer: bytes) -> None:
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
async def test_what_the_server_says_is_told_apart(error: dict[str, Any], raised: type[Exception]) -> None:
    for op in ("CONSUMER_LIST", "STREAM_INFO", "CONSUMER_INFO"):
        reader = Reader(Scripted(**{"CONSUMER_LIST": page(), op: {"type": "t", "error": error}}))
        with pytest.raises(raised) as said:
            await (reader.consumer(ConsumerKey("S", "c")) if op == "CONSUMER_INFO" else reader.consumers("S"))
        assert len(str(said.value)) < 200
        assert reader.outcomes[-1] == f"{op.replace('_', '.')} error"


async def test_no_connection_is_no_answer() -> None:
    reader = Reader(Scripted(STREAM_LIST=ports.Unavailable("not connected to NATS")))
    with pytest.raises(Unavailable, match="not connected"):
        await reader.streams()
    assert reader.outcomes == ["STREAM.LIST unavailable"]


async def test_a_reading_over_two_connections_is_none() -> None:
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
    assert not reading.complete


async def test_a_page_is_as_long_as_the_server_says_whatever_it_lacks() -> None:
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


async def test_a_list_without_end_is_left() -> None:
    script = Scripted(CONSUMER_LIST=lambda offset: page(consumer(f"c{offset}"), total=2**62, limit=1))
    reading = await Reader(script).consumers("S")
    assert len(reading.samples) == PAGES_LIMIT and not reading.complete


@pytest.mark.parametrize(
    ("config", "state", "full"),
    [
        ({"max_msgs": 10}, {}, True),
        ({"max_msgs": 11}, {}, False),
        ({"max_msgs": -1, "max_bytes": -1}, {}, False),
        ({"max_bytes": 100}, {"bytes": 95}, True),
        ({"max_bytes": 100}, {"bytes": 94}, False),
        ({"max_msgs_per_subject": 5}, {"num_subjects": 2}, True),
        ({"max_msgs_per_subject": 5}, {"num_subjects": 3}, False),
        ({"max_msgs": 10, "discard": "new"}, {}, False),
    ],
)
async def test_a_stream_at_its_limit_pushes_out_old_ones(config: dict[str, Any], state: Any, full: bool) -> None:
    reader = Reader(Scripted(CONSUMER_LIST=page(), STREAM_INFO=stream(config=config, **state)))
    assert (await reader.consumers("S")).look.at_limit is full


async def test_a_mirror_is_told_by_its_configuration() -> None:
    config = {"subjects": None, "mirror": {"name": "S"}}
    look = (await Reader(Scripted(STREAM_LIST={"total": 1, "streams": [stream(config=config)]})).streams()).looks[0]
    assert (look.origin, look.subjects) == ("S", ())


@pytest.mark.parametrize(
    ("changes", "fact", "value"),
    [
        ({"durable_name": None}, "durable", False),
        ({"max_ack_pending": -1}, "max_ack_pending", None),
        ({"max_ack_pending": None}, "max_ack_pending", None),
        ({"max_ack_pending": 7}, "max_ack_pending", 7),
        ({"ack_wait": 1_500_000_000}, "ack_wait", 1.5),
        ({"ack_wait": None}, "ack_wait", 30.0),
        ({"sample_freq": "100"}, "sampled", True),
        ({"sample_freq": "50%"}, "sampled", True),
        ({"sample_freq": "0"}, "sampled", False),
        ({"sample_freq": "often"}, "sampled", False),
        ({"deliver_subject": "to.me"}, "push", True),
        ({"filter_subject": "s.a"}, "filters", ("s.a",)),
        ({"filter_subjects": ["s.a", "s.b"]}, "filters", ("s.a", "s.b")),
        ({"ack_policy": "all"}, "ack_policy", "all"),
        ({"max_deliver": 5}, "max_deliver", 5),
        ({"max_deliver": -1}, "max_deliver", None),
        ({}, "max_deliver", None),
        ({"priority_groups": ["A"]}, "priority_groups", True),
        ({}, "priority_groups", False),
        ({"rate_limit_bps": 8000}, "rate_limited", True),
        ({"rate_limit_bps": 2**64 - 1}, "rate_limited", True),
        ({}, "rate_limited", False),
        ({"replay_policy": "original"}, "original_replay", True),
        ({"replay_policy": "instant"}, "original_replay", False),
        ({"metadata": {"_nats.ver": "2.15.1", "owner": "me"}}, "metadata", ()),
        (
            {"metadata": {"io.nats.monitor.x": "2", "backpressure.y": "1", "backpressure": "3"}},
            "metadata",
            (("backpressure.y", "1"), ("io.nats.monitor.x", "2")),
        ),
    ],
)
async def test_the_configuration_is_read_for_what_bears_on_the_judgement(
    changes: dict[str, Any], fact: str, value: Any
) -> None:
    reading, _ = await read(consumer(**{f"config__{k}": v for k, v in changes.items()}))
    assert getattr(reading.samples[0].config, fact) == value


MANY = {f"backpressure.{n:03}": "1" for n in range(70)}


@pytest.mark.parametrize(
    ("metadata", "kept"),
    [
        (MANY, sorted(MANY.items())[:64]),
        ({"backpressure.a": "x" * 1024, "backpressure.b": "x" * 1025}, [("backpressure.a", "x" * 1024)]),
        ({"backpressure." + "k" * 1024: "1", "backpressure.c": "2"}, [("backpressure.c", "2")]),
    ],
    ids=["keys", "a value", "a key"],
)
async def test_metadata_beyond_its_bounds_is_left_out_and_counted(metadata: Any, kept: list[tuple[str, str]]) -> None:
    reading, reader = await read(consumer(config__metadata=metadata))
    assert reading.samples[0].config.metadata == tuple(kept)
    assert reader.counted == ["metadata_left_out"]


@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ({}, True),
        ({"config__deliver_subject": "to.me"}, False),
        ({"config__deliver_subject": "to.me", "push_bound": True}, True),
    ],
    ids=["pull", "push to nobody", "push to somebody"],
)
async def test_a_push_consumer_tells_whether_somebody_listens(changes: dict[str, Any], bound: bool) -> None:
    reading, _ = await read(consumer(**changes))
    assert reading.samples[0].bound is bound


@pytest.mark.parametrize(
    ("config", "state", "fill"),
    [
        ({}, {}, None),
        ({"max_msgs": -1, "max_bytes": 0}, {}, None),
        ({"max_msgs": 40}, {}, 0.25),
        ({"max_msgs": 40, "max_bytes": 200}, {}, 0.5),
        ({"max_msgs": 10, "discard": "new"}, {}, 1.0),
        ({"max_bytes": 90}, {}, 1.0),
        ({"max_msgs_per_subject": 5}, {"num_subjects": 2}, None),
    ],
    ids=["no limits", "limits that are none", "messages", "the larger share", "full", "over", "per subject is none"],
)
async def test_how_full_a_stream_is(config: dict[str, Any], state: Any, fill: float | None) -> None:
    reader = Reader(Scripted(CONSUMER_LIST=page(), STREAM_INFO=stream(config=config, **state)))
    assert (await reader.consumers("S")).look.fill == fill


@pytest.mark.parametrize(
    ("state", "ts", "age"),
    [
        ({"first_ts": "2026-01-01T00:00:00Z"}, TS, 60.5),
        ({"first_ts": "2026-01-01T00:00:00Z"}, None, None),
        ({"first_ts": "0001-01-01T00:00:00Z", "messages": 0}, TS, None),
        ({"first_ts": "2026-01-01T00:00:00Z", "messages": 0}, TS, None),
        ({"first_ts": "2026-01-01T00:02:00Z"}, TS, 0.0),
        ({}, TS, None),
    ],
    ids=["by the server's clock", "which 2.9 does not tell", "empty", "emptied", "from the future", "untold"],
)
async def test_how_old_the_first_message_is(state: Any, ts: str | None, age: float | None) -> None:
    told = stream(**state) | ({"ts": ts} if ts else {})
    assert (await Reader(Scripted(CONSUMER_LIST=page(), STREAM_INFO=told)).consumers("S")).look.oldest_age == age
    listed = await Reader(Scripted(STREAM_LIST={"total": 1, "streams": [told]})).streams()
    assert listed.looks[0].oldest_age == age


async def test_the_budget_spreads_requests_and_allows_a_short_burst() -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(round(seconds, 3))

    budget = RequestBudget(10, clock=lambda: 100.0, sleep=sleep)
    for _ in range(6):
        await budget.take()
    assert waits == [0.1, 0.2, 0.3]


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = sorted(consumer())


@given(st.lists(st.tuples(st.sampled_from(FIELDS), JUNK), max_size=3), st.binary(max_size=40), st.integers(0, 900))
async def test_whatever_is_answered_there_is_a_reading_or_a_reason(
    changes: list[tuple[str, Any]], noise: bytes, at: int
) -> None:
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
