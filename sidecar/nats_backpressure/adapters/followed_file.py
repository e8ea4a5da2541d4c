"""Reads the settings file and notices when it changes, also where a ConfigMap's volume puts another in its place."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nats_backpressure.config.settings import Settings

if TYPE_CHECKING:
    from nats_backpressure.runtime.ports import Clock

LOOK_EVERY: Final = 4.0
"""Seconds between two looks at the file: with its thread, one costs as much as two looks at the streams."""
SETTLED: Final = 1.0
"""Seconds from a look that sees another file to the next one. A change is read once two looks in a row see the same:
before, the file may still be being written."""

Version = tuple[int, ...] | None
"""What tells one content of a file from another, without reading it; None for what is no file."""


class FollowedFile:
    """A settings file, and the version of it that was read last."""

    def __init__(self, path: Path | None, load: Callable[[], Settings]) -> None:
        """With the path None there is nothing to follow. `load` may raise BadSettings."""
        self._path, self._load = path, load
        self._read: Version = None
        self._seen: Version = None

    def read(self) -> Settings:
        """Read the file. Raises BadSettings."""
        # Before the content: what is written meanwhile then counts as a change.
        self._read = self._seen = self._version()
        return self._load()

    def changed(self) -> bool:
        """Whether the file is another than the one that was read last, and is not being written now."""
        before, self._seen = self._seen, self._version()
        return before == self._seen != self._read

    async def follow(self, clock: Clock, reload: Callable[[], Awaitable[None]]) -> None:
        """Reload after each change, until cancelled. `reload` must call `read`, which may refuse what it finds: it is
        then not read again before the next change."""
        while True:
            await clock.sleep(LOOK_EVERY if self._seen == self._read else SETTLED)
            # In a thread: a file system over the network may hang.
            if await asyncio.to_thread(self.changed):
                await reload()

    def _version(self) -> Version:
        """A ConfigMap's volume is a chain of symbolic links: what counts is the file at its end. A pipe, which can be
        read only once, is not followed."""
        if self._path is None:
            return None
        try:
            info = self._path.stat()
        except OSError:
            return None
        if not stat.S_ISREG(info.st_mode):
            return None
        return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns
