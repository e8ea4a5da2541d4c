"""Lines are read one at a time, also from files that are cut off, compressed or of a newer version."""

from __future__ import annotations

import gzip
import io

import pytest

from nats_backpressure.recording.format import (
    CUT_OFF,
    BadLine,
    UnreadableRecording,
    decode_line,
    read_lines,
)
from tests.support.recordings import beginning, reading, written

INTRODUCED = written([*beginning(), *reading(0.0)])


def test_a_last_line_that_is_cut_off_is_reported_as_cut_off() -> None:
    for cut in range(len(INTRODUCED) - 40, len(INTRODUCED) - 1):
        *_, (n, last) = read_lines(io.BytesIO(INTRODUCED[:cut]))
        assert (n, last) == (5, CUT_OFF)
    whole = list(read_lines(io.BytesIO(INTRODUCED[:-1])))
    assert len(whole) == 5 and not any(isinstance(line, BadLine) for _, line in whole)


def test_a_compressed_recording_is_read_to_where_it_is_cut_off() -> None:
    data = gzip.compress(INTRODUCED * 50)
    with gzip.open(io.BytesIO(data[: len(data) // 2])) as file:
        *before, (_, last) = read_lines(file)  # type: ignore[arg-type]  # it reads as a file does
    assert last is CUT_OFF
    assert not any(isinstance(line, BadLine) for _, line in before)


def test_a_gz_file_that_is_not_compressed_is_not_a_recording() -> None:
    with (
        gzip.open(io.BytesIO(INTRODUCED)) as file,
        pytest.raises(UnreadableRecording, match="line 1: cannot be read any further"),
    ):
        list(read_lines(file))  # type: ignore[arg-type]  # it reads as a file does


def test_unknown_fields_are_ignored() -> None:
    assert decode_line(b'{"t":"sample","c":1,"mood":"good"}') == decode_line(b'{"t":"sample","c":1}')
