"""Reads the facts that `doctor` checks, over one connection with the login of the sidecar."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from msgspec.structs import replace

from nats_backpressure.adapters.nats.api import JetStreamApi
from nats_backpressure.adapters.nats.fact_reader import FactReader
from nats_backpressure.adapters.nats.login import describe_login, jwt_expiry
from nats_backpressure.adapters.nats.observer import JetStreamObserver
from nats_backpressure.adapters.nats.observer_requests import ObserverRequests
from nats_backpressure.adapters.nats.permissions import Installation, sidecar
from nats_backpressure.adapters.nats.policy_store import PolicyBucket
from nats_backpressure.adapters.nats.presence_listener import PresenceListener
from nats_backpressure.adapters.nats.remedies import remedy
from nats_backpressure.adapters.nats.single_connection import SingleConnection
from nats_backpressure.config.settings import Settings
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.reading.budget import RequestBudget
from nats_backpressure.core.watch_filter import WatchEntry, counted_subjects, is_stream_watched, why_left_out
from nats_backpressure.doctor.facts import Account, Consumer, Facts, Failure, Server, subjects_of
from nats_backpressure.doctor.heartbeat_check import is_running, runs_now
from nats_backpressure.doctor.text import names
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.snapshot import PolicySnapshot, PolicyValue
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.runtime.clock import SystemClock
from nats_backpressure.runtime.observations import StreamGone, StreamsReading
from nats_backpressure.runtime.ports import Unavailable

NOT_SHOWN = "start the servers that have them: `nats server report jetstream` shows which are away"
"""What to do where the server leaves consumers out of a list."""
CREATED_WITHIN, READ_EVERY = 3.0, 0.5
"""Seconds within which a sidecar that runs has created what is missing, which it looks for once a second; and between
two looks for that."""
AT_ONCE = 8
"""Streams whose consumers are read at the same time."""


async def read_facts(settings: Settings, replaced_by: tuple[str, ...], seconds: float) -> Facts:
    """All that can be read now; `seconds`: to connect."""
    nats = settings.nats
    connection = SingleConnection(nats, f"{settings.name}/doctor", seconds)
    facts = Facts(
        settings=settings,
        server=Server(nats.shown_servers, describe_login(nats)),
        wall=time.time(),
        replaced_by=replaced_by,
        jwt_expires_at=jwt_expiry(nats),
    )
    try:
        if (failed := await connection.open()) is not None:
            return replace(facts, server=replace(facts.server, failure=Failure(*failed)))
        return await _Gathering(settings, connection).add_to(facts)
    finally:
        await connection.close()


class _Gathering:
    """Of one connection."""

    def __init__(self, settings: Settings, connection: SingleConnection) -> None:
        self._settings, self._names = settings, Names(settings.name)
        self._connection = connection
        self._js = JetStreamApi(connection, settings.nats.api_prefix)
        self._reader = FactReader(settings, self._js, connection.client, partial(remedy, settings.nats))
        self._observer = JetStreamObserver(
            ObserverRequests(
                connection,
                SystemClock(),
                count=lambda what: None,
                count_request=lambda op, outcome, seconds: None,
                prefix=settings.nats.api_prefix,
                budget=RequestBudget(settings.observe.api_requests_per_second),
            )
        )
        self._presences = PresenceListener(self._names)
        self._watch = [WatchEntry(entry.stream, entry.consumers) for entry in settings.watch]

    async def add_to(self, facts: Facts) -> Facts:
        try:
            with self._connection.errors():
                needed = sidecar(self._installation())
                facts = replace(facts, server=await self._reader.server())
                facts = replace(facts, rights=await self._reader.rights(needed.publish, needed.subscribe))
                await self._presences.start(self._connection.client())
                listed = await self._observer.streams()
                facts = replace(facts, all_streams=listed.complete or listed.named, missing=listed.missing)
                return await self._with_replicas(await self._with_streams(facts, listed))
        except Unavailable as error:  # JetStream does not answer, or the connection was lost meanwhile
            return replace(facts, unlisted=self._reader.failure(error))

    async def _with_replicas(self, facts: Facts) -> Facts:
        """The replicas that run. What these lack may be what they create just now: it is read again for a while."""
        if not is_running(facts) and not _lacks_any(facts):
            return facts
        facts = replace(facts, replicas=await self._presences.marks())
        self._connection.client()  # else some were not heard
        until = time.monotonic() + (CREATED_WITHIN if self._settings.publish.manage_resources else 0.0)
        while runs_now(facts) and _lacks_any(facts) and time.monotonic() < until:
            await asyncio.sleep(READ_EVERY)
            facts = await self._with_own(facts)
        return facts

    async def _entries(self) -> tuple[dict[str, PolicyValue], Failure | None]:
        """What the policy bucket has. A sidecar without the right to a consumer there reads it another way."""
        try:
            return await PolicyBucket(self._js, self._names, self._connection.client).all(), None
        except Unavailable as error:
            return {}, self._reader.failure(error)

    async def _account(self) -> tuple[Account | None, Failure | None]:
        try:
            return await self._reader.account(), None
        except Unavailable as error:
            return None, self._reader.failure(error)

    def _installation(self) -> Installation:
        nats, service = self._settings.nats, self._settings.service
        return Installation(
            names=self._names,
            api=nats.api_prefix,
            inbox=nats.inbox_prefix,
            reply_prefixes=service.reply_prefixes,
            alias=service.status_alias,
            creates=self._settings.publish.manage_resources,
        )

    async def _with_streams(self, facts: Facts, listed: StreamsReading) -> Facts:
        looks = listed.looks
        watched = [look for look in looks if is_stream_watched(look.name, self._watch, self._names.ours)]
        unread: dict[str, Failure] = {}
        turns = asyncio.Semaphore(AT_ONCE)

        async def read(look: StreamLook) -> list[Consumer]:
            async with turns:
                try:
                    consumers, why = await self._consumers(look, looks)
                except StreamGone:
                    return []
                except Unavailable as error:
                    unread[look.name] = self._reader.failure(error)
                    return []
                if why:
                    unread[look.name] = Failure(why, NOT_SHOWN)
                return consumers

        consumers = tuple(each for some in await asyncio.gather(*map(read, watched)) for each in some)
        ahead = await self._reader.clock_ahead(listed)
        facts = replace(
            facts,
            streams=tuple(look.name for look in looks),
            stored={look.name: look.subjects for look in looks},
            wall=time.time() + (ahead or 0.0),
            clock_ahead=ahead,
            unread=unread,
            consumers=consumers,
            watched=subjects_of(consumers),
            others=await self._reader.others(looks),
        )
        return await self._with_own(facts)

    async def _with_own(self, facts: Facts) -> Facts:
        """With our own streams, and what hangs on their being there."""
        own = await self._reader.own_streams()
        policies = ActivePolicies(
            self._settings.policies, self._settings.policy_guard, self._settings.trust_consumer_metadata
        )
        entries, entries_unread = await self._entries() if own[2].exists else ({}, None)
        account, account_unread = await self._account()
        refused = policies.set_bucket(PolicySnapshot("", entries))
        return replace(
            facts,
            own=own,
            account=account,
            account_unread=account_unread,
            state_write=await self._reader.state_write() if own[1].exists else None,
            entries=dict(policies.sources.bucket),
            entries_unread=entries_unread,
            refused=tuple(refused),
        )

    async def _consumers(self, look: StreamLook, looks: tuple[StreamLook, ...]) -> tuple[list[Consumer], str]:
        """The consumers of a stream, and why there are others; a mirror has the subjects of its origin."""
        subjects = look.subjects or next((each.subjects for each in looks if each.name == look.origin), ())
        consumers, reading = [], await self._observer.consumers(look.name)
        for sample in reading.samples:
            key, config = sample.key, sample.config
            counted = counted_subjects(key, config, subjects, self._watch, self._names.ours)
            if counted and not isinstance(counted, str):
                consumers.append(Consumer(key, counted, sampled=config.sampled))
            else:
                why = counted if isinstance(counted, str) else why_left_out(key, config, self._watch, self._names.ours)
                consumers.append(Consumer(key, (), why or "not in watch", config.sampled))
        if reading.unread:
            return consumers, f"their list lacks {names(sorted(reading.unread))}"
        return consumers, "" if reading.whole else "their list could not be read whole"


def _lacks_any(facts: Facts) -> bool:
    """Whether any of our streams does not exist."""
    return any(not stream.exists and stream.failure is None for stream in facts.own)
