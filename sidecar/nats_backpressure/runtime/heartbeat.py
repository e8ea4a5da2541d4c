"""Writes the heartbeat key: it proves to clients that the stored states are still true.

The replica that reads the list of streams writes it. Another one does where none proved anything for two intervals,
and goes on until one of another replica comes that does.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import structlog

from nats_backpressure.core.reading.sharing import ALL_STREAMS
from nats_backpressure.protocol import messages
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.runtime.failures import Failures
from nats_backpressure.runtime.ports import Clock, ServiceCounts, StateStore, Unavailable
from nats_backpressure.runtime.replicas import MOST_REPLICAS, Replicas
from nats_backpressure.runtime.shared_reading import SharedReading
from nats_backpressure.runtime.subject_registry import SubjectRegistry
from nats_backpressure.runtime.tasks import Bounded, within
from nats_backpressure.runtime.view import ServiceView

log = structlog.get_logger()

OTHERS_LEAVE = 0.1
"""Seconds after which the last replica is certain that those that stop at the same time have reported it."""
SILENT_INTERVALS = 2.0
"""Intervals without a heartbeat after which a replica that does not read the list of streams writes one."""
APART = 0.5
"""Intervals over which such replicas are spread, so that the first one's heartbeat is there before the next is due."""
AS_LAST = 1.1
"""Intervals after which one that wrote the last heartbeat writes the next: one that reads the list is before it."""
LEAVE_WITHIN = 1.0
"""Seconds for the last heartbeat of the last replica."""


class HeartbeatWriter:
    """Writes the heartbeat key every `publish.heartbeat_seconds`."""

    def __init__(
        self,
        store: StateStore,
        clock: Clock,
        registry: SubjectRegistry,
        render: Callable[[ServiceView, Now, bool], bytes],
        counts: ServiceCounts,
        replicas: Replicas,
        shared: SharedReading,
        failures: Failures | None = None,
    ) -> None:
        self._store, self._clock, self._registry = store, clock, registry
        self._render, self._counts, self._replicas, self._shared = render, counts, replicas, shared
        self._failures = failures or Failures(clock)
        self._every = registry.settings.publish.heartbeat_seconds
        self.proved_at = self._tried_at = -math.inf
        """When the last heartbeat that proves something was stored by anybody, and when we last tried to write one."""
        self._read: tuple[float | None, Now] = (None, clock.now())
        """The newest reading that a heartbeat showed, and the time of the first one that did."""
        self._is_ours = False
        """Whether this replica wrote the one that proves something."""
        self._sampled: Bounded[str, str | None] = Bounded(MOST_REPLICAS)
        """The `sampled_at` of the last heartbeat of each other instance."""
        self._woken = asyncio.Event()
        store.on_heartbeat = self._receive

    async def run(self) -> None:
        """Write heartbeats until cancelled."""
        while True:
            self._woken.clear()
            if (wait := self._due_at() - self._clock.now().mono) <= 0:
                await self._write()
            else:
                await self._clock.wait(self._woken, min(wait, self._every))

    def _due_at(self) -> float:
        """When this replica writes the next one."""
        wait = self._every
        if self._replicas.others and not self._shared.reads(ALL_STREAMS):
            spread = APART * self._shared.position(ALL_STREAMS).share
            wait *= AS_LAST if self._is_ours else SILENT_INTERVALS + spread
        return max(self.proved_at + wait, self._tried_at + self._every)

    async def _write(self) -> None:
        self._tried_at = self._clock.now().mono
        try:
            with self._failures.stage("heartbeat"):
                written = await self._store.write_heartbeat(self._value(leaving=False))
            if written:
                self.proved_at, self._is_ours = self._tried_at, True
        except Unavailable as error:
            self._counts.dropped("heartbeat")
            log.debug("heartbeat.unavailable", error=str(error))

    def _receive(self, heartbeat: messages.Heartbeat) -> None:
        """Another replica wrote one. It proves something where it shows a newer reading of that replica, and is not of
        an older version."""
        if heartbeat.schema > messages.SCHEMA:
            self._registry.feed_newer_heartbeat()
        if heartbeat.leaving:  # it did not know this replica: clients open what is refused unless it writes now
            self.proved_at = self._tried_at = -math.inf
            self._woken.set()
            return
        moved = heartbeat.sampled_at not in (None, self._sampled.get(heartbeat.instance))
        self._sampled[heartbeat.instance] = heartbeat.sampled_at
        if moved and heartbeat.schema >= messages.SCHEMA:
            self.proved_at, self._is_ours = self._clock.now().mono, False
            self._failures.works("heartbeat")

    async def leave(self) -> None:
        """As the last replica, write a last heartbeat: clients then open rejected subjects by themselves."""
        await self._clock.sleep(OTHERS_LEAVE)
        if self._replicas.others:
            return
        instances = {*self._replicas.departed, self._replicas.instance}
        last = self._store.write_last_heartbeat(self._value(leaving=True), instances)
        try:
            if await within(self._clock, LEAVE_WITHIN, last):
                log.info("heartbeat.leaving", hint="watchers open what is refused within four seconds")
        except (Unavailable, TimeoutError) as error:
            log.warning(
                "heartbeat.not_left",
                error=str(error) or "no answer",
                hint="watchers open what is refused by themselves, once they miss the heartbeats",
            )

    def _value(self, *, leaving: bool) -> bytes:
        if (read_at := self._registry.newest_read_at) != self._read[0]:
            self._read = (read_at, self._clock.now())
        # Later the wall clock may have been set: another time would prove a reading that was not made.
        return self._render(self._registry, self._read[1], leaving)
