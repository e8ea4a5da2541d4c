"""Writes the heartbeat key: it proves to clients that the stored states are still true."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.runtime.ports import Clock, ServiceCounts, StateStore, Unavailable
from nats_backpressure.runtime.replicas import Replicas
from nats_backpressure.runtime.subject_registry import SubjectRegistry
from nats_backpressure.runtime.tasks import within
from nats_backpressure.runtime.view import ServiceView

log = structlog.get_logger()

OTHERS_LEAVE = 0.1
"""Seconds after which the last replica is certain that those that stop at the same time have reported it."""
LEAVE_WITHIN = 1.0
"""Seconds for the last heartbeat of the last replica."""


class Heartbeat:
    """Writes the heartbeat key every `publish.heartbeat_seconds`."""

    def __init__(
        self,
        store: StateStore,
        clock: Clock,
        registry: SubjectRegistry,
        render: Callable[[ServiceView, Now, bool], bytes],
        counts: ServiceCounts,
        replicas: Replicas,
    ) -> None:
        self._store, self._clock, self._registry = store, clock, registry
        self._render, self._counts, self._replicas = render, counts, replicas

    async def run(self) -> None:
        """Write heartbeats until cancelled."""
        while True:
            try:
                alone = await self._store.write_heartbeat(self._value(leaving=False))
                if alone is False and self._store.newer_heartbeat:
                    self._registry.feed_newer_heartbeat()
            except Unavailable as error:
                self._counts.dropped("heartbeat")
                log.debug("heartbeat.unavailable", error=str(error))
            await self._clock.sleep(self._registry.settings.publish.heartbeat_seconds)

    async def leave(self) -> None:
        """As the last replica, write a last heartbeat: clients then open rejected subjects by themselves."""
        await self._clock.sleep(OTHERS_LEAVE)
        if self._replicas.others:
            return
        last = self._store.write_last_heartbeat(self._value(leaving=True), self._replicas.departed)
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
        return self._render(self._registry, self._clock.now(), leaving)
