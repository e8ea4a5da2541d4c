"""What replicas send each other: what is decoded equals what was read, and nothing else is ever decoded."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.adapters.nats.replica_channel import LONGEST
from nats_backpressure.core.model.samples import ConsumerConfig, Retention, Sample, StreamLook
from nats_backpressure.core.reading.sharing import ALL_STREAMS, Position
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.recording.broadcast_decoder import BroadcastDecoder
from nats_backpressure.recording.broadcast_encoder import ReadingEncoder
from nats_backpressure.recording.broadcast_format import (
    BroadcastMessage,
    UnreadableMessage,
    chunks_of,
    decode_chunk,
)
from nats_backpressure.recording.broadcast_list_encoder import ListEncoder
from nats_backpressure.recording.broadcast_numbers import AskedFor
from nats_backpressure.recording.encoder import CLOCK_TOLERANCE
from nats_backpressure.runtime.observations import ConsumersReading, StreamsReading
from tests.recording.observations import LOOK, now, sample, seen
from tests.support.exploring import examples

HERE = Position(writes=True, settled=True, share=0.5)
WHOLE_EVERY = 5.0

T = TypeVar("T")


def sent(message: BroadcastMessage | None, longest: int = LONGEST) -> list[bytes]:
    """The chunks of a message, sent at once."""
    if message is None:
        return []
    return [chunk for chunk in chunks_of(message, longest, lambda: message.header.answered) if chunk]


def at_once(steps: Generator[None, None, T]) -> T:
    """The result, without any pause."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def decode(decoder: BroadcastDecoder, chunks: list[bytes]) -> ConsumersReading | StreamsReading | Sample | None:
    """What the chunks of a message come to, on the sender's clock."""
    complete = False
    for chunk in chunks:
        complete = decoder.take(*decode_chunk(chunk))
    return at_once(decoder.shown(now_of)) if complete else None


def now_of(mono: float) -> Now:
    """The moment of a monotonic time, where sender and receiver have one clock."""
    return now(mono - now(0).mono)


def is_near(one: float | None, other: float | None, tolerance: float) -> bool:
    return one == other if one is None or other is None else abs(one - other) <= tolerance


def is_same_look(read: StreamLook, got: StreamLook) -> bool:
    aged = replace(got, oldest_age=read.oldest_age, fill=read.fill)
    return (
        aged == read
        and is_near(read.oldest_age, got.oldest_age, 2 * CLOCK_TOLERANCE)
        and is_near(read.fill, got.fill, 1e-4)
    )


def is_same_sample(read: Sample, got: Sample, first: float) -> bool:
    """Equal but for ages; an unchanged one is not newer than what was read, nor older than the first of them."""
    aged = replace(got, at=read.at, since_delivery=read.since_delivery, since_ack=read.since_ack)
    tolerance = 2 * CLOCK_TOLERANCE + read.at.mono - first
    return (
        aged == read
        and first - 1e-5 <= got.at.mono <= read.at.mono + 1e-5
        and is_near(read.since_delivery, got.since_delivery, tolerance)
        and is_near(read.since_ack, got.since_ack, tolerance)
    )


def assert_same(read: ConsumersReading, got: Any) -> None:
    assert isinstance(got, ConsumersReading)
    assert is_same_look(read.look, got.look)
    first = min((each.at.mono for each in read.samples), default=0.0)
    by_key = {each.key: each for each in got.samples}
    assert by_key.keys() == {each.key for each in read.samples}
    for each in read.samples:
        assert is_same_sample(each, by_key[each.key], first), (each, by_key[each.key])
    assert replace(got, look=read.look, samples=read.samples, epoch=read.epoch) == read


counts = st.integers(0, 3)
names = st.sampled_from(["a", "b", "c", "d"])
configs = st.sampled_from([ConsumerConfig(), ConsumerConfig(filters=("a.b",), max_ack_pending=10, sampled=True)])
ages = st.one_of(st.none(), st.floats(0, 100))


@st.composite
def readings(draw: st.DrawFn) -> tuple[ConsumersReading, float, StreamLook | None]:
    """A reading, the seconds since the one before, and the look before it; times of samples before its end."""
    shown = draw(st.lists(names, unique=True))
    partial = draw(st.booleans())
    look = replace(
        LOOK,
        created=draw(st.sampled_from(["t0", "t0", "t0", "t9"])),
        last_seq=100 + draw(counts),
        fill=draw(st.one_of(st.none(), st.floats(0, 1))),
        oldest_age=draw(ages),
        consumers=draw(counts),
        retention=draw(st.sampled_from([None, Retention(max_msgs=5)])),
    )
    samples = [
        sample(
            draw(st.floats(-0.2, 0)),
            name,
            pending=draw(counts),
            inflight=draw(counts),
            since_delivery=draw(ages),
            since_ack=draw(ages),
            paused=draw(st.booleans()),
        )
        for name in shown
    ]
    samples = [replace(each, config=draw(configs), created=draw(st.sampled_from(["t1", "t2"]))) for each in samples]
    missing = tuple(draw(st.lists(names, unique=True)))
    reading = seen(*samples, look=look, missing=missing, complete=draw(st.booleans()), partial=partial)
    base = draw(st.one_of(st.none(), st.just(replace(look, last_seq=99))))
    return reading, draw(st.sampled_from([0.0, 0.1, 1.0, 3.0, 6.0])), base


def later(reading: ConsumersReading, at: float) -> ConsumersReading:
    moved = (replace(each, at=now(at + each.at.mono - now(0).mono)) for each in reading.samples)
    return replace(reading, samples=tuple(moved))


@given(st.lists(readings(), min_size=1, max_size=8))
def test_what_is_decoded_equals_what_was_read(
    sequence: list[tuple[ConsumersReading, float, StreamLook | None]],
) -> None:
    encoder, decoder, at = ReadingEncoder("me", WHOLE_EVERY), BroadcastDecoder(LOOK.name), 0.0
    for reading, after, base in sequence:
        at += after
        read = later(reading, at)
        chunks = sent(encoder.reading(read, AskedFor(now(at).mono - 0.5, base), HERE, now(at)))
        assert_same(read, decode(decoder, chunks))
        header, _ = decode_chunk(chunks[0])
        assert header.asked == now(at).mono - 0.5
        got = decoder.base()
        assert (got is None) == (base is None)
        if got is not None and base is not None:
            assert (got.last_seq, got.created, got.messages) == (99, base.created, base.messages)


@settings(max_examples=examples(100))
@given(
    st.lists(readings(), min_size=2, max_size=12),
    st.lists(st.sampled_from(["comes", "lost", "twice", "late"]), min_size=12, max_size=12),
)
def test_a_message_that_is_lost_doubled_or_late_is_noticed(
    sequence: list[tuple[ConsumersReading, float, StreamLook | None]], fates: list[str]
) -> None:
    encoder, decoder, at = ReadingEncoder("me", WHOLE_EVERY), BroadcastDecoder(LOOK.name), 0.0
    messages: list[tuple[ConsumersReading, list[bytes]]] = []
    for reading, after, base in sequence:
        at += after
        read = later(reading, at)
        messages.append((read, sent(encoder.reading(read, AskedFor(0.0, base), HERE, now(at)))))
    arriving: list[tuple[float, ConsumersReading, list[bytes]]] = []
    for n, ((read, chunks), fate) in enumerate(zip(messages, fates, strict=False)):
        arriving += [(n + 1.5 * (fate == "late"), read, chunks)] * {"lost": 0, "twice": 2}.get(fate, 1)
    used = []
    for _, read, chunks in sorted(arriving, key=lambda each: each[0]):
        try:
            got = decode(decoder, chunks)
        except UnreadableMessage:
            continue
        assert_same(read, got)
        used.append(read)
    if fates[: len(messages)] == ["comes"] * len(messages):
        assert len(used) == len(messages)
    assert len({id(read) for read in used}) == len(used), "none is used twice"


long_names = [f"{name}{'x' * 700}" for name in "abcd"]


@settings(max_examples=examples(200))
@given(
    st.lists(st.lists(st.sampled_from(long_names), unique=True), min_size=2, max_size=5),
    st.lists(st.sampled_from(["comes", "comes", "comes", "lost", "twice", "late", "very late"]), min_size=30),
    st.sets(st.integers(0, 5)),
)
def test_a_chunk_that_is_lost_doubled_or_late_is_noticed(
    sequence: list[list[str]], fates: list[str], whole: set[int]
) -> None:
    encoder, decoder = ReadingEncoder("me", WHOLE_EVERY), BroadcastDecoder(LOOK.name)
    arriving: list[tuple[float, bytes]] = []
    readings: dict[int, ConsumersReading] = {}
    for n, shown in enumerate(sequence):
        encoder.messages.whole_wanted |= n in whole
        readings[n] = seen(*(sample(n / 10, name, pending=len(name) + n % 2) for name in shown))
        for chunk in sent(encoder.reading(readings[n], AskedFor(0.0), HERE, now(n / 10)), 1000):
            fate, place = fates[len(arriving) % len(fates)], len(arriving)
            after = {"late": 1.5, "very late": 4.5}.get(fate, 0.0)
            arriving += [(place + after, chunk)] * {"lost": 0, "twice": 2}.get(fate, 1)
    used = []
    for _, chunk in sorted(arriving, key=lambda each: each[0]):
        header, lines = decode_chunk(chunk)
        try:
            complete = decoder.take(header, lines)
        except UnreadableMessage:
            continue
        if complete:
            assert_same(readings[header.n], at_once(decoder.shown(now_of)))
            used.append(header.n)
    assert used == sorted(set(used)), "none is used twice, or after a newer one"


def test_a_late_message_is_not_used_on_the_beginning_of_the_next_one_that_shows_all() -> None:
    encoder, decoder = ReadingEncoder("me", WHOLE_EVERY), BroadcastDecoder(LOOK.name)
    many = [sample(0.0, name) for name in long_names]
    first, late, whole = (
        sent(encoder.reading(seen(*many), AskedFor(0.0), HERE, now(at)), 1000) for at in (0.0, 0.1, 6.0)
    )
    decode(decoder, first)
    decoder.take(*decode_chunk(whole[0]))
    with pytest.raises(UnreadableMessage):
        decoder.take(*decode_chunk(late[0]))


def test_after_a_loss_nothing_is_used_until_the_next_whole_message() -> None:
    encoder, decoder = ReadingEncoder("me", WHOLE_EVERY), BroadcastDecoder(LOOK.name)
    messages = [
        sent(encoder.reading(seen(sample(at, pending=n)), AskedFor(0.0), HERE, now(at)))
        for n, at in enumerate((0.0, 1.0, 2.0, 3.0, 6.0))
    ]
    assert decode(decoder, messages[0]) is not None
    for message in messages[2:4]:
        with pytest.raises(UnreadableMessage):
            decode(decoder, message)
    assert decode(decoder, messages[4]) is not None


def test_only_what_changed_is_sent() -> None:
    encoder = ReadingEncoder("me", WHOLE_EVERY)
    many = [sample(0.0, f"c{n}") for n in range(100)]
    first = sent(encoder.reading(seen(*many), AskedFor(0.0), HERE, now(0.0)))
    moved = [replace(each, at=now(0.1), pending=int(each is many[5])) for each in many]
    (second,) = sent(encoder.reading(seen(*moved), AskedFor(0.0), HERE, now(0.1)))
    assert len(second) < 600 < len(b"".join(first))


def test_a_whole_message_comes_at_once_where_it_is_wanted() -> None:
    encoder, newcomer = ReadingEncoder("me", WHOLE_EVERY), BroadcastDecoder(LOOK.name)
    encoder.reading(seen(sample()), AskedFor(0.0), HERE, now(0.0))
    encoder.messages.whole_wanted = True
    read = seen(sample(0.1), partial=True)
    assert_same(read, decode(newcomer, sent(encoder.reading(read, AskedFor(0.0), HERE, now(0.1)))))


def test_a_long_message_comes_in_chunks_and_a_lost_chunk_is_noticed() -> None:
    encoder, decoder = ReadingEncoder("me", WHOLE_EVERY), BroadcastDecoder(LOOK.name)
    read = seen(*(sample(0.0, f"consumer-{n:05}", pending=n) for n in range(2000)))
    chunks = sent(encoder.reading(read, AskedFor(0.0), HERE, now(0.0)))
    assert len(chunks) > 2
    assert max(map(len, chunks)) <= LONGEST
    with pytest.raises(UnreadableMessage):
        decode(BroadcastDecoder(LOOK.name), [chunks[0], *chunks[2:]])
    assert_same(read, decode(decoder, chunks))
    header, _ = decode_chunk(chunks[-1])
    with pytest.raises(UnreadableMessage):
        decoder.take(replace(header, part=header.part + 1), b"")


def test_a_consumer_that_was_read_alone() -> None:
    encoder, decoder = ReadingEncoder("me", WHOLE_EVERY), BroadcastDecoder(LOOK.name)
    assert sent(encoder.sample(sample(), AskedFor(0.0), HERE, now(0.0))) == [], "it rests on a reading of the stream"
    decode(decoder, sent(encoder.reading(seen(sample()), AskedFor(0.0), HERE, now(0.0))))
    other = sample(1.0, "other", pending=3)
    assert decode(decoder, sent(encoder.sample(other, AskedFor(0.0), HERE, now(1.1)))) == other
    read = seen(sample(2.0), sample(2.0, "other", pending=3))
    assert_same(read, decode(decoder, sent(encoder.reading(read, AskedFor(0.0), HERE, now(2.0)))))


looks = st.builds(
    lambda name, last, created, consumers: replace(
        LOOK, name=name, last_seq=100 + last, created=created, consumers=consumers
    ),
    names,
    counts,
    st.sampled_from(["t0", "t0", "t9"]),
    counts,
)


@given(st.lists(st.tuples(st.lists(looks, unique_by=lambda look: look.name), st.booleans()), max_size=8))
def test_lists_of_streams_and_looks_at_one(sequence: list[tuple[list[StreamLook], bool]]) -> None:
    encoder, decoder = ListEncoder("me", WHOLE_EVERY), BroadcastDecoder(ALL_STREAMS)
    for n, (shown, single) in enumerate(sequence):
        if single and shown:
            read = StreamsReading((shown[0],), False, 0.001, 1)
            chunks = sent(encoder.look(read, AskedFor(0.0), HERE, now(n)))
            if not chunks:
                continue
        else:
            read = StreamsReading(tuple(shown), True, 0.001, 1, server_time=None if n == 2 else 1.8e9 + n)
            chunks = sent(encoder.streams(read, AskedFor(0.0), HERE, now(n)))
        got = decode(decoder, chunks)
        assert isinstance(got, StreamsReading)
        assert (got.complete, got.server_time) == (read.complete, read.server_time)
        by_name = {look.name: look for look in got.looks}
        assert by_name.keys() == {look.name for look in read.looks}
        assert all(is_same_look(look, by_name[look.name]) for look in read.looks)
