"""StartCheck: runs the cheap checks once after a sidecar started, and logs what they find. Nothing waits for it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import structlog
from msgspec import Struct

from nats_backpressure.config.settings import Settings
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.doctor.examination import CHECKS, examine
from nats_backpressure.doctor.facts import Consumer, Facts, Failure, OtherInstallation, OwnStream, Server, subjects_of
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.runtime.observations import StreamsReading
from nats_backpressure.runtime.ports import Clock
from nats_backpressure.runtime.subject_registry import SubjectRegistry

log = structlog.get_logger()

AFTER: Final = 2.0
"""Seconds after the first answers: what a start does has gone before."""
AT_START: Final = tuple(check for check in CHECKS if check.at_start)


class FactSource(Protocol):
    """What is read from the server; about five requests in all, and one for each other installation."""

    async def server(self) -> Server: ...
    async def own_streams(self) -> tuple[OwnStream, ...]: ...
    async def clock_ahead(self, stream: str) -> float | None: ...
    async def others(self, looks: Sequence[StreamLook]) -> tuple[OtherInstallation, ...]: ...


class StartCheck(Struct, frozen=True):
    """The check of one process; `list_streams` reads all streams."""

    settings: Settings
    registry: SubjectRegistry
    clock: Clock
    source: FactSource
    list_streams: Callable[[], Awaitable[StreamsReading]]
    jwt_expires_at: Callable[[], float | None]

    async def run(self, known: asyncio.Event) -> None:
        """Check once after `known` is set; what cannot be read is not checked."""
        await known.wait()
        await self.clock.sleep(AFTER)
        try:
            facts = await self._facts()
        except Exception as error:  # whatever goes wrong here must not end a sidecar that works
            log.debug("doctor.unavailable", error=str(error))
            return
        # In a thread: with 10,000 policies it takes a while.
        for finding in await asyncio.to_thread(examine, facts, AT_START):
            if finding.level in ("warning", "error"):
                log.warning(
                    "doctor.error" if finding.level == "error" else "doctor.warning",
                    check=finding.check,
                    problem=finding.problem,
                    cost=finding.cost,
                    hint=finding.remedy,
                )

    async def _facts(self) -> Facts:
        looks = (await self.list_streams()).looks
        consumers = self._consumers()
        unread = [name for name, each in self.registry.streams.items() if each.watched and each.shown_at == -math.inf]
        return Facts(
            settings=self.settings,
            server=await self.source.server(),
            wall=self.clock.now().wall,
            jwt_expires_at=await asyncio.to_thread(self.jwt_expires_at),
            clock_ahead=await self.source.clock_ahead(f"KV_{Names(self.settings.name).state_bucket}"),
            streams=tuple(look.name for look in looks),
            unread={name: Failure("not read yet", "wait") for name in unread},
            consumers=consumers,
            all_consumers=False,
            watched=subjects_of(consumers),
            own=await self.source.own_streams(),
            entries=dict(self.registry.policies.sources.bucket),
            others=await self.source.others(looks),
        )

    def _consumers(self) -> tuple[Consumer, ...]:
        """Those that are watched, as they were read already."""
        streams = tuple(self.registry.streams.values())
        return tuple(
            Consumer(key, subjects) for stream in streams if stream.watched for key, subjects in stream.under.items()
        )
