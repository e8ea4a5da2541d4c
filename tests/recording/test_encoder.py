"""What the encoder writes and the decoder reads back: equal observations in few bytes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.core.model.samples import ConsumerConfig, StreamLook
from nats_backpressure.recording import decoder, encoder
from nats_backpressure.recording.decoder import (
    ReadingDecoded,
    SampleDecoded,
    StreamAbsenceDecoded,
)
from nats_backpressure.recording.encoder import IDLE_INTERVAL, SETTLE_SECONDS, Encoder
from nats_backpressure.recording.format import (
    encode_line,
)
from tests.recording.observations import LOOK, back, now, sample, seen
from tests.support.recordings import written


class TestEncodedReadings:
    def test_every_field_of_a_sample_is_recorded(self) -> None:
        config = ConsumerConfig(filters=("a.b",), max_ack_pending=7, push=True, metadata=(("backpressure.mode", "x"),))
        full = sample(-0.25, pending=9, inflight=3, redelivered=2, waiting=1, since_delivery=1.5, since_ack=2.5)
        full = replace(full, config=config, paused=True, bound=False)
        look = StreamLook("S", "t0", 2, 90, 80, ("a.>",), True, None, 0.25, 12.5)
        (observations,) = back(Encoder().encode_reading(seen(full, look=look), now(0)))
        assert observations == ReadingDecoded(now(0), look, (full,), True)

    def test_an_unchanged_consumer_only_ages(self) -> None:
        writer = Encoder()
        lines = writer.encode_reading(seen(sample(0, since_ack=3.0)), now(0))
        lines += writer.encode_reading(seen(sample(6, since_ack=9.02), look=replace(LOOK, oldest_age=55.98)), now(6))
        assert sum(len(encode_line(line)) for line in lines[-1:]) < 70
        _, later = back(lines)
        assert isinstance(later, ReadingDecoded)
        assert later.samples == (sample(6, since_ack=9.0),)
        assert later.look == replace(LOOK, oldest_age=56.0)

    def test_an_ack_without_changed_counts_is_recorded(self) -> None:
        writer = Encoder()
        lines = writer.encode_reading(seen(sample(0, since_ack=3.0)), now(0))
        lines += writer.encode_reading(seen(sample(6, since_ack=0.5)), now(6))
        last = back(lines)[-1]
        assert isinstance(last, ReadingDecoded) and last.samples[0].since_ack == 0.5

    def test_a_consumer_that_is_not_shown_is_missing_until_it_is_shown_again(self) -> None:
        writer = Encoder()
        lines = writer.encode_reading(seen(sample(0), sample(0, "d")), now(0))
        lines += writer.encode_reading(seen(sample(1), missing=("d",)), now(1))
        lines += writer.encode_reading(seen(sample(2), missing=("d",)), now(2))
        lines += writer.encode_reading(seen(sample(3), sample(3, "d")), now(3))
        observations = [
            (o.hidden, set(o.unread), [s.key.consumer for s in o.samples])
            for o in back(lines)
            if isinstance(o, ReadingDecoded)
        ]
        assert observations == [(0, set(), ["c", "d"]), (1, {"d"}, ["c"]), (1, {"d"}, ["c"]), (0, set(), ["c", "d"])]

    def test_a_removed_consumer_differs_from_an_unreadable_one(self) -> None:
        writer = Encoder()
        lines = writer.encode_reading(seen(sample(0), sample(0, "d"), sample(0, "e")), now(0))
        lines += writer.encode_reading(seen(sample(1), malformed=("d",)), now(1))
        observations = [o for o in back(lines) if isinstance(o, ReadingDecoded)][-1]
        assert (observations.whole, set(observations.unread), len(observations.samples)) == (True, {"d"}, 1)

    def test_a_removed_consumer_is_written_once(self) -> None:
        writer = Encoder()
        lines = writer.encode_reading(seen(sample(0), sample(0, "d")), now(0)) + writer.encode_reading(
            seen(sample(1)), now(1)
        )
        after = writer.encode_reading(seen(sample(2)), now(2))
        assert len(after) == 1 and b"left" not in encode_line(after[0])
        assert [len(o.samples) for o in back(lines + after) if isinstance(o, ReadingDecoded)] == [2, 1, 1]

    def test_a_recreated_or_reconfigured_consumer_or_stream_is_introduced_again(self) -> None:
        writer = Encoder()
        other = replace(sample(1), config=ConsumerConfig(max_ack_pending=1))
        third = replace(sample(2), created="t2")
        again = replace(LOOK, created="t9")
        lines = [*writer.encode_reading(seen(sample(0)), now(0)), *writer.encode_reading(seen(other), now(1))]
        lines += [
            *writer.encode_reading(seen(third), now(2)),
            *writer.encode_reading(seen(sample(3), look=again), now(3)),
        ]
        observations = [(o.look.created, o.samples) for o in back(lines) if isinstance(o, ReadingDecoded)]
        assert observations == [("t0", (sample(0),)), ("t0", (other,)), ("t0", (third,)), ("t9", (sample(3),))]

    def test_a_mirror_shows_the_subjects_of_its_origin(self) -> None:
        mirror = replace(LOOK, subjects=(), origin="ORIGIN")
        (observations,) = back(Encoder().encode_reading(seen(sample(), look=mirror), now(0), ("b.>",)))
        assert isinstance(observations, ReadingDecoded) and observations.look == replace(mirror, subjects=("b.>",))

    def test_a_consumer_read_alone_is_recorded(self) -> None:
        writer = Encoder()
        lines = writer.encode_reading(seen(sample(0), missing=("d",)), now(0))
        lines += writer.encode_sample(sample(0.1, "d", pending=4))
        assert writer.encode_sample(sample(0.2, "d", pending=4)) == []
        assert back(lines)[1] == SampleDecoded(now(0.1), sample(0.1, "d", pending=4))

    def test_a_missing_stream_is_recorded(self) -> None:
        writer = Encoder()
        lines = (
            writer.encode_reading(seen(sample()), now(0))
            + writer.encode_missing("S", now(1))
            + writer.encode_missing("S", now(2))
        )
        lines += writer.encode_reading(seen(sample(3)), now(3))
        assert back(lines)[1:3] == [StreamAbsenceDecoded(now(1), "S"), StreamAbsenceDecoded(now(2), "S")]
        assert back(lines)[3] == ReadingDecoded(now(3), LOOK, (sample(3),), True)

    @given(st.data())
    def test_written_readings_are_decoded_equal_to_the_millisecond(self, data: st.DataObject) -> None:
        writer, lines, given_ = Encoder(), [], []
        counts = st.integers(0, 3)
        for step in itertools.accumulate(data.draw(st.lists(st.sampled_from([0.1, 1.0, 10.0]), max_size=12))):
            at = now(step)
            names = data.draw(st.lists(st.sampled_from("abc"), unique=True))
            samples = [
                replace(sample(name=n), at=at, pending=data.draw(counts), since_ack=data.draw(st.none() | st.just(0.5)))
                for n in sorted(names)
            ]
            look = replace(LOOK, last_seq=100 + data.draw(counts), created=data.draw(st.sampled_from(["t0", "t1"])))
            whole = data.draw(st.booleans())
            if lines_ := writer.encode_reading(seen(*samples, look=look, complete=whole), at):
                lines += lines_
                given_.append((at, look.last_seq, look.created, {s.key: s for s in samples}, whole))
        observations = [o for o in back(lines) if isinstance(o, ReadingDecoded)]
        assert len(observations) == len(given_)
        for got, (at, last, created, samples_, whole) in zip(observations, given_, strict=True):
            assert (got.look.last_seq, got.look.created, got.whole) == (last, created, whole)
            assert got.at == pytest.approx(at)
            assert {s.key: replace(s, at=at, since_ack=None) for s in got.samples} == {
                key: replace(s, since_ack=None) for key, s in samples_.items()
            }
            for s in got.samples:
                assert s.since_ack == pytest.approx(samples_[s.key].since_ack, abs=encoder.CLOCK_TOLERANCE)


class TestRecordingSize:
    def test_every_reading_is_written_during_changes_and_few_when_idle(self) -> None:
        writer = Encoder()
        at = [n / 10 for n in range(200)]
        lines = [t for t in at if writer.encode_reading(seen(sample(t), look=replace(LOOK, oldest_age=50 + t)), now(t))]
        assert [t for t in lines if t < SETTLE_SECONDS] == [t for t in at if t < SETTLE_SECONDS]
        calm = [t for t in lines if t >= SETTLE_SECONDS]
        assert len(calm) == pytest.approx((20 - SETTLE_SECONDS) / IDLE_INTERVAL, abs=2)

    def test_a_thousand_idle_consumers_need_less_than_10_mb_a_day(self) -> None:
        writer, size = Encoder(), 0
        readings = 100
        for n in range(readings):
            samples = [sample(n / 10, f"consumer-{i}") for i in range(1000)]
            look = replace(LOOK, oldest_age=50 + n / 10)
            size += len(written(writer.encode_reading(seen(*samples, look=look), now(n / 10)))) * (
                n / 10 >= SETTLE_SECONDS
            )
        day = size / (readings / 10 - SETTLE_SECONDS) * 86_400
        assert day < 10_000_000

    def test_a_sample_of_a_busy_consumer_needs_less_than_350_bytes(self) -> None:
        writer, lines = Encoder(), []
        for n in range(100):
            look = replace(LOOK, last_seq=10**9 + n, messages=10**6, oldest_age=3600.123)
            busy = sample(
                n / 10 - 0.002, pending=1500 + n, inflight=600, delivered_stream=10**9, delivered_consumer=10**9
            )
            lines += writer.encode_reading(
                seen(replace(busy, since_ack=0.012, since_delivery=0.01), look=look), now(n / 10)
            )
        assert len(written(lines)) / 100 < 350


def test_removed_consumers_do_not_count_towards_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "CONSUMERS_LIMIT", 1)
    monkeypatch.setattr(decoder, "CONSUMERS_LIMIT", 1)
    writer, lines = Encoder(), []
    lines += writer.encode_reading(seen(sample(0, "a")), now(0)) + writer.encode_reading(seen(), now(1))
    lines += writer.encode_reading(seen(sample(2, "b")), now(2)) + writer.encode_missing("S", now(3))
    lines += writer.encode_reading(seen(sample(4, "c")), now(4))
    lines += writer.encode_reading(seen(sample(5, "d"), look=replace(LOOK, created="t9")), now(5))
    assert writer.left_out == 0
    shown = [[s.key.consumer for s in o.samples] for o in back(lines) if isinstance(o, ReadingDecoded)]
    assert shown == [["a"], [], ["b"], ["c"], ["d"]]
