"""Finds the other installations that run now, and what they watch, without a right to read what they store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Final

from msgspec import Struct

from nats_backpressure.adapters.nats.api import JetStreamApi
from nats_backpressure.adapters.nats.api_types import Cluster, Moment, from_leader
from nats_backpressure.adapters.nats.stream_follower import INACTIVE
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.doctor.facts import Failure, OtherInstallation
from nats_backpressure.protocol.patterns import BadTail, decode
from nats_backpressure.protocol.subjects import HEARTBEAT, Names
from nats_backpressure.runtime.ports import Unavailable

RUNS_WITHIN: Final = 60.0
"""Seconds since its last write within which another installation surely runs: most heartbeats come often. After that
it runs where somebody follows its states as a sidecar does."""
MOST_OTHERS: Final = 20
"""Other installations that are looked at."""
EVENTS: Final = ".v1.event.>"
"""How the subjects of each installation's events end."""


class _State(Struct, frozen=True):
    last_ts: Moment | None = None
    consumer_count: int = 0
    subjects: dict[str, int] | None = None


class _Bucket(Struct):
    state: _State
    cluster: Cluster | None = None
    ts: Moment | None = None


class _Config(Struct, frozen=True):
    inactive_threshold: int = 0


class _Reader(Struct):
    config: _Config
    cluster: Cluster | None = None
    num_waiting: int = 0


class _Readers(Struct, frozen=True):
    consumers: list[_Reader] | None = None


async def other_installations(
    js: JetStreamApi, own: str, looks: Sequence[StreamLook], failure: Callable[[Exception], Failure]
) -> tuple[OtherInstallation, ...]:
    """Those among these streams, but for `own`, with the subjects that they watch."""
    subjects = [subject for look in looks for subject in look.subjects if subject.endswith(EVENTS)]
    names = sorted({subject.removesuffix(EVENTS) for subject in subjects} - {own})
    existing = {look.name for look in looks}
    others = []
    for name in names[:MOST_OTHERS]:
        if f"KV_{name}_state" in existing:
            try:
                others.append(await _other(js, name))
            except Unavailable as error:
                others.append(OtherInstallation(name, (), failure(error)))
    return tuple(other for other in others if other is not None)


async def _other(js: JetStreamApi, name: str) -> OtherInstallation | None:
    stream, prefix = f"KV_{Names(name).state_bucket}", f"$KV.{Names(name).state_bucket}."
    bucket = from_leader(await js.api(f"STREAM.INFO.{stream}", _Bucket, {"subjects_filter": f"{prefix}>"}), stream)
    quiet = since(bucket.state.last_ts, bucket.ts)
    if quiet is None or (quiet >= RUNS_WITHIN and not await _is_followed(js, stream, bucket)):
        return None
    return OtherInstallation(name, tuple(sorted(_decoded(bucket.state.subjects or {}, prefix))))


async def _is_followed(js: JetStreamApi, stream: str, bucket: _Bucket) -> bool:
    if not bucket.state.consumer_count:
        return False
    readers = (await js.api(f"CONSUMER.LIST.{stream}", _Readers)).consumers or ()
    followers = (each for each in readers if each.config.inactive_threshold == INACTIVE * 1_000_000_000)
    return any(from_leader(each, f"a consumer of {stream}").num_waiting for each in followers)


def since(last: datetime | None, now: datetime | None) -> float | None:
    """Seconds since a stream's last message, by the server's clock where its reply shows it; None without one."""
    if last is None or last.timestamp() <= 0:
        return None
    return (now.timestamp() if now else time.time()) - last.timestamp()


def _decoded(keys: dict[str, int], prefix: str) -> Iterator[str]:
    for key in keys:
        tail = key.removeprefix(prefix)
        try:
            if tail != HEARTBEAT:
                yield decode(tail)
        except BadTail:
            continue
