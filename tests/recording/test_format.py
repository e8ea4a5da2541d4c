"""What is recorded comes back as it was, in few bytes, within bounds; and every line that cannot be read is named."""

from __future__ import annotations

import gzip
import io
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.config.settings import Settings
from nats_backpressure.core.model import ConsumerConfig, Sample, StreamLook
from nats_backpressure.core.signals.window import Quantiles
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.recording import decoder, encoder
from nats_backpressure.recording import hint_batch as hints
from nats_backpressure.recording.decoder import (
    Decoder,
    HintsDecoded,
    Observation,
    ReadingDecoded,
    SampleDecoded,
    StreamAbsenceDecoded,
)
from nats_backpressure.recording.encoder import IDLE_INTERVAL, SETTLE_SECONDS, Encoder
from nats_backpressure.recording.format import (
    CUT_OFF,
    LONGEST_LINE,
    BadLine,
    Line,
    MissingLine,
    UnreadableRecording,
    decode_line,
    encode_line,
    read_lines,
)
from nats_backpressure.recording.hint_batch import BATCH_SECONDS
from nats_backpressure.recording.recorder import RecordingFile, RecordingObserver
from nats_backpressure.runtime.observations import (
    AckSeen,
    ApiLimited,
    ConsumersReading,
    MaxDeliveries,
    Nak,
    StreamGone,
    Terminated,
)
from tests.fakes.observer import FakeJetStream
from tests.support.recordings import MONO, WALL, beginning, reading, written

LOOK = StreamLook("S", "t0", 1, 100, 100, ("a.>",), oldest_age=50.0)
KEY = ConsumerKey("S", "c")


def now(at: float) -> Now:
    return Now(MONO + at, WALL + at)


def sample(at: float = 0.0, name: str = "c", **fields: Any) -> Sample:
    whole = dict.fromkeys(("delivered_stream", "delivered_consumer", "floor_stream", "floor_consumer"), 5)
    whole |= dict.fromkeys(("pending", "inflight", "redelivered", "waiting"), 0)
    return Sample(key=ConsumerKey("S", name), created="t1", config=ConsumerConfig(), at=now(at), **(whole | fields))


def seen(*samples: Sample, look: StreamLook = LOOK, **fields: Any) -> ConsumersReading:
    whole = {"missing": (), "complete": True, "malformed": (), "took": 0.001, "epoch": 1}
    return ConsumersReading(look, samples, **(whole | fields))


def back(told: list[Line]) -> list[Observation]:
    """What lines come to, read as a file is."""
    found = []
    reader = Decoder()
    for n, line in read_lines(io.BytesIO(written([*beginning()[:1], *told]))):
        assert not isinstance(line, BadLine), (n, line)
        thing = reader.decode(line)
        assert not isinstance(thing, BadLine), (n, thing)
        if thing is not None:
            found.append(thing)
    return found


class TestWhatWasObservedComesBack:
    def test_a_sample_with_everything_it_tells(self) -> None:
        config = ConsumerConfig(filters=("a.b",), max_ack_pending=7, push=True, metadata=(("backpressure.mode", "x"),))
        full = sample(-0.25, pending=9, inflight=3, redelivered=2, waiting=1, since_delivery=1.5, since_ack=2.5)
        full = replace(full, config=config, paused=True, bound=False)
        look = StreamLook("S", "t0", 2, 90, 80, ("a.>",), True, None, 0.25, 12.5)
        (found,) = back(Encoder().encode_reading(seen(full, look=look), now(0)))
        assert found == ReadingDecoded(now(0), look, (full,), True)

    def test_what_did_not_move_is_as_it_was_but_for_the_clock(self) -> None:
        writer = Encoder()
        told = writer.encode_reading(seen(sample(0, since_ack=3.0)), now(0))
        told += writer.encode_reading(seen(sample(6, since_ack=9.02), look=replace(LOOK, oldest_age=55.98)), now(6))
        assert sum(len(encode_line(line)) for line in told[-1:]) < 70
        _, later = back(told)
        assert isinstance(later, ReadingDecoded)
        assert later.samples == (sample(6, since_ack=9.0),)
        assert later.look == replace(LOOK, oldest_age=56.0)

    def test_an_ack_that_leaves_the_counts_as_they_were_is_news(self) -> None:
        writer = Encoder()
        told = writer.encode_reading(seen(sample(0, since_ack=3.0)), now(0))
        told += writer.encode_reading(seen(sample(6, since_ack=0.5)), now(6))
        last = back(told)[-1]
        assert isinstance(last, ReadingDecoded) and last.samples[0].since_ack == 0.5

    def test_a_consumer_that_is_not_shown_is_left_out_until_it_is_again(self) -> None:
        writer = Encoder()
        told = writer.encode_reading(seen(sample(0), sample(0, "d")), now(0))
        told += writer.encode_reading(seen(sample(1), missing=("d",)), now(1))
        told += writer.encode_reading(seen(sample(2), missing=("d",)), now(2))
        told += writer.encode_reading(seen(sample(3), sample(3, "d")), now(3))
        found = [
            (o.hidden, set(o.unread), [s.key.consumer for s in o.samples])
            for o in back(told)
            if isinstance(o, ReadingDecoded)
        ]
        assert found == [(0, set(), ["c", "d"]), (1, {"d"}, ["c"]), (1, {"d"}, ["c"]), (0, set(), ["c", "d"])]

    def test_a_consumer_that_is_gone_is_so_beside_one_that_cannot_be_read(self) -> None:
        writer = Encoder()
        told = writer.encode_reading(seen(sample(0), sample(0, "d"), sample(0, "e")), now(0))
        told += writer.encode_reading(seen(sample(1), malformed=("d",)), now(1))
        found = [o for o in back(told) if isinstance(o, ReadingDecoded)][-1]
        assert (found.whole, set(found.unread), len(found.samples)) == (True, {"d"}, 1)

    def test_a_consumer_that_is_gone_costs_nothing_any_more(self) -> None:
        writer = Encoder()
        told = writer.encode_reading(seen(sample(0), sample(0, "d")), now(0)) + writer.encode_reading(
            seen(sample(1)), now(1)
        )
        after = writer.encode_reading(seen(sample(2)), now(2))
        assert len(after) == 1 and b"left" not in encode_line(after[0])
        assert [len(o.samples) for o in back(told + after) if isinstance(o, ReadingDecoded)] == [2, 1, 1]

    def test_another_incarnation_or_configuration_is_introduced_anew(self) -> None:
        writer = Encoder()
        other = replace(sample(1), config=ConsumerConfig(max_ack_pending=1))
        third = replace(sample(2), created="t2")
        again = replace(LOOK, created="t9")
        told = [*writer.encode_reading(seen(sample(0)), now(0)), *writer.encode_reading(seen(other), now(1))]
        told += [
            *writer.encode_reading(seen(third), now(2)),
            *writer.encode_reading(seen(sample(3), look=again), now(3)),
        ]
        found = [(o.look.created, o.samples) for o in back(told) if isinstance(o, ReadingDecoded)]
        assert found == [("t0", (sample(0),)), ("t0", (other,)), ("t0", (third,)), ("t9", (sample(3),))]

    def test_a_mirror_shows_the_subjects_of_its_origin(self) -> None:
        mirror = replace(LOOK, subjects=(), origin="ORIGIN")
        (found,) = back(Encoder().encode_reading(seen(sample(), look=mirror), now(0), ("b.>",)))
        assert isinstance(found, ReadingDecoded) and found.look == replace(mirror, subjects=("b.>",))

    def test_a_consumer_read_by_itself(self) -> None:
        writer = Encoder()
        told = writer.encode_reading(seen(sample(0), missing=("d",)), now(0))
        told += writer.encode_sample(sample(0.1, "d", pending=4))
        assert writer.encode_sample(sample(0.2, "d", pending=4)) == []
        assert back(told)[1] == SampleDecoded(now(0.1), sample(0.1, "d", pending=4))

    def test_a_stream_that_does_not_exist_any_more(self) -> None:
        writer = Encoder()
        told = (
            writer.encode_reading(seen(sample()), now(0))
            + writer.encode_missing("S", now(1))
            + writer.encode_missing("S", now(2))
        )
        told += writer.encode_reading(seen(sample(3)), now(3))
        assert back(told)[1:3] == [StreamAbsenceDecoded(now(1), "S"), StreamAbsenceDecoded(now(2), "S")]
        assert back(told)[3] == ReadingDecoded(now(3), LOOK, (sample(3),), True)

    @given(st.data())
    def test_every_reading_that_is_written_comes_back_to_the_millisecond(self, data: st.DataObject) -> None:
        writer, told, given_ = Encoder(), [], []
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
                told += lines_
                given_.append((at, look.last_seq, look.created, {s.key: s for s in samples}, whole))
        found = [o for o in back(told) if isinstance(o, ReadingDecoded)]
        assert len(found) == len(given_)
        for got, (at, last, created, samples_, whole) in zip(found, given_, strict=True):
            assert (got.look.last_seq, got.look.created, got.whole) == (last, created, whole)
            assert got.at == pytest.approx(at)
            assert {s.key: replace(s, at=at, since_ack=None) for s in got.samples} == {
                key: replace(s, since_ack=None) for key, s in samples_.items()
            }
            for s in got.samples:
                assert s.since_ack == pytest.approx(samples_[s.key].since_ack, abs=encoder.CLOCK_TOLERANCE)


class TestHowMuchIsWritten:
    def test_every_reading_while_something_moves_and_few_once_it_is_calm(self) -> None:
        writer = Encoder()
        at = [n / 10 for n in range(200)]
        told = [t for t in at if writer.encode_reading(seen(sample(t), look=replace(LOOK, oldest_age=50 + t)), now(t))]
        assert [t for t in told if t < SETTLE_SECONDS] == [t for t in at if t < SETTLE_SECONDS]
        calm = [t for t in told if t >= SETTLE_SECONDS]
        assert len(calm) == pytest.approx((20 - SETTLE_SECONDS) / IDLE_INTERVAL, abs=2)

    def test_a_day_of_a_thousand_idle_consumers_is_some_megabytes(self) -> None:
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

    def test_a_sample_of_a_busy_consumer_is_some_two_hundred_bytes(self) -> None:
        writer, told = Encoder(), []
        for n in range(100):
            look = replace(LOOK, last_seq=10**9 + n, messages=10**6, oldest_age=3600.123)
            busy = sample(
                n / 10 - 0.002, pending=1500 + n, inflight=600, delivered_stream=10**9, delivered_consumer=10**9
            )
            told += writer.encode_reading(
                seen(replace(busy, since_ack=0.012, since_delivery=0.01), look=look), now(n / 10)
            )
        assert len(written(told)) / 100 < 350


class TestHints:
    def heard(self, *hints: Any, every: float = 0.0) -> list[HintsDecoded]:
        writer = Encoder()
        told = writer.encode_reading(seen(sample()), now(0))
        at = 0.0
        for hint in hints:
            at += every
            told += writer.add_hint(hint, now(at))
        return [found for found in back(told + writer.flush()) if isinstance(found, HintsDecoded)]

    def test_they_are_summed_by_kind(self) -> None:
        (found,) = self.heard(Nak(KEY), Nak(KEY), MaxDeliveries(KEY), Terminated(KEY), Terminated(KEY))
        assert (found.key, found.naks, found.dropped, found.acks) == (KEY, 2, 3, ())

    def test_they_stand_before_the_reading_they_came_before(self) -> None:
        writer = Encoder()
        told = writer.encode_reading(seen(sample(0)), now(0)) + writer.add_hint(Nak(KEY), now(0.05))
        told += writer.encode_reading(seen(sample(0.1)), now(0.1))
        assert [type(found) for found in back(told)] == [ReadingDecoded, HintsDecoded, ReadingDecoded]

    def test_those_of_a_consumer_nobody_read_and_those_that_only_hasten_are_left_out(self) -> None:
        assert self.heard(Nak(ConsumerKey("S", "other")), Nak(ConsumerKey("T", "c")), ApiLimited()) == []

    def test_one_line_holds_a_second_of_them_at_most(self) -> None:
        found = self.heard(*[Nak(KEY)] * 50, every=0.1)
        assert [heard.naks for heard in found] == pytest.approx([BATCH_SECONDS * 10] * 5, abs=1)
        assert sum(heard.naks for heard in found) == 50

    def test_ten_thousand_acks_a_second_are_some_kilobytes(self) -> None:
        writer = Encoder()
        told = writer.encode_reading(seen(sample()), now(0))
        for n in range(10_000):
            told += writer.add_hint(AckSeen(KEY, 0.001 + n / 10_000, 1, now(0)), now(n / 10_000))
        assert len(written(writer.flush())) < 10_000

    def test_more_different_ack_times_than_a_line_holds_fill_several(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hints, "ACK_TIMES_LIMIT", 10)
        found = self.heard(*[AckSeen(KEY, 1.1**n, 1, now(0)) for n in range(25)])
        assert [len(heard.acks) for heard in found] == [10, 10, 5]

    @given(st.lists(st.floats(1e-6, 1e5), min_size=20, max_size=200))
    def test_quantiles_stay_within_two_percent(self, seconds: list[float]) -> None:
        """The stated error of the product page, of window and recording together."""
        again = Quantiles()
        for heard in self.heard(*[AckSeen(KEY, s, 1, now(0)) for s in seconds]):
            for value, deliveries, n in heard.acks:
                assert deliveries == 1
                for _ in range(n):
                    again.add(0.0, value)
        found = again.at(0.0, 0.5, 0.95)
        assert found is not None
        for share, value in zip((0.5, 0.95), found, strict=True):
            exact = sorted(seconds)[int(share * (len(seconds) - 1))]
            assert value == pytest.approx(exact, rel=0.02)


INTRODUCED = written([*beginning(), *reading(0.0)])


@pytest.mark.parametrize(
    ("line", "why"),
    [
        pytest.param(b"{", "not JSON", id="half a line"),
        pytest.param(b"\xff\xfe", "not JSON", id="no text"),
        pytest.param(b'{"x":' + b"[" * 100_000, "not JSON", id="nested without end"),
        pytest.param(b"[]", "Expected `object`", id="no object"),
        pytest.param(b"{}", "missing required field `t`", id="nothing"),
        pytest.param(b'{"t":"verdict"}', "'verdict'", id="another kind of line"),
        pytest.param(b'{"t":"read","s":0}', "missing required field `at`", id="a field is missing"),
        pytest.param(b'{"t":"read","s":0,"at":[1]}', "$.at", id="one clock only"),
        pytest.param(b'{"t":"read","s":0,"at":[1e999,1]}', "out of range", id="no number of seconds"),
        pytest.param(b'{"t":"sample","c":1,"pending":-1}', "$.pending", id="below zero"),
        pytest.param(b'{"t":"sample","c":1,"pending":1.5}', "$.pending", id="half a message"),
        pytest.param(b'{"t":"sample","c":7}', "consumer 7 has no line before this one", id="an unknown consumer"),
        pytest.param(
            b'{"t":"hints","c":7,"at":[1000,1]}', "consumer 7 has no line before this one", id="hints of nobody"
        ),
        pytest.param(
            b'{"t":"consumer","c":7,"s":9,"name":"x","created":""}', "stream 9 has no line", id="in no stream"
        ),
        pytest.param(
            b'{"t":"read","s":9,"at":[1000,1]}', "stream 9 has no line before this one", id="an unknown stream"
        ),
        pytest.param(b'{"t":"read","s":0,"at":[990,1]}', "goes back in time by 10.0 s", id="back in time"),
        pytest.param(b'{"t":"read","s":0,"at":[1e10,1]}', "days later than the line before", id="centuries ahead"),
        pytest.param(b" " * (2 * LONGEST_LINE) + b"{}", "longer than 1,048,576 bytes", id="too long"),
    ],
)
def test_a_line_that_cannot_be_read_is_told_with_its_number_and_passed_over(line: bytes, why: str) -> None:
    reader, told, good = Decoder(), [], 0
    for n, found in read_lines(io.BytesIO(INTRODUCED + line + b"\n" + written(reading(1.0)))):
        taken = found if isinstance(found, BadLine) else reader.decode(found)
        if isinstance(taken, BadLine):
            told.append((n, taken.why))
        good += isinstance(taken, ReadingDecoded)
    ((n, said),) = told
    assert n == 6 and why in said
    assert good == 2


def test_a_last_line_that_is_cut_off_is_told_as_such() -> None:
    for cut in range(len(INTRODUCED) - 40, len(INTRODUCED) - 1):
        *_, (n, last) = read_lines(io.BytesIO(INTRODUCED[:cut]))
        assert (n, last) == (5, CUT_OFF)
    whole = list(read_lines(io.BytesIO(INTRODUCED[:-1])))
    assert len(whole) == 5 and not any(isinstance(line, BadLine) for _, line in whole)


def test_a_compressed_recording_that_is_cut_off_is_read_to_there() -> None:
    data = gzip.compress(INTRODUCED * 50)
    with gzip.open(io.BytesIO(data[: len(data) // 2])) as file:
        *before, (_, last) = read_lines(file)  # type: ignore[arg-type]  # it reads as a file does
    assert last is CUT_OFF
    assert not any(isinstance(line, BadLine) for _, line in before)


def test_what_is_no_compressed_file_is_no_recording() -> None:
    with (
        gzip.open(io.BytesIO(INTRODUCED)) as file,
        pytest.raises(UnreadableRecording, match="line 1: cannot be read any further"),
    ):
        list(read_lines(file))  # type: ignore[arg-type]  # it reads as a file does


def test_a_format_of_the_future_is_refused_with_both_numbers() -> None:
    with pytest.raises(UnreadableRecording, match=r"written in format 2 by version 0\.0\.0; this one reads 1"):
        Decoder().decode(replace(beginning()[0], format=2))


def test_a_file_without_a_beginning_is_no_recording() -> None:
    with pytest.raises(UnreadableRecording, match="its first line is not a `recording` line"):
        Decoder().decode(reading(0.0)[1])


def test_a_field_of_the_future_is_nothing() -> None:
    assert decode_line(b'{"t":"sample","c":1,"mood":"good"}') == decode_line(b'{"t":"sample","c":1}')


def test_a_part_recorded_after_a_reboot_follows_the_one_before() -> None:
    reader = Decoder()
    for line in (*beginning(), *reading(50.0)):
        reader.decode(line)
    begun, stream, consumer = beginning()
    rebooted = replace(begun, at=(3.0, WALL + 80.0))
    sampled, done = reading(0.0)
    for line in (rebooted, stream, consumer, sampled):
        assert reader.decode(line) is None
    found = reader.decode(replace(done, at=(4.0, WALL + 81.0)))
    assert isinstance(found, ReadingDecoded) and found.at == Now(MONO + 81.0, WALL + 81.0)


def test_numbers_of_a_stream_that_does_not_exist_mean_nothing_any_more() -> None:
    reader = Decoder()
    for line in (*beginning(), *reading(0.0), MissingLine("ORDERS", (MONO + 1, WALL + 1))):
        reader.decode(line)
    sampled, done = reading(2.0)
    assert reader.decode(sampled) == BadLine("consumer 1 has no line before this one")
    assert reader.decode(done) == BadLine("stream 0 has no line before this one")


def test_who_leaves_makes_room_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "CONSUMERS_LIMIT", 1)
    monkeypatch.setattr(decoder, "CONSUMERS_LIMIT", 1)
    writer, told = Encoder(), []
    told += writer.encode_reading(seen(sample(0, "a")), now(0)) + writer.encode_reading(seen(), now(1))
    told += writer.encode_reading(seen(sample(2, "b")), now(2)) + writer.encode_missing("S", now(3))
    told += writer.encode_reading(seen(sample(4, "c")), now(4))
    told += writer.encode_reading(seen(sample(5, "d"), look=replace(LOOK, created="t9")), now(5))
    assert writer.left_out == 0
    shown = [[s.key.consumer for s in o.samples] for o in back(told) if isinstance(o, ReadingDecoded)]
    assert shown == [["a"], [], ["b"], ["c"], ["d"]]


def test_more_consumers_than_can_be_kept_in_mind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "CONSUMERS_LIMIT", 2)
    writer = Encoder()
    told = writer.encode_reading(seen(*(sample(0, name) for name in "abcd")), now(0))
    assert writer.left_out == 2
    (found,) = back(told)
    assert isinstance(found, ReadingDecoded) and [s.key.consumer for s in found.samples] == ["a", "b"]
    monkeypatch.setattr(decoder, "CONSUMERS_LIMIT", 1)
    with pytest.raises(UnreadableRecording, match="more than 1 streams or consumers at a time"):
        back(told)


class TestTheRecorder:
    """What stands between the observer and the service: it passes everything on, and never stands in the way."""

    @pytest.fixture
    def world(self) -> FakeJetStream:
        world = FakeJetStream()
        world.add_stream("S", ("a",))
        world.add_consumer(KEY)
        return world

    @staticmethod
    def recorder(world: FakeJetStream, file: Path, limit: int = 1 << 20) -> tuple[RecordingObserver, list[str]]:
        counted: list[str] = []
        return RecordingObserver(world, world.clock, RecordingFile(file, limit), Settings(), counted.append), counted

    @staticmethod
    def observed(file: Path) -> list[Observation]:
        reader = Decoder()
        with file.open("rb") as data:
            taken = [line if isinstance(line, BadLine) else reader.decode(line) for _, line in read_lines(data)]
        assert not any(isinstance(thing, BadLine) for thing in taken)
        return [thing for thing in taken if thing is not None and not isinstance(thing, BadLine)]

    async def test_what_is_read_and_heard_is_passed_on_and_kept(self, world: FakeJetStream, tmp_path: Path) -> None:
        recorder_, counted = self.recorder(world, tmp_path / "r")
        heard: list[object] = []
        assert await recorder_.streams() == await world.streams()
        assert await recorder_.consumers("S") == await world.consumers("S")
        recorder_.recording_hints(heard.append)(Nak(KEY))
        assert await recorder_.consumer(KEY) == await world.consumer(KEY)
        world.delete_stream("S")
        with pytest.raises(StreamGone):
            await recorder_.consumers("S")
        recorder_.close()
        assert heard == [Nak(KEY)] and counted == []
        assert [type(thing) for thing in self.observed(tmp_path / "r")] == [ReadingDecoded, StreamAbsenceDecoded]

    async def test_a_full_file_is_put_aside_and_each_can_be_read_alone(
        self, world: FakeJetStream, tmp_path: Path
    ) -> None:
        recorder_, _ = self.recorder(world, tmp_path / "r", limit=3000)
        for _ in range(200):
            world.publish("S", "a")
            world.clock.advance(0.1)
            await recorder_.consumers("S")
        recorder_.close()
        both = tmp_path / "r.1", tmp_path / "r"
        assert all(file.stat().st_size < 3500 for file in both)
        assert not (tmp_path / "r.2").exists()
        parts = [self.observed(file) for file in both]
        assert all(isinstance(thing, ReadingDecoded) and thing.samples for part in parts for thing in part)
        (tmp_path / "all").write_bytes(b"".join(file.read_bytes() for file in both))
        assert self.observed(tmp_path / "all") == parts[0] + parts[1]

    async def test_a_disk_that_is_full_ends_the_recording_and_nothing_else(
        self, world: FakeJetStream, tmp_path: Path
    ) -> None:
        recorder_, counted = self.recorder(world, Path("/dev/full"))
        for _ in range(30):
            world.clock.advance(0.1)
            assert await recorder_.consumers("S") == await world.consumers("S")
        recorder_.close()
        assert len(counted) > 10 and set(counted) == {"recording"}

    async def test_what_a_file_holds_already_is_kept(self, world: FakeJetStream, tmp_path: Path) -> None:
        file = tmp_path / "r"
        for _ in range(2):
            recorder_, _ = self.recorder(world, file)
            await recorder_.consumers("S")
            recorder_.close()
            with file.open("ab") as data:
                data.write(b'{"t":"re')
        with file.open("rb") as data:
            kinds = [type(line).__name__ for _, line in read_lines(data)]
        once = ["HeaderLine", "StreamLine", "ConsumerLine", "SampleLine", "ReadLine", "BadLine"]
        assert kinds == once * 2

    async def test_consumers_beyond_the_limit_are_counted(
        self, world: FakeJetStream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(encoder, "CONSUMERS_LIMIT", 0)
        recorder_, counted = self.recorder(world, tmp_path / "r")
        await recorder_.consumers("S")
        recorder_.close()
        assert counted == ["recording"]
