"""Listening: what simulated replicas send each other is recorded, by something that sends nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from nats_backpressure.recording.broadcast_listener import SILENT_FOR, BroadcastListener
from nats_backpressure.recording.decoder import Decoder, HintsDecoded, ReadingDecoded
from nats_backpressure.recording.format import BadLine, read_lines
from nats_backpressure.recording.recorder import Recorder, RecordingFile
from nats_backpressure.runtime.observations import Nak
from tests.fakes.clock import FakeClock
from tests.fakes.replica_channel import FakeBus
from tests.simulations.replicas import KEY, SETTINGS, Replicas


class Listening:
    def __init__(self, clock: FakeClock, bus: FakeBus, file: Path) -> None:
        self.stop, self.silences = asyncio.Event(), 0
        self.recorder = Recorder(clock, RecordingFile(file, 1 << 20), SETTINGS, lambda what: None)
        self.listener = BroadcastListener(clock, bus.channel("listener"), self.recorder, self._on_silence)

    def _on_silence(self) -> None:
        self.silences += 1


@asynccontextmanager
async def listening(clock: FakeClock, bus: FakeBus, file: Path) -> AsyncIterator[Listening]:
    one = Listening(clock, bus, file)
    task = asyncio.create_task(one.listener.run(one.stop))
    yield one
    one.stop.set()
    await clock.finish(task)


def readings(file: Path) -> list[ReadingDecoded]:
    decoder = Decoder()
    with file.open("rb") as data:
        decoded = [line if isinstance(line, BadLine) else decoder.decode(line) for _, line in read_lines(data)]
    assert not any(isinstance(one, BadLine) for one in decoded)
    return [one for one in decoded if isinstance(one, ReadingDecoded)]


async def test_what_is_read_is_recorded_in_the_order_of_time_and_nothing_is_sent(tmp_path: Path) -> None:
    replicas = Replicas()
    replicas.bus.record = True
    async with replicas.running(3), listening(replicas.clock, replicas.bus, tmp_path / "r") as one:
        await replicas.clock.run(10.0)
        await replicas.overload()
        await replicas.clock.run(5.0)
        reader = next(r for r in replicas.all.values() if r.service.poller.shared.reads(KEY.stream))
        await reader.kill()
        await replicas.clock.run(5.0)
        await replicas.calm()
        await replicas.clock.run(5.0)
        assert "listener" not in {sender for sender, _, _ in replicas.bus.sent}
    recorded = readings(tmp_path / "r")
    assert len(recorded) == one.listener.readings > 100 and one.silences == 0
    times = [reading.at.mono for reading in recorded]
    assert times == sorted(times)
    pending = [sample.pending for reading in recorded for sample in reading.samples if sample.key == KEY]
    assert pending[0] == pending[-1] == 0 and max(pending) == 60


async def test_it_says_from_when_on_it_has_all_of_each_stream(tmp_path: Path) -> None:
    """Begun among replicas that run: it waits for a message that shows all, and no longer than until the next."""
    replicas = Replicas()
    async with replicas.running(2):
        await replicas.clock.run(7.3)
        began = replicas.clock.now().mono
        async with listening(replicas.clock, replicas.bus, tmp_path / "r") as one:
            await replicas.clock.run(SILENT_FOR)
    (first, *_) = readings(tmp_path / "r")
    assert 0 < one.listener.complete_after <= SILENT_FOR / 2 + 0.5
    assert abs(first.at.mono - began - one.listener.complete_after) < 0.5


async def test_the_hints_that_replicas_share_are_recorded_once(tmp_path: Path) -> None:
    replicas = Replicas()
    async with replicas.running(2), listening(replicas.clock, replicas.bus, tmp_path / "r"):
        await replicas.clock.run(10.0)
        await replicas.overload()
        for _ in range(40):
            replicas.hint(Nak(KEY))
            await replicas.clock.run(0.05)
        await replicas.clock.run(1.0)
    decoder = Decoder()
    with (tmp_path / "r").open("rb") as data:
        decoded = [decoder.decode(line) for _, line in read_lines(data) if not isinstance(line, BadLine)]
    assert sum(one.naks for one in decoded if isinstance(one, HintsDecoded)) == 40


async def test_silence_is_reported_once_until_something_comes(tmp_path: Path) -> None:
    replicas = Replicas()
    async with listening(replicas.clock, replicas.bus, tmp_path / "r") as one:
        await replicas.clock.run(2 * SILENT_FOR)
        assert one.silences == 1
        async with replicas.running(1):
            await replicas.clock.run(2 * SILENT_FOR)
            assert one.silences == 1, "one alone sends nothing"
            replicas.add("r1").start()
            await replicas.clock.run(2 * SILENT_FOR)
            assert one.listener.readings > 0
        await replicas.clock.run(2 * SILENT_FOR)
        assert one.silences == 2


async def test_a_full_disk_ends_it() -> None:
    replicas = Replicas()
    one = Listening(replicas.clock, replicas.bus, Path("/dev/full"))
    task = asyncio.create_task(one.listener.run(one.stop))
    async with replicas.running(2):
        await replicas.clock.until(task.done, "the end")
    assert one.recorder.failed
