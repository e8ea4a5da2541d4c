"""The recorder passes every reading on and writes it, and never disturbs the service."""

from __future__ import annotations

from pathlib import Path

import pytest

from nats_backpressure.config.settings import Settings
from nats_backpressure.recording import encoder
from nats_backpressure.recording.decoder import (
    Decoder,
    Observation,
    ReadingDecoded,
    StreamAbsenceDecoded,
)
from nats_backpressure.recording.format import (
    BadLine,
    read_lines,
)
from nats_backpressure.recording.recorder import RecordingFile, RecordingObserver
from nats_backpressure.runtime.observations import (
    Nak,
    StreamGone,
)
from tests.fakes.observer import FakeJetStream
from tests.recording.observations import KEY


class TestRecorder:
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
            decoded = [line if isinstance(line, BadLine) else reader.decode(line) for _, line in read_lines(data)]
        assert not any(isinstance(thing, BadLine) for thing in decoded)
        return [thing for thing in decoded if thing is not None and not isinstance(thing, BadLine)]

    async def test_readings_and_hints_are_passed_on_and_recorded(self, world: FakeJetStream, tmp_path: Path) -> None:
        recorder_, counted = self.recorder(world, tmp_path / "r")
        hints: list[object] = []
        assert await recorder_.streams() == await world.streams()
        assert await recorder_.consumers("S") == await world.consumers("S")
        recorder_.recording_hints(hints.append)(Nak(KEY))
        assert await recorder_.consumer(KEY) == await world.consumer(KEY)
        world.delete_stream("S")
        with pytest.raises(StreamGone):
            await recorder_.consumers("S")
        recorder_.close()
        assert hints == [Nak(KEY)] and counted == []
        assert [type(thing) for thing in self.observed(tmp_path / "r")] == [ReadingDecoded, StreamAbsenceDecoded]

    async def test_a_full_file_is_renamed_and_each_file_can_be_read_alone(
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

    async def test_a_full_disk_ends_only_the_recording(self, world: FakeJetStream, tmp_path: Path) -> None:
        recorder_, counted = self.recorder(world, Path("/dev/full"))
        for _ in range(30):
            world.clock.advance(0.1)
            assert await recorder_.consumers("S") == await world.consumers("S")
        recorder_.close()
        assert len(counted) > 10 and set(counted) == {"recording"}

    async def test_a_file_that_cannot_be_renamed_ends_it_and_nothing_says_that_it_was_kept(
        self, world: FakeJetStream, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "r.1" / "full").mkdir(parents=True)
        recorder_, counted = self.recorder(world, tmp_path / "r", limit=1000)
        for _ in range(60):
            world.publish("S", "a")
            world.clock.advance(0.1)
            await recorder_.consumers("S")
        recorder_.close()
        said = capsys.readouterr().out
        assert said.count("recording.ended") == 1 and "recording.rotated" not in said and counted

    async def test_an_existing_file_is_continued(self, world: FakeJetStream, tmp_path: Path) -> None:
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
