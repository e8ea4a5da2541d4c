"""The messages that share hints: nothing is lost in them, none is too long, and what is forged is not read."""

from __future__ import annotations

import json
from itertools import count

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.recording.hint_batch import ACK_TIMES_LIMIT, HintBatch, hints_of
from nats_backpressure.recording.hint_messages import (
    MOST_HINTS,
    HintsMessage,
    decode_hints,
    encode_hints,
    stream_of,
    topic_of,
)
from nats_backpressure.runtime.observations import AckSeen, ConsumerHint, MaxDeliveries, Nak, Terminated

KEY = ConsumerKey("S", "c")
NOW = Now(5.0, 1_800_000_000.0)
LIMIT = 64 * 1024

hints = st.one_of(
    st.builds(AckSeen, st.just(KEY), st.floats(1e-5, 1e5), st.integers(1, 50), st.just(NOW), st.integers(1, 9)),
    *(st.builds(kind, st.just(KEY), st.integers(1, 9)) for kind in (Nak, MaxDeliveries, Terminated)),
)


def batch_of(*some: ConsumerHint) -> HintBatch:
    batch = HintBatch(NOW)
    for hint in some:
        batch.add(hint, NOW)
    return batch


def sums(some: list[ConsumerHint]) -> list[int]:
    """How many of each kind, and deliveries of all acks."""
    acks = [hint for hint in some if isinstance(hint, AckSeen)]
    times = [sum(hint.times for hint in some if isinstance(hint, kind)) for kind in (Nak, MaxDeliveries, Terminated)]
    return [sum(ack.times for ack in acks), sum(ack.times * ack.deliveries for ack in acks), *times]


@given(st.lists(hints, max_size=40))
def test_what_is_summed_shared_and_read_is_what_came(some: list[ConsumerHint]) -> None:
    (message,) = encode_hints("me", count(), (1.0, 2.0), [("c", batch_of(*some).to_line(0))], LIMIT)
    read = decode_hints(message)
    assert read is not None
    assert (read.sender, read.since, read.sent, read.names) == ("me", 1.0, 2.0, ("c",))
    again = list(hints_of(KEY, read.hints[0], NOW))
    assert sums(again) == sums(some)
    batch = batch_of(*again)
    assert batch.to_line(0).acks == read.hints[0].acks, "summed again it is the same"


@pytest.mark.parametrize("room", [1024, 20_000, LIMIT])
def test_no_message_is_longer_than_the_server_takes(room: int) -> None:
    acks = [AckSeen(KEY, 1e-6 * 1.01**i, 10**6 + i, NOW, 10) for i in range(ACK_TIMES_LIMIT)]
    full = batch_of(*acks, Nak(KEY, 7), MaxDeliveries(KEY, 8), Terminated(KEY, 9))
    assert full.is_full(NOW)
    names = [f"{i}-".ljust(255, "x") for i in range(20)]
    lines = [(name, (full if i == 5 else batch_of(Nak(KEY))).to_line(0)) for i, name in enumerate(names)]
    messages = encode_hints("me" * 20, count(7), (1e9 + 0.123456789, 1e9 + 0.123456789), lines, room)
    assert max(map(len, messages)) <= room
    read = [msgspec.json.decode(message, type=HintsMessage) for message in messages]
    assert [each.n for each in read] == list(range(7, 7 + len(messages)))
    assert all([line.c for line in each.hints] == list(range(len(each.names))) for each in read)
    some = [
        hint
        for each in read
        for name, line in zip(each.names, each.hints, strict=True)
        for hint in hints_of(ConsumerKey("S", name), line, NOW)
    ]
    assert list(dict.fromkeys(hint.key.consumer for hint in some)) == names
    assert sums([hint for hint in some if hint.key.consumer == names[5]]) == sums(list(hints_of(KEY, lines[5][1], NOW)))


def test_topics_are_those_of_the_stream() -> None:
    for name in ("S", "a b", "x.y", "ü"):
        assert stream_of(topic_of(name)) == name
    assert stream_of("hints.=") is None


GOOD = {
    "schema": 1,
    "sender": "a",
    "n": 1,
    "since": 1.0,
    "sent": 2.0,
    "names": ["c"],
    "hints": [{"t": "hints", "c": 0, "at": [1.0, 1.0], "naks": 1}],
}


@pytest.mark.parametrize(
    "other",
    [
        {"schema": 2},
        {"sender": ""},
        {"since": -1.0},
        {"names": []},
        {"hints": [{"t": "hints", "c": 0, "at": [1.0, 1.0], "naks": MOST_HINTS + 1}]},
        {"hints": [{"t": "hints", "c": 0, "at": [1.0, 1.0], "acks": [[0.1, 1, MOST_HINTS], [0.2, 1, 1]]}]},
        {"hints": [{"t": "read", "s": 0, "at": [1.0, 1.0]}]},
    ],
)
def test_what_is_impossible_is_not_read(other: dict[str, object]) -> None:
    assert decode_hints(json.dumps(GOOD).encode()) is not None
    assert decode_hints(json.dumps(GOOD | {"new": 1}).encode()) is not None
    assert decode_hints(json.dumps(GOOD | other).encode()) is None


@given(st.binary(max_size=200))
def test_garbage_is_not_read(payload: bytes) -> None:
    assert decode_hints(payload) is None
