"""Records what is observed: writes every reading to a file, those of an Observer and those of other replicas.

A full or failed disk ends the recording, never the service. A write blocks the loop for as long as the system takes to
copy a few kilobytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import structlog

from nats_backpressure import __version__
from nats_backpressure.config.settings import Settings
from nats_backpressure.core.model.samples import Sample
from nats_backpressure.core.watch_filter import WatchEntry, subjects_by_stream
from nats_backpressure.policy.precedence import Sources
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.recording.encoder import Encoder
from nats_backpressure.recording.format import CONSUMERS_LIMIT, FORMAT, HeaderLine, Line, encode_line
from nats_backpressure.recording.policies import PolicyLineWriter, RecordedSettings
from nats_backpressure.runtime.observations import ConsumersReading, Hint, Received, StreamGone, StreamsReading
from nats_backpressure.runtime.ports import Clock, Observer

log = structlog.get_logger()

FLUSH_INTERVAL = 1.0
"""Seconds of recording that a killed process can lose."""
BUFFER = 1 << 16
"""Bytes of the write buffer."""


class RecordingFile:
    """A file of at most `limit` bytes (and one reading more), and the full one before it: FILE and FILE.1.

    An existing FILE is continued. Raises OSError.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path, self.limit = path, limit
        self._file = self._open()
        if self.size and not _ends_with_newline(path):
            self._file.write(b"\n")

    @property
    def size(self) -> int:
        return self._file.tell()

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def rotate(self) -> None:
        """Rename the full file to FILE.1, which replaces an older one, and start a new file."""
        self._file.close()
        self.path.replace(f"{self.path}.1")
        self._file = self._open()

    def close(self) -> None:
        self._file.close()

    def _open(self) -> BinaryIO:
        file = self.path.open("ab", buffering=BUFFER)
        file.seek(0, 2)
        return file


def _ends_with_newline(path: Path) -> bool:
    """Whether the last line of a file is complete; after a crash it may not be."""
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read() == b"\n"


class Recorder:
    """Writes readings to a file. After a failed write it only counts."""

    def __init__(self, clock: Clock, file: RecordingFile, settings: Settings, count: Callable[[str], None]) -> None:
        self._clock, self._file, self._count = clock, file, count
        self._name, self._longest_interval = settings.name, settings.observe.max_interval_ms / 1000
        watch = tuple(WatchEntry(entry.stream, entry.consumers) for entry in settings.watch)
        observe = settings.observe
        self._recorded_settings = RecordedSettings(watch, observe.stale_after_seconds, observe.unknown_after_seconds)
        self._sources: Sources | None = None
        self._origins: dict[str, tuple[str, ...]] = {}
        self.failed = False
        """Whether a write failed."""
        self._flushed_at = clock.now().mono
        self._partial_logged = False
        self._start_part()

    def _record(self, reading: ConsumersReading) -> None:
        self._rotate_if_full()
        origin = self._origins.get(reading.look.origin or "", ())
        self._write(self._encoder.encode_reading(reading, self._clock.now(), origin))
        self._report_left_out()

    def record_received(self, received: Received) -> None:
        """Record what another replica read."""
        match received.shown:
            case StreamsReading() as reading:
                self._origins = subjects_by_stream(self._origins, reading.looks, reading.complete)
            case ConsumersReading() as reading:
                self._record(reading)
            case Sample() as sample:
                self._write(self._encoder.encode_sample(sample))

    def recording_hints(self, sink: Callable[[Hint], None]) -> Callable[[Hint], None]:
        """A sink that records each hint and passes it to `sink`."""

        def record(hint: Hint) -> None:
            self._write(self._encoder.add_hint(hint, self._clock.now()))
            sink(hint)

        return record

    def record_policies(self, sources: Sources) -> None:
        """Record that these policies are in force from now on."""
        self._sources = sources
        self._write(self._policy_lines.lines(sources, self._clock.now()))

    def flush(self) -> None:
        """Write to the disk what waits."""
        if not self.failed:
            self._stop_on_error(self._file.flush)

    def close(self) -> None:
        self._write(self._encoder.flush())
        if not self.failed:
            self._stop_on_error(self._file.close)

    def _start_part(self) -> None:
        """Start a part that can be read alone: with its format, and all policies in force."""
        now = self._clock.now()
        at = round(now.mono, 3), round(now.wall, 3)
        self._encoder, self._policy_lines = Encoder(), PolicyLineWriter(self._recorded_settings)
        lines: list[Line] = [HeaderLine(FORMAT, self._name, __version__, at, self._longest_interval)]
        lines += self._policy_lines.lines(self._sources, now) if self._sources else []
        before = 0 if self.failed else self._file.size
        self._write(lines)
        # If the policies alone fill a file, the file may grow to twice their size.
        self._rotate_at = max(self._file.limit, 0 if self.failed else 2 * self._file.size - before)

    def _report_left_out(self) -> None:
        left_out, self._encoder.left_out = self._encoder.left_out, 0
        if left_out:
            self._count("recording")
            if not self._partial_logged:
                log.warning("recording.partial", limit=CONSUMERS_LIMIT, hint="further consumers are not recorded")
            self._partial_logged = True

    def _rotate_if_full(self) -> None:
        if self.failed or self._file.size < self._rotate_at:
            return
        self._write(self._encoder.flush())
        if not self._stop_on_error(self._file.rotate):
            return
        self._start_part()
        log.info("recording.rotated", file=str(self._file.path), kept=f"{self._file.path}.1")

    def _write(self, lines: Sequence[Line]) -> None:
        if lines and self.failed:
            self._count("recording")
        elif lines:
            data = b"".join(map(encode_line, lines))
            self._stop_on_error(lambda: self._append(data))

    def _append(self, data: bytes) -> None:
        self._file.write(data)
        if (now := self._clock.now().mono) - self._flushed_at >= FLUSH_INTERVAL:
            self._flushed_at = now
            self._file.flush()

    def _stop_on_error(self, operation: Callable[[], None]) -> bool:
        """Whether it succeeded."""
        try:
            operation()
            return True
        except (OSError, ValueError) as error:
            self.failed = True
            with suppress(OSError, ValueError):
                self._file.close()
            self._count("recording")
            log.error(
                "recording.ended",
                file=str(self._file.path),
                error=str(error),
                hint="what was written until then can be used",
            )
            return False


class RecordingObserver(Recorder):
    """An Observer that passes on the readings of another one and records them."""

    def __init__(
        self,
        observer: Observer,
        clock: Clock,
        file: RecordingFile,
        settings: Settings,
        count: Callable[[str], None],
    ) -> None:
        super().__init__(clock, file, settings, count)
        self._observer = observer

    async def streams(self) -> StreamsReading:
        reading = await self._observer.streams()
        self._origins = subjects_by_stream(self._origins, reading.looks, reading.complete)
        return reading

    async def stream(self, name: str) -> StreamsReading:
        return await self._observer.stream(name)

    async def consumers(self, stream: str, names: Sequence[str] = ()) -> ConsumersReading:
        try:
            reading = await self._observer.consumers(stream, names)
        except StreamGone:
            self._write(self._encoder.encode_missing(stream, self._clock.now()))
            raise
        self._record(reading)
        return reading

    async def consumer(self, key: ConsumerKey) -> Sample:
        sample = await self._observer.consumer(key)
        self._write(self._encoder.encode_sample(sample))
        return sample
