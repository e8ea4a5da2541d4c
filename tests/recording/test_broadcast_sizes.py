"""Readings of every size are shared: many consumers, long lines, many names; and lines that a later build adds."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.adapters.nats.replica_channel import LONGEST
from nats_backpressure.core.model.samples import ConsumerConfig, Sample, StreamLook
from nats_backpressure.core.reading.sharing import ALL_STREAMS
from nats_backpressure.recording.broadcast_decoder import BroadcastDecoder
from nats_backpressure.recording.broadcast_encoder import ReadingEncoder
from nats_backpressure.recording.broadcast_format import SHORTEST_CHUNK
from nats_backpressure.recording.broadcast_list_encoder import ListEncoder
from nats_backpressure.recording.broadcast_numbers import AskedFor
from nats_backpressure.recording.format import LONGEST_LINE
from nats_backpressure.runtime.observations import ConsumersReading, StreamsReading
from tests.recording.observations import LOOK, now, sample, seen
from tests.recording.test_broadcast import HERE, WHOLE_EVERY, assert_same, decode, is_same_look, sent

ASKED = AskedFor(0.0)
LONG = "x" * LONGEST_LINE


def many(n: int, of: str = "a.subject.of.some.length") -> tuple[str, ...]:
    return tuple(f"{of}.{i}" for i in range(n))


def filtered(name: str, *filters: str, at: float = 0.0) -> Sample:
    return replace(sample(at, name), config=ConsumerConfig(filters=filters))


SIZES: dict[str, ConsumersReading] = {
    "10,000 consumers": seen(*(sample(0.0, f"consumer-{n}", pending=n) for n in range(10_000))),
    "3,000 subjects": seen(sample(), look=replace(LOOK, subjects=many(3000))),
    "20,000 subjects": seen(sample(), look=replace(LOOK, subjects=many(20_000))),
    "3,300 names missing": seen(sample(), missing=many(3300)),
    "50,000 names missing, 5 malformed": seen(sample(), missing=many(50_000), malformed=many(5)),
    "1,200 names malformed": seen(sample(), malformed=many(1200)),
    "3,000 filters": seen(sample(name="a"), filtered("b", *many(3000)), filtered("c", *many(20_000))),
    "long names": seen(*(sample(0.0, "n" * 4000 + str(n)) for n in range(50))),
    "not ASCII": seen(*(sample(0.0, "ü\u2028\n" * 200 + str(n)) for n in range(200))),
    "nothing": seen(),
}


@pytest.mark.parametrize("size", SIZES)
def test_a_reading_of_any_size_arrives(size: str) -> None:
    encoder, decoder = ReadingEncoder("me", WHOLE_EVERY), BroadcastDecoder(LOOK.name)
    for at in (0.0, 0.1):
        chunks = sent(encoder.reading(SIZES[size], ASKED, HERE, now(at)))
        assert max(map(len, chunks)) <= LONGEST
        assert_same(SIZES[size], decode(decoder, chunks))


@pytest.mark.parametrize("subjects", [1, 2500, 20_000])
def test_a_list_in_which_one_stream_has_many_subjects_arrives(subjects: int) -> None:
    encoder, decoder = ListEncoder("me", WHOLE_EVERY), BroadcastDecoder(ALL_STREAMS)
    looks = tuple(replace(LOOK, name=f"s{n}", subjects=many(subjects if n == 5 else 1)) for n in range(1000))
    for at in (0.0, 0.1):
        got = decode(decoder, sent(encoder.streams(StreamsReading(looks, True, 0.001, 1), ASKED, HERE, now(at))))
        assert isinstance(got, StreamsReading) and got.complete
        assert all(is_same_look(read, look) for read, look in zip(looks, got.looks, strict=True))


def names(got: Any) -> set[str]:
    assert isinstance(got, StreamsReading)
    return {look.name for look in got.looks}


def test_a_stream_whose_line_is_too_long_is_left_out_and_the_list_is_not_complete() -> None:
    encoder, decoder = ListEncoder("me", WHOLE_EVERY), BroadcastDecoder(ALL_STREAMS)

    def share(at: float, *looks: StreamLook, partial: bool = False) -> Any:
        reading = StreamsReading(looks, not partial, 0.001, 1, partial)
        message = encoder.look if partial else encoder.streams
        return decode(decoder, sent(message(reading, ASKED, HERE, now(at))))

    a, b, long = (replace(LOOK, name=name) for name in ("a", "b", "long"))
    too_long = replace(long, subjects=(LONG,))
    first = share(0.0, a, too_long, b)
    assert names(first) == {"a", "b"} and not first.complete
    assert share(0.1, a, long, b).complete
    grown = share(0.2, a, too_long, b)
    assert names(grown) == {"a", "b"} and not grown.complete, "nothing old is shown of it"
    assert names(share(0.3, too_long, partial=True)) == set()
    again = share(0.4, a, long, b)
    assert names(again) == {"a", "b", "long"} and again.complete


@pytest.mark.parametrize("partial", [False, True])
def test_a_consumer_whose_line_is_too_long_exists_and_is_not_read(partial: bool) -> None:
    encoder, decoder = ReadingEncoder("me", WHOLE_EVERY), BroadcastDecoder(LOOK.name)

    def share(at: float, *samples: Sample) -> Any:
        reading = seen(*samples, partial=partial)
        return decode(decoder, sent(encoder.reading(reading, ASKED, HERE, now(at))))

    def shown(got: Any) -> tuple[list[str], tuple[str, ...]]:
        return [one.key.consumer for one in got.samples], got.missing

    assert shown(share(0.0, filtered("a", LONG), sample(name="b"))) == (["b"], ("a",))
    assert shown(share(0.1, sample(0.1, "a"), sample(0.1, "b"))) == (["b", "a"] if not partial else ["a", "b"], ())
    assert shown(share(0.2, filtered("a", LONG, at=0.2), sample(0.2, "b"))) == (["b"], ("a",))
    assert sorted(shown(share(0.3, sample(0.3, "a"), sample(0.3, "b")))[0]) == ["a", "b"]


lengths = st.integers(0, 1500)


@given(st.lists(st.tuples(lengths, lengths), max_size=8), lengths, st.integers(1000, 4000))
def test_lines_of_any_length_are_cut_anywhere(consumers: list[tuple[int, int]], subject: int, chunk: int) -> None:
    reading = seen(
        *(filtered(f"{n}{'n' * name}", "f" * length) for n, (name, length) in enumerate(consumers)),
        look=replace(LOOK, subjects=("s" * subject,)),
    )
    chunks = sent(ReadingEncoder("me", WHOLE_EVERY).reading(reading, ASKED, HERE, now(0.0)), chunk)
    assert max(map(len, chunks)) <= max(chunk, SHORTEST_CHUNK)
    assert_same(reading, decode(BroadcastDecoder(LOOK.name), chunks))


@given(st.data())
def test_kinds_of_lines_and_fields_that_a_later_build_adds_are_skipped(data: st.DataObject) -> None:
    reading = seen(*(sample(name=f"c{n}", pending=n) for n in range(3)), missing=("gone",))
    (chunk,) = sent(ReadingEncoder("me", WHOLE_EVERY).reading(reading, ASKED, HERE, now(0.0)))
    header, *lines, rest = chunk.split(b"\n")
    values = st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=3)
    for _ in range(data.draw(st.integers(1, 4))):
        added = msgspec.json.encode({"t": data.draw(st.sampled_from(["later", "x"])), "value": data.draw(values)})
        lines.insert(data.draw(st.integers(0, len(lines))), added)
    position = data.draw(st.integers(0, len(lines) - 1))
    lines[position] = msgspec.json.encode(msgspec.json.decode(lines[position]) | {"added": data.draw(values)})
    header = msgspec.json.encode(msgspec.json.decode(header) | {"added": data.draw(values)})
    assert_same(reading, decode(BroadcastDecoder(LOOK.name), [b"\n".join((header, *lines, rest))]))
