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

from nats_backpressure.client.bucket_reader import BucketReader, Write
from nats_backpressure.client.inbox import denied_inbox
from nats_backpressure.client.known_writes import KnownWrites
from nats_backpressure.client.startup import Startup
from nats_backpressure.client.state_mirror import StateMirror
from nats_backpressure.client.stats import OnceLogger, Stats
from nats_backpressure.client.wakeups import Wakeups, WatchRestart
from nats_backpressure.protocol.subjects import Names

POLL, UNNOTICED_POLL = 2.5, 0.5
"""Seconds without a write of the bucket after which it is read all the same; and the same while none was noticed by
the subscription (a JetStream domain does not pass them on)."""
LOOKS = (0.005, 0.015, 0.045, 0.135)
"""Seconds before each further look for writes that were noticed and are not stored yet, or where the server that
answers may be late. Then they were refused, or UNNOTICED_POLL finds them."""
PAUSE = 0.02
"""Seconds between two readings at least: what comes meanwhile is read at once."""
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


class StateWatch:
    """Keeps `mirror` equal to the bucket; `ready` is set once every state was read."""

    def __init__(
        self,
        nc: Client,
        names: Names,
        api_prefix: str,
        mirror: StateMirror,
        stats: Stats,
        logger: OnceLogger,
        ready: asyncio.Event,
    ) -> None:
        self.nc, self.mirror, self.stats, self.logger = nc, mirror, stats, logger
        self._reader = BucketReader(nc, api_prefix, names.state_bucket)
        self.ready, self._startup = ready, Startup()
        self.wakeups = Wakeups(self._reader.prefix)
        self._complete = False
        """Whether the present watch has read every state."""
        self._read_once = False

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
        self._complete = self._read_once = True
        self.stats.count("snapshots")
        self.logger.resolve("watch", "", "the backpressure states are watched again")
        self.ready.set()

    async def _follow(self) -> None:
        """One watch from start to end. Raises what ended it."""
        self.wakeups = wakeups = Wakeups(self._reader.prefix)
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
        if self._read_once or self._startup.is_over(time.monotonic()):
            what = "those from before hold until they age" if self._read_once else "until then all is admitted"
            text = f"the backpressure states cannot be read, trying again; {what}: {why}{denied_inbox(self.nc)}"
            self.logger.warn("watch", "", text)


class _Follower:
    """One watch: every state, then each change."""

    def __init__(self, watch: StateWatch, reader: BucketReader, wakeups: Wakeups) -> None:
        self._watch, self._reader, self._wakeups, self._mirror = watch, reader, wakeups, watch.mirror
        self._reconnects = watch.nc.stats["reconnects"]
        self._known = KnownWrites()
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
            self._check_ages()
            await asyncio.sleep(PAUSE)

    async def _read_all(self) -> None:
        """The age of a state is the time since by our own clock, and at least the time to the newest write."""
        self._mirror.begin_snapshot()
        asked_at, newest = time.monotonic(), await self._reader.newest()
        server_time = max(time.time(), newest.stamp if newest else 0.0)
        last = newest.revision if newest else 0
        await self._read_until(
            lambda: self._known.newest >= last, lambda write: asked_at - max(0.0, server_time - write.stamp)
        )
        if self._known.newest < last:
            raise WatchLost("the server that answers is late")
        await self._check_bucket(asked_at)
        self._wakeups.check_restart()  # more may be watched since the last reading
        self._mirror.end_snapshot(time.monotonic())
        self._watch.snapshot_read()

    async def _read_changes(self) -> None:
        """Read what was written since. Where none was noticed, it may be as old as the last look."""
        before, (noticed, noticed_at) = self._known.newest, self._wakeups.take()
        written = noticed_at if noticed else self._looked_at
        await self._read_until(lambda: self._known.has(noticed), lambda _: written)
        if noticed:
            self._count_noticed(self._known.has(noticed))
        elif self._known.newest != before:
            self._count_unnoticed()
        await self._check_bucket(written)

    async def _read_until(self, complete: Callable[[], bool], written: Callable[[Write], float]) -> None:
        """Read all later writes, and look again where that is not complete, or does not continue what is known: the
        server that answers may be late. Raises WatchLost where it never continues what is known."""
        continued = await self._read_on(written)
        for wait in LOOKS:
            if continued and complete():
                return
            await asyncio.sleep(wait)
            continued = await self._read_on(written)
        if not continued:
            raise WatchLost("the bucket was created again, or set back")

    async def _check_bucket(self, written: float) -> None:
        """Raises WatchLost where the bucket was created again. The oldest write may have been replaced just now, or the
        server that answers may be late."""
        for wait in LOOKS:
            if self._known.agrees_with(await self._reader.first()):
                return
            await asyncio.sleep(wait)
            await self._read_on(lambda _: written)
        raise WatchLost("the bucket was created again")

    async def _read_on(self, written: Callable[[Write], float]) -> bool:
        """Read and store all later writes, each written at a time of our monotonic clock. Returns whether they continue
        what is known; otherwise nothing is stored."""
        after, more = max(0, self._known.newest - 1), True
        while more:
            self._looked_at = time.monotonic()
            writes, more = await self._reader.after(after)
            self._wakeups.check_restart()
            if self._watch.nc.stats["reconnects"] != self._reconnects:
                raise WatchLost("the connection was replaced in between")
            if after < self._known.newest and not self._known.is_continued_by(writes):
                return False
            for write in writes:
                if write.revision > self._known.newest:
                    self._store(write, written(write))
                    self._known.add(write)
            after = self._known.newest
        return True

    def _store(self, write: Write, written: float) -> None:
        if write.deleted:
            self._mirror.delete(write.key)
        elif problem := self._mirror.put(write.key, write.value, written, write.stamp):
            self._watch.stats.count(problem, write.key)
            text = f"key {write.key} of the state bucket is ignored: {problem}"
            self._watch.logger.warn(problem, write.key, text)

    def _count_noticed(self, all_read: bool) -> None:
        self._poll, self._unnoticed = POLL if all_read else UNNOTICED_POLL, 0
        self._watch.logger.resolve("unnoticed", "", "writes of the state bucket are noticed")

    def _count_unnoticed(self) -> None:
        """Once more something was read that was not noticed."""
        self._poll, self._unnoticed = UNNOTICED_POLL, self._unnoticed + 1
        if self._unnoticed == UNNOTICED:
            subjects = f"{self._reader.prefix}>"
            text = f"nothing comes on {subjects} (no right?): states are read {1 / UNNOTICED_POLL:g} times a second"
            self._watch.logger.warn("unnoticed", "", text)

    def _check_ages(self) -> None:
        now = time.monotonic()
        self._mirror.remove_vanished(now)
        if self._mirror.heartbeats_missing(now):
            text = "the backpressure sidecar's heartbeats are missing: its states grow old"
            self._watch.logger.warn("heartbeats", "", text)
        else:
            self._watch.logger.resolve("heartbeats", "", "the backpressure sidecar's heartbeats are back")
