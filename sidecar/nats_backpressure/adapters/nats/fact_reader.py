"""FactReader: reads what `doctor` checks from a server, and tries each right without changing anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from msgspec import Struct
from nats.aio.msg import Msg

from nats_backpressure.adapters.nats.api import NO_STREAM, WRONG_SEQUENCE, ApiError, JetStreamApi
from nats_backpressure.adapters.nats.api_types import Moment, StreamInfo
from nats_backpressure.adapters.nats.login import describe_login
from nats_backpressure.adapters.nats.other_installations import other_installations, since
from nats_backpressure.adapters.nats.own_streams import (
    DEFAULTS,
    bucket,
    command,
    differences,
    edit,
    events_stream,
    fixed,
    full,
)
from nats_backpressure.adapters.nats.patched_client import PatchedClient, settled
from nats_backpressure.config.settings import Settings
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.doctor.facts import Account, Failure, OtherInstallation, OwnStream, Right, Server
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.runtime.observations import StreamsReading
from nats_backpressure.runtime.ports import Unavailable

TRIAL: Final = "=doctor-trial"
"""The token that stands for a wildcard of a right that is tried. No stream, consumer or watched subject is named so,
and clients that watch states pass over keys that begin so."""
TRIAL_PAYLOAD: Final = b"a trial of nats-backpressure doctor"
"""No JSON: the JetStream API refuses it before it does anything."""
NEVER_STORED: Final = {"Nats-Expected-Stream": TRIAL, "Nats-Expected-Last-Sequence": "9007199254740991"}
"""Headers with which no stream stores a message."""
OTHER_STREAM: Final = 10060
"""The error code of a write that expects another stream."""


class _Copy(Struct, frozen=True):
    """A server that follows the leader of a stream."""

    name: str = ""
    current: bool = True
    offline: bool = False


class _Cluster(Struct, frozen=True):
    name: str = ""
    leader: str = ""
    replicas: tuple[_Copy, ...] | None = None


class _State(Struct, frozen=True):
    messages: int = 0
    bytes: int = 0
    last_ts: Moment | None = None
    consumer_count: int = 0


class _Details(Struct, frozen=True):
    """A stream with what StreamInfo leaves out."""

    config: dict[str, Any]
    state: _State
    cluster: _Cluster | None = None
    ts: Moment | None = None


class _Limits(Struct, frozen=True):
    max_memory: int = -1
    max_storage: int = -1
    max_streams: int = -1
    max_consumers: int = -1


class _Tier(Struct, frozen=True):
    """What an account holds in one tier, or in all where it has none."""

    memory: int = 0
    storage: int = 0
    streams: int = 0
    limits: _Limits = _Limits()


class _AccountInfo(_Tier, frozen=True):
    tiers: dict[str, _Tier] | None = None


class FactReader:
    """Over one connection. Methods raise Unavailable only where they say so."""

    def __init__(
        self, settings: Settings, js: JetStreamApi, client: Callable[[], PatchedClient], remedy: Callable[[str], str]
    ) -> None:
        """`remedy` returns what to do about an error of JetStream."""
        self._settings, self._js, self._client, self._remedy = settings, js, client, remedy
        self._names = Names(settings.name)

    def failure(self, error: Exception) -> Failure:
        return Failure(str(error), self._remedy(str(error)))

    async def server(self) -> Server:
        """What the server says about itself. Raises Unavailable without a connection, and what nats-py raises."""
        client, nats = self._client(), self._settings.nats
        began = time.monotonic()
        await settled(client)
        about = client._server_info
        domain = about.get("domain")
        return Server(
            urls=nats.shown_servers,
            login=describe_login(nats),
            version=str(about.get("version", "")),
            round_trip=time.monotonic() - began,
            cluster=str(about.get("cluster", "")),
            domain=str(domain or ""),
            addresses=len(about.get("connect_urls") or ()),
            has_jetstream=bool(about.get("jetstream")) and not nats.js_api_prefix and nats.js_domain in (None, domain),
        )

    async def clock_ahead(self, reading: StreamsReading) -> float | None:
        """Seconds by which the server's clock is ahead of ours, from its reply about one of these streams that
        answers; None if it says none."""
        answering = (look.name for look in reading.looks if look.name not in reading.missing)
        if (stream := next(answering, None)) is None:
            return None
        before = time.time()
        try:
            at = (await self._js.api(f"STREAM.INFO.{stream}", StreamInfo[dict[str, Any]])).ts
        except Unavailable:
            return None
        return None if at is None else at.timestamp() - (before + time.time()) / 2

    async def account(self) -> Account:
        """What the account holds, and its limits. Raises Unavailable."""
        info = await self._js.api("INFO", _AccountInfo)
        has = (info.tiers or {}).get(f"R{self._settings.publish.replicas}", info)
        return Account(
            storage=has.storage,
            max_storage=has.limits.max_storage,
            memory=has.memory,
            max_memory=has.limits.max_memory,
            streams=has.streams,
            max_streams=has.limits.max_streams,
            max_consumers=has.limits.max_consumers,
        )

    async def own_streams(self) -> tuple[OwnStream, ...]:
        """The events stream and the two buckets, of which that of the policies is optional."""
        names, publish = self._names, self._settings.publish
        return (
            await self._own(events_stream(names, publish.replicas, publish.events_max_age_seconds)),
            await self._own(bucket(names.state_bucket, publish.replicas)),
            await self._own(bucket(names.policy_bucket, publish.replicas), optional=True),
        )

    async def _own(self, wanted: dict[str, Any], optional: bool = False) -> OwnStream:
        name, make_it, subjects = wanted["name"], command(wanted, self._names), tuple(wanted["subjects"])
        try:
            details = await self._js.api(f"STREAM.INFO.{name}", _Details)
        except Unavailable as error:
            missing = isinstance(error, ApiError) and error.err_code == NO_STREAM
            return OwnStream(name, make_it, subjects, optional, failure=None if missing else self.failure(error))
        has, cluster = differences(wanted, details.config), details.cluster
        return OwnStream(
            name,
            make_it,
            subjects,
            optional,
            exists=True,
            differs={key: (wanted.get(key, DEFAULTS[key]), value) for key, value in has.items()},
            edit=edit(wanted, has.keys() - {"num_replicas"}),
            fixed=fixed(has),
            full=full(wanted, details.config, {"messages": details.state.messages, "bytes": details.state.bytes}),
            replicas=int(details.config.get("num_replicas", 1)),
            cluster="" if cluster is None else cluster.name,
            leader=cluster is None or bool(cluster.leader),
            consumers=details.state.consumer_count,
            max_consumers=int(details.config.get("max_consumers") or -1),
            quiet=since(details.state.last_ts, details.ts),
            absent=tuple(c.name for c in (cluster and cluster.replicas) or () if c.offline or not c.current),
        )

    async def state_write(self) -> Failure | None:
        """Why a write to the state bucket has no answer. The write is one that is never stored."""
        subject = f"{self._js.kv_prefix}$KV.{self._names.state_bucket}.{TRIAL}"
        try:
            await self._js.publish(subject, TRIAL_PAYLOAD, NEVER_STORED)
        except ApiError as error:
            expected = error.err_code in WRONG_SEQUENCE or error.err_code == OTHER_STREAM
            return None if expected else self.failure(error)
        except Unavailable as error:
            return self.failure(error)
        return None

    async def others(self, looks: Sequence[StreamLook]) -> tuple[OtherInstallation, ...]:
        """The other installations among these streams that run now, with the subjects that they watch."""
        return await other_installations(self._js, self._names.name, looks, self.failure)

    async def rights(self, publish: Sequence[str], subscribe: Sequence[str]) -> tuple[Right, ...]:
        """Whether the server lets us publish and subscribe to these. Each is tried with a message that no API and no
        stream takes. Raises Unavailable without a connection, and what nats-py raises."""
        client = self._client()
        tried = {subject: _literal(subject) for subject in publish}
        for subject in tried.values():
            await client.publish(subject, TRIAL_PAYLOAD, reply=client.new_inbox(), headers=NEVER_STORED)
        subscriptions = [await client.subscribe(subject, cb=_ignore) for subject in subscribe]
        await settled(client)  # the server has reported what it refuses
        self._client()  # else nothing was refused because nothing was tried
        refused = set(client.rights.subscriptions.values())
        rights = [Right("publish", right, client.rights.denies(subject) is None) for right, subject in tried.items()]
        rights += [Right("subscribe", subject, subject not in refused) for subject in subscribe]
        for subscription in subscriptions:
            await subscription.unsubscribe()
        return tuple(rights)


async def _ignore(message: Msg) -> None:
    pass


def _literal(right: str) -> str:
    """A subject that a right allows."""
    return ".".join(TRIAL if token in ("*", ">") else token for token in right.split("."))
