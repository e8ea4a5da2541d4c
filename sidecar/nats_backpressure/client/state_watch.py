"""Follows the state bucket: reads every state, then each change, and starts again after any loss.

It needs no consumer, and so no right to create one. A plain subscription to the bucket's subjects only wakes it: what
comes there may be lost, or be a write that the bucket refused. The states themselves are read from the bucket, by their
revision; so nothing is missed, whatever the subscription misses.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress

from nats.aio.client import Client
from nats.aio.msg import Msg

from nats_backpressure.client.bucket_reader import BucketReader, Write
from nats_backpressure.client.state_mirror import StateMirror
from nats_backpressure.client.stats import OnceLogger, Stats
from nats_backpressure.protocol.subjects import Names

POLL, UNNOTICED_POLL = 2.5, 0.5
"""Seconds without a write of the bucket after which it is read all the same; and the same while none was noticed by
the subscription (a JetStream domain does not pass them on)."""
LOOKS = (0.005, 0.015, 0.045, 0.135)
"""Seconds before each further look for a write that was noticed and is not stored yet. Then it was refused, or
UNNOTICED_POLL finds it."""
UNNOTICED = 3
"""Writes in a row that were found without being noticed, after which that is logged."""
FIRST_RETRY, LAST_RETRY = 0.1, 5.0
"""Seconds before the next watch, growing, with jitter: many gateways come back at once."""
STEP_TIMEOUT = 3.0
"""Seconds for each step of starting and ending a watch."""
LINK_POLL = 0.1
"""Seconds between two looks at a connection that is down."""


class WatchLost(Exception):
    """The watch ended; the text says why."""


class WatchRestart(Exception):
    """The watch is replaced by another one though nothing is wrong with it."""


class StateWatch:
    """Keeps `mirror` equal to the bucket; `ready` is set once every state was read."""

    def __init__(
        self, nc: Client, names: Names, api_prefix: str, mirror: StateMirror, stats: Stats, logger: OnceLogger
    ) -> None:
        self.nc, self.mirror, self.stats, self.logger = nc, mirror, stats, logger
        self._reader = BucketReader(nc, api_prefix, names.state_bucket)
        self.ready = asyncio.Event()
        self.wakeups = Wakeups()
        self._complete = False
        """Whether the present watch has read every state."""

    def restart(self) -> None:
        """Read every state again: the filter has grown."""
        self.ready.clear()
        self.wakeups.restart()

    async def run(self) -> None:
        """Until cancelled."""
        delay = FIRST_RETRY
        while True:
            if not self.nc.is_connected:
                self._warn("not connected to NATS")
                await asyncio.sleep(LINK_POLL)
                continue
            self._complete, began = False, time.monotonic()
            try:
                await self._follow()
            except WatchRestart:
                continue
            except Exception as error:  # a client that closes meanwhile makes nats-py raise many things
                self.stats.count("watch_lost")
                self._warn(str(error) or type(error).__name__)
            lasted = self._complete and time.monotonic() - began >= LAST_RETRY
            delay = FIRST_RETRY if lasted else min(delay * 2, LAST_RETRY)
            await asyncio.sleep(random.uniform(0.3, 1.0) * delay)

    def snapshot_read(self) -> None:
        self._complete = True
        self.stats.count("snapshots")
        self.logger.resolve("watch", "", "the backpressure states are watched again")
        self.ready.set()

    async def _follow(self) -> None:
        """One watch from start to end. Raises what ended it."""
        self.wakeups = wakeups = Wakeups()
        reader = self._reader
        async with asyncio.timeout(STEP_TIMEOUT):  # before the first reading, so that no write is between the two
            subscription = await self.nc.subscribe(f"{reader.prefix}>", cb=wakeups.receive)
        try:
            async with reader.open():
                await _Follower(self, reader, wakeups).run()
        finally:
            with suppress(Exception):  # the connection may be gone
                async with asyncio.timeout(STEP_TIMEOUT):
                    await subscription.unsubscribe()

    def _warn(self, why: str) -> None:
        self.logger.warn("watch", "", f"the watch of the backpressure states is lost, retrying: {why}")


class Wakeups:
    """What the subscription noticed since the last look, and whether to begin again."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._noticed_at: float | None = None
        self._restart = False

    async def receive(self, _: Msg) -> None:
        if self._noticed_at is None:
            self._noticed_at = time.monotonic()
            self._event.set()

    def restart(self) -> None:
        self._restart = True
        self._event.set()

    def check_restart(self) -> None:
        """Raises WatchRestart."""
        if self._restart:
            raise WatchRestart

    async def wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()

    def take(self) -> float | None:
        """When a write was first noticed since the last call; None if none was."""
        noticed_at, self._noticed_at = self._noticed_at, None
        self._event.clear()
        return noticed_at


class _Known:
    """The last write of each key that was read, and whether the bucket may still be the one they were read from."""

    def __init__(self) -> None:
        self.newest = 0
        """The highest revision."""
        self._writes: dict[str, tuple[int, float]] = {}
        """Revision and time (the server's clock) by key, the oldest first; as many as the bucket has keys."""

    def add(self, write: Write) -> None:
        self._writes.pop(write.key, None)
        self._writes[write.key] = write.revision, write.stamp
        self.newest = write.revision

    def agrees_with(self, first: Write | None) -> bool:
        """Whether this can be the oldest write in the bucket. Where the bucket was created again, revisions count from
        1 again: its oldest write is one that was not read, or later than what was read of that key."""
        if first is None or not self._writes:
            return first is None and not self._writes
        revision, stamp = self._writes.get(first.key, (0, 0.0))
        oldest, _ = next(iter(self._writes.values()))
        return first.revision <= min(revision, oldest) and first.stamp <= stamp


class _Follower:
    """One watch: every state, then each change."""

    def __init__(self, watch: StateWatch, reader: BucketReader, wakeups: Wakeups) -> None:
        self._watch, self._reader, self._wakeups, self._mirror = watch, reader, wakeups, watch.mirror
        self._reconnects = watch.nc.stats["reconnects"]
        self._known = _Known()
        self._looked_at = 0.0
        """When it last asked for later writes."""
        self._unnoticed = 0
        """Readings in a row that found what was not noticed."""
        self._poll = UNNOTICED_POLL

    async def run(self) -> None:
        """Ends by raising what ended it."""
        await self._read_all()
        while True:
            await self._wakeups.wait(self._poll)
            await self._read_changes()
            self._check_heartbeats()

    async def _read_all(self) -> None:
        """The age of a state is the time since by our own clock, and at least the time to the newest write."""
        self._mirror.begin_snapshot()
        asked_at, newest = time.monotonic(), await self._reader.newest()
        server_time = max(time.time(), newest.stamp if newest else 0.0)
        await self._read_on(lambda write: asked_at - max(0.0, server_time - write.stamp))
        await self._check_bucket(asked_at)
        self._mirror.end_snapshot(time.monotonic())
        self._watch.snapshot_read()

    async def _read_changes(self) -> None:
        """Read what was written since. Where none was noticed, it may be as old as the last look."""
        before, noticed_at = self._known.newest, self._wakeups.take()
        written = self._looked_at if noticed_at is None else noticed_at
        await self._read_on(lambda _: written)
        for wait in LOOKS if noticed_at is not None else ():
            if self._known.newest != before:
                break
            await asyncio.sleep(wait)
            await self._read_on(lambda _: written)
        self._count_unnoticed(noticed_at is not None, self._known.newest != before)
        await self._check_bucket(written)

    async def _check_bucket(self, written: float) -> None:
        """Raises WatchLost where the bucket was created again. The oldest write may have been replaced just now, or the
        server that answers may be late."""
        for wait in LOOKS:
            if self._known.agrees_with(await self._reader.first()):
                return
            await asyncio.sleep(wait)
            await self._read_on(lambda _: written)
        raise WatchLost("the bucket was created again")

    async def _read_on(self, written: Callable[[Write], float]) -> None:
        """Read and store all later writes, each written at a time of our monotonic clock."""
        more = True
        while more:
            self._looked_at = time.monotonic()
            writes, more = await self._reader.after(self._known.newest)
            self._wakeups.check_restart()
            if self._watch.nc.stats["reconnects"] != self._reconnects:
                raise WatchLost("the connection was replaced in between")
            for write in writes:
                self._store(write, written(write))
                self._known.add(write)

    def _store(self, write: Write, written: float) -> None:
        if write.deleted:
            self._mirror.delete(write.key)
        elif problem := self._mirror.put(write.key, write.value, written, write.stamp):
            self._watch.stats.count(problem, write.key)
            text = f"key {write.key} of the state bucket is ignored: {problem}"
            self._watch.logger.warn(problem, write.key, text)

    def _count_unnoticed(self, noticed: bool, found: bool) -> None:
        if noticed:
            self._poll, self._unnoticed = POLL if found else UNNOTICED_POLL, 0
            self._watch.logger.resolve("unnoticed", "", "writes of the state bucket are noticed")
        elif found:
            self._poll, self._unnoticed = UNNOTICED_POLL, self._unnoticed + 1
        if self._unnoticed == UNNOTICED:
            subjects = f"{self._reader.prefix}>"
            text = f"nothing comes on {subjects} (no right?): states are read {1 / UNNOTICED_POLL:g} times a second"
            self._watch.logger.warn("unnoticed", "", text)

    def _check_heartbeats(self) -> None:
        if self._mirror.heartbeats_missing(time.monotonic()):
            text = "the backpressure sidecar's heartbeats are missing: its states grow old"
            self._watch.logger.warn("heartbeats", "", text)
        else:
            self._watch.logger.resolve("heartbeats", "", "the backpressure sidecar's heartbeats are back")
