"""Bad lines are reported with their number and skipped; parts follow each other in time; memory is limited."""

from __future__ import annotations

import io

import pytest
from msgspec.structs import replace

from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.recording import decoder, encoder
from nats_backpressure.recording.decoder import (
    Decoder,
    ReadingDecoded,
)
from nats_backpressure.recording.encoder import Encoder
from nats_backpressure.recording.format import (
    LONGEST_LINE,
    BadLine,
    MissingLine,
    UnreadableRecording,
    read_lines,
)
from tests.recording.observations import back, now, sample, seen
from tests.support.recordings import MONO, WALL, beginning, reading, written

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
def test_an_unreadable_line_is_reported_with_its_number_and_skipped(line: bytes, why: str) -> None:
    reader, reported, good = Decoder(), [], 0
    for n, line_ in read_lines(io.BytesIO(INTRODUCED + line + b"\n" + written(reading(1.0)))):
        decoded = line_ if isinstance(line_, BadLine) else reader.decode(line_)
        if isinstance(decoded, BadLine):
            reported.append((n, decoded.why))
        good += isinstance(decoded, ReadingDecoded)
    ((n, text),) = reported
    assert n == 6 and why in text
    assert good == 2


def test_a_newer_format_is_rejected_with_both_numbers() -> None:
    with pytest.raises(UnreadableRecording, match=r"written in format 2 by version 0\.0\.0; this one reads 1"):
        Decoder().decode(replace(beginning()[0], format=2))


def test_a_file_without_a_header_is_not_a_recording() -> None:
    with pytest.raises(UnreadableRecording, match="its first line is not a `recording` line"):
        Decoder().decode(reading(0.0)[1])


def test_a_part_recorded_after_a_reboot_follows_the_previous_part() -> None:
    reader = Decoder()
    for line in (*beginning(), *reading(50.0)):
        reader.decode(line)
    header, stream, consumer = beginning()
    rebooted = replace(header, at=(3.0, WALL + 80.0))
    sampled, done = reading(0.0)
    for line in (rebooted, stream, consumer, sampled):
        assert reader.decode(line) is None
    line_ = reader.decode(replace(done, at=(4.0, WALL + 81.0)))
    assert isinstance(line_, ReadingDecoded) and line_.at == Now(MONO + 81.0, WALL + 81.0)


def test_the_numbers_of_a_missing_stream_are_invalid() -> None:
    reader = Decoder()
    for line in (*beginning(), *reading(0.0), MissingLine("ORDERS", (MONO + 1, WALL + 1))):
        reader.decode(line)
    sampled, done = reading(2.0)
    assert reader.decode(sampled) == BadLine("consumer 1 has no line before this one")
    assert reader.decode(done) == BadLine("stream 0 has no line before this one")


def test_too_many_consumers_are_left_out_by_the_writer_and_stop_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "CONSUMERS_LIMIT", 2)
    writer = Encoder()
    reported = writer.encode_reading(seen(*(sample(0, name) for name in "abcd")), now(0))
    assert writer.left_out == 2
    (line_,) = back(reported)
    assert isinstance(line_, ReadingDecoded) and [s.key.consumer for s in line_.samples] == ["a", "b"]
    monkeypatch.setattr(decoder, "CONSUMERS_LIMIT", 1)
    with pytest.raises(UnreadableRecording, match="more than 1 streams or consumers at a time"):
        back(reported)
