"""Writes down what the observer tells, beside the service: it hears all and answers nothing.

A disk that is full or gone ends the recording, never the service. Writing blocks the loop, as writing to a local file
does: for as long as the system takes to copy a few kilobytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import structlog

from nats_backpressure import __version__
from nats_backpressure.config.settings import Settings
from nats_backpressure.core.model import Sample
from nats_backpressure.core.watch_filter import WatchEntry
from nats_backpressure.policy.precedence import Sources
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.recording.encoder import Encoder
from nats_backpressure.recording.format import CONSUMERS_LIMIT, FORMAT, Line, RecordingBegun, encode
from nats_backpressure.recording.policies import PolicyLineWriter, Scope
from nats_backpressure.runtime.observations import ConsumersReading, Hint, StreamGone, StreamsReading
from nats_backpressure.runtime.ports import Clock, Observer

log = structlog.get_logger()

FLUSH_EVERY = 1.0
"""Seconds of recording that a killed process may lose."""
BUFFER = 1 << 16
"""Bytes."""


class RecordingFile:
    """A file of at most `limit` bytes (and one reading more), and the full one before it: FILE and FILE.1.

    What FILE holds already is kept and written on. Raises OSError.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path, self.limit = path, limit
        self._file = self._open()
        if self.size and not _ends_a_line(path):
            self._file.write(b"\n")

    @property
    def size(self) -> int:
        return self._file.tell()

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def turn(self) -> None:
        """Put the full file aside, over the one before it, and begin another."""
        self._file.close()
        self.path.replace(f"{self.path}.1")
        self._file = self._open()

    def close(self) -> None:
        self._file.close()

    def _open(self) -> BinaryIO:
        file = self.path.open("ab", buffering=BUFFER)
        file.seek(0, 2)
        return file


def _ends_a_line(path: Path) -> bool:
    """Whether a file that a crash may have cut off ends with a whole line."""
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read() == b"\n"


class RecordingObserver:
    """An Observer that passes on what another one tells, and keeps it; what follows a failed write is counted only."""

    def __init__(
        self,
        observer: Observer,
        clock: Clock,
        tape: RecordingFile,
        settings: Settings,
        count: Callable[[str], None],
    ) -> None:
        self._observer, self._clock, self._tape, self._count = observer, clock, tape, count
        self._name, self._longest_interval = settings.name, settings.observe.max_interval_ms / 1000
        watch = tuple(WatchEntry(entry.stream, entry.consumers) for entry in settings.watch)
        observe = settings.observe
        self._scope = Scope(watch, observe.stale_after_seconds, observe.unknown_after_seconds)
        self._sources: Sources | None = None
        self._origins: dict[str, tuple[str, ...]] = {}
        self._failed = False
        self._flushed = clock.now().mono
        self._said_full = False
        self._begin()

    async def streams(self) -> StreamsReading:
        reading = await self._observer.streams()
        self._origins = {look.name: look.subjects for look in reading.looks}
        return reading

    async def consumers(self, stream: str) -> ConsumersReading:
        try:
            reading = await self._observer.consumers(stream)
        except StreamGone:
            self._write(self._shorthand.missing(stream, self._clock.now()))
            raise
        self._turn()
        origin = self._origins.get(reading.look.origin or "", ())
        self._write(self._shorthand.reading(reading, self._clock.now(), origin))
        self._check_room()
        return reading

    async def consumer(self, key: ConsumerKey) -> Sample:
        sample = await self._observer.consumer(key)
        self._write(self._shorthand.single(sample))
        return sample

    def hearing(self, sink: Callable[[Hint], None]) -> Callable[[Hint], None]:
        """`sink`, overheard."""

        def hear(hint: Hint) -> None:
            self._write(self._shorthand.hint(hint, self._clock.now()))
            sink(hint)

        return hear

    def rules(self, sources: Sources) -> None:
        """These policies are in force from now on."""
        self._sources = sources
        self._write(self._rules.lines(sources, self._clock.now()))

    def close(self) -> None:
        self._write(self._shorthand.flush())
        if not self._failed:
            self._try(self._tape.close)

    def _begin(self) -> None:
        """Begin a part that can be read alone: with its format, and all policies in force."""
        now = self._clock.now()
        at = round(now.mono, 3), round(now.wall, 3)
        self._shorthand, self._rules = Encoder(), PolicyLineWriter(self._scope)
        begun: list[Line] = [RecordingBegun(FORMAT, self._name, __version__, at, self._longest_interval)]
        begun += self._rules.lines(self._sources, now) if self._sources else []
        before = 0 if self._failed else self._tape.size
        self._write(begun)
        # Where the policies alone fill a file, it holds as much again of what was observed.
        self._full = max(self._tape.limit, 0 if self._failed else 2 * self._tape.size - before)

    def _check_room(self) -> None:
        left_out, self._shorthand.left_out = self._shorthand.left_out, 0
        if left_out:
            self._count("recording")
            if not self._said_full:
                log.warning("recording.partial", limit=CONSUMERS_LIMIT, hint="further consumers are not recorded")
            self._said_full = True

    def _turn(self) -> None:
        if self._failed or self._tape.size < self._full:
            return
        self._write(self._shorthand.flush())
        self._try(self._tape.turn)
        self._begin()
        log.info("recording.turned", file=str(self._tape.path), kept=f"{self._tape.path}.1")

    def _write(self, lines: Sequence[Line]) -> None:
        if lines and self._failed:
            self._count("recording")
        elif lines:
            data = b"".join(map(encode, lines))
            self._try(lambda: self._put(data))

    def _put(self, data: bytes) -> None:
        self._tape.write(data)
        if (now := self._clock.now().mono) - self._flushed >= FLUSH_EVERY:
            self._flushed = now
            self._tape.flush()

    def _try(self, do: Callable[[], None]) -> None:
        try:
            do()
        except (OSError, ValueError) as error:
            self._failed = True
            with suppress(OSError, ValueError):
                self._tape.close()
            self._count("recording")
            log.error("recording.ended", file=str(self._tape.path), error=str(error), hint="the service goes on")
