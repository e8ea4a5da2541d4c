"""StartCheck: runs each check once after a sidecar started, and logs what is wrong. Nothing waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import structlog
from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.config.settings import Settings
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.watch_filter import WatchEntry, is_stream_watched
from nats_backpressure.doctor.examination import CHECKS, Check, examine, possible
from nats_backpressure.doctor.facts import (
    Account,
    Consumer,
    Facts,
    Failure,
    OtherInstallation,
    OwnStream,
    Server,
    subjects_of,
)
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.runtime.observations import StreamsReading
from nats_backpressure.runtime.ports import Clock, Unavailable
from nats_backpressure.runtime.subject_registry import SubjectRegistry

log = structlog.get_logger()

AFTER: Final = 2.0
"""Seconds after the first answers: what a start does has gone before."""
AT_LAST: Final = 15.0
"""Seconds after the start at which the checks are made that are possible, where nothing was read until then; the
others follow once something is known."""
AT_START: Final = tuple(check for check in CHECKS if not check.not_at_start)


class FactSource(Protocol):
    """What is read from the server; about six requests in all, and one for each other installation. Methods raise
    Unavailable where a server does not answer."""

    async def server(self) -> Server: ...
    async def own_streams(self) -> tuple[OwnStream, ...]: ...
    async def account(self) -> Account: ...
    async def clock_ahead(self, reading: StreamsReading) -> float | None: ...
    async def others(self, looks: Sequence[StreamLook]) -> tuple[OtherInstallation, ...]: ...
    def failure(self, error: Exception) -> Failure: ...


class StartCheck(Struct, frozen=True):
    """The checks of one process; `list_streams` reads all streams."""

    settings: Settings
    registry: SubjectRegistry
    clock: Clock
    source: FactSource
    list_streams: Callable[[], Awaitable[StreamsReading]]
    jwt_expires_at: Callable[[], float | None]

    async def run(self, known: asyncio.Event) -> None:
        """Make each check once: soon after `known` is set, or at AT_LAST, if what it needs can be read then."""
        await self.clock.wait(known, AT_LAST)
        at_once = known.is_set()
        rest = await self._check(AT_START, AFTER if at_once else 0.0)
        if rest and not at_once:
            await known.wait()
            await self._check(rest, AFTER)

    async def _check(self, checks: Sequence[Check], after: float) -> list[Check]:
        """After these seconds make those that are possible, and return the others."""
        await self.clock.sleep(after)
        try:
            facts = await self._facts()
        except Exception as error:  # whatever goes wrong here must not end a sidecar that works
            log.debug("doctor.unavailable", error=str(error))
            return []
        made = possible(facts, checks)
        # In a thread: with 10,000 policies it takes a while.
        for finding in await asyncio.to_thread(examine, facts, made):
            if finding.level in ("warning", "error"):
                log.warning(
                    "doctor.error" if finding.level == "error" else "doctor.warning",
                    check=finding.check,
                    problem=finding.problem,
                    cost=finding.cost,
                    hint=finding.remedy,
                )
        return [check for check in checks if check not in made]

    async def _facts(self) -> Facts:
        facts = Facts(
            settings=self.settings,
            server=Server(self.settings.nats.shown_servers, ""),
            wall=self.clock.now().wall,
            jwt_expires_at=await asyncio.to_thread(self.jwt_expires_at),
        )
        try:
            facts = replace(facts, server=await self.source.server())
        except Unavailable as error:
            return replace(facts, server=replace(facts.server, failure=self.source.failure(error)))
        try:
            listed = await self.list_streams()
            facts = replace(facts, all_streams=listed.complete or listed.named, missing=listed.missing)
            return await self._with_streams(facts, listed)
        except Unavailable as error:
            return replace(facts, unlisted=self.source.failure(error))

    async def _with_streams(self, facts: Facts, listed: StreamsReading) -> Facts:
        """No write is tried: gateways that watch would receive it, and the heartbeat tries one all the time."""
        looks, consumers = listed.looks, self._consumers()
        own = await self.source.own_streams()
        account, unread = await self._account()
        return replace(
            facts,
            clock_ahead=await self.source.clock_ahead(listed),
            streams=tuple(look.name for look in looks),
            unread={name: Failure("not read yet", "wait") for name in self._unread(looks)},
            consumers=consumers,
            all_consumers=False,
            watched=subjects_of(consumers),
            own=own,
            account=account,
            account_unread=unread,
            entries=dict(self.registry.policies.sources.bucket),
            others=await self.source.others(looks),
        )

    async def _account(self) -> tuple[Account | None, Failure | None]:
        try:
            return await self.source.account(), None
        except Unavailable as error:
            return None, self.source.failure(error)

    def _unread(self, looks: Sequence[StreamLook]) -> list[str]:
        """The watched streams whose consumers are not all known yet."""
        watch = [WatchEntry(entry.stream, entry.consumers) for entry in self.settings.watch]
        ours, followed = Names(self.settings.name).ours, self.registry.streams
        watched = [look.name for look in looks if is_stream_watched(look.name, watch, ours)]
        return [name for name in watched if name not in followed or followed[name].whole is None]

    def _consumers(self) -> tuple[Consumer, ...]:
        """Those that are watched, as they were read already."""
        streams = tuple(self.registry.streams.values())
        return tuple(
            Consumer(key, subjects) for stream in streams if stream.watched for key, subjects in stream.under.items()
        )
