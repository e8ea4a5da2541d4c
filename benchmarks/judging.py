"""Measures what it costs to judge samples, and what is remembered per consumer: `python -m benchmarks.judging`.

No server and no network: samples as the server would list them, decoded and fed through the intake of the service, with
a store and an event stream that do everything at once. Times are CPU time of this process.

The memory of a busy or sampled consumer is what one more takes: resident memory of a process with many of them, less
that of one with few, both fresh and after the same work. What is used once cancels, and so does what was free before:
that is more than a MiB where Python compiles its modules at the start.
"""

from __future__ import annotations

import gc
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from benchmarks.figures import Figure, Figures, Size, command, progress
from nats_backpressure.adapters.embedded_server import end_with_parent
from nats_backpressure.adapters.nats.api_types import ConsumerInfo, ListPage
from nats_backpressure.adapters.nats.samples import policy_metadata, sample
from nats_backpressure.config.settings import Settings
from nats_backpressure.core.model.samples import ConsumerConfig, Sample, StreamLook
from nats_backpressure.core.subject.inputs import (
    Effect,
    EventSent,
    Input,
    KeyRemoved,
    PublishEvent,
    RecordCreated,
    RemoveKey,
    WriteDone,
    WriteRecord,
)
from nats_backpressure.core.subject.membership import ReadState
from nats_backpressure.core.watch_filter import WatchEntry
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.schema import Guard
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.followed_streams import FollowedStream
from nats_backpressure.runtime.intake import Intake
from nats_backpressure.runtime.observations import AckSeen
from nats_backpressure.runtime.subject_registry import SubjectRegistry

T = TypeVar("T")


class Scale(Struct, frozen=True):
    idle: tuple[tuple[int, int], ...]
    """Consumers and streams."""
    members: tuple[int, ...]
    busy: tuple[int, int]
    """Few and many."""
    minutes: int
    """How long they are busy; a day for `full`."""


INTERVAL = 5.0
"""Seconds between two readings of an idle consumer."""
WARM_UP = 8
"""Readings until an idle consumer is at rest."""
LAST_READINGS = 60
IN_STREAM = 50
"""Busy consumers of one stream: what is made to read one, and is free again, is not that of all at once."""
OFTEN = 0.5
"""Seconds between two readings of a busy consumer that may soon be above a mark: with them all its windows are full."""
PAGE = 256
SCALES: dict[Size, Scale] = {
    "full": Scale(((1000, 4), (10_000, 20)), (1, 300, 900), (150, 450), 1440),
    "quick": Scale(((1000, 4),), (1, 100), (20, 60), 300),
    "tiny": Scale(((20, 2),), (1, 3), (2, 6), 20),
}


class Time:
    """The clock: it moves only when it is set."""

    def __init__(self) -> None:
        self.mono = 1000.0

    def now(self) -> Now:
        return Now(self.mono, self.mono + 1.8e9)


class World:
    """An intake, its registry, and streams of idle consumers; effects succeed at once."""

    def __init__(self, subjects: Sequence[Sequence[str]], time: Time | None = None) -> None:
        """`subjects`: of each stream, one for each of its consumers."""
        self.time = time or Time()
        policies = ActivePolicies((), Guard(), trust_metadata=False)
        self.registry = SubjectRegistry(Settings(), self.time, policies, "bench", self._perform)
        self.intake = Intake(self.registry, self.time, (WatchEntry("*"),), (), lambda what, key, why: None)
        self.streams: list[tuple[FollowedStream, list[Sample]]] = []
        for n, own in enumerate(subjects):
            look = StreamLook(f"S{n}", "2026-11-26T00:00:00Z", 1, 1_000_000, 1_000_000, ("orders.>",))
            stream = FollowedStream(look, 0.0, interval=INTERVAL)
            self.registry.streams[look.name] = stream
            self.streams.append((stream, [idle(f"S{n}", m, subject) for m, subject in enumerate(own)]))

    @property
    def consumers(self) -> int:
        return sum(len(samples) for _, samples in self.streams)

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            self.registry.feed(effect.subject, self._outcome(effect))

    def _outcome(self, effect: Effect) -> Input:
        match effect:
            case WriteRecord(subject, writing):
                return WriteDone(writing.nonce, self.registry.subjects[subject].revision + 1)
            case PublishEvent(_, event):
                return EventSent(event.id)
            case RemoveKey():
                return KeyRemoved()
            case _:
                return RecordCreated("bench")

    def read(
        self,
        change: Callable[[Sample, int], Sample] = lambda sample, n: sample,
        turn: int = 0,
        after: float = INTERVAL,
    ) -> float:
        """One reading of everything, `after` the last one; returns the CPU seconds of judging it."""
        self.time.mono += after
        at = self.time.now()
        spent = 0.0
        for stream, samples in self.streams:
            fresh = [change(msgspec.structs.replace(sample, at=at), turn) for sample in samples]
            start = time.process_time()
            self.take(stream, fresh)
            spent += time.process_time() - start
        self.registry.tick()
        return spent

    def take(self, stream: FollowedStream, samples: Sequence[Sample]) -> None:
        members = self.registry.members.of_stream(stream.look.name)
        under = {sample.key: self.intake.sample(stream, sample, members.get(sample.key, ())) for sample in samples}
        self.intake.remove_uncounted_members(stream, ReadState(under, (), True))


def idle(stream: str, n: int, subject: str) -> Sample:
    """A consumer with nothing to do."""
    config = ConsumerConfig(filters=(subject,), max_ack_pending=1000)
    return Sample(ConsumerKey(stream, f"c{n}"), "2026-11-26T00:00:00Z", config, Now(0, 0), 0, 0, 0, 1, 500, 50, 500, 50)


def busy(sample: Sample, turn: int) -> Sample:
    """The same consumer with a few messages more in each reading."""
    moved = 30 * turn
    return msgspec.structs.replace(
        sample,
        pending=turn % 7,
        inflight=turn % 5,
        delivered_stream=sample.delivered_stream + moved,
        delivered_consumer=sample.delivered_consumer + moved,
        floor_stream=sample.floor_stream + moved - turn % 5,
        floor_consumer=sample.floor_consumer + moved - turn % 5,
    )


def page(consumers: int) -> bytes:
    """A page of a list as the server sends it."""
    ts = "2026-11-26T00:00:05.123456789Z"
    seqs = {"consumer_seq": 50, "stream_seq": 500, "last_active": ts}
    config = {
        "durable_name": "c", "name": "c", "deliver_policy": "all", "ack_policy": "explicit", "ack_wait": 30_000_000_000,
        "max_deliver": -1, "filter_subject": "orders.c", "replay_policy": "instant", "max_waiting": 512,
        "max_ack_pending": 1000, "num_replicas": 0, "metadata": {"_nats.ver": "2.15.1", "_nats.level": "1"},
    }  # fmt: skip
    listed = [
        {
            "stream_name": "S", "name": f"c{n}", "created": ts, "config": config, "delivered": seqs, "ack_floor": seqs,
            "num_ack_pending": 0, "num_redelivered": 0, "num_waiting": 1, "num_pending": 0, "ts": ts,
        }
        for n in range(consumers)
    ]  # fmt: skip
    return json.dumps({"type": "x", "total": consumers, "offset": 0, "limit": PAGE, "consumers": listed}).encode()


def rss() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def spread(consumers: int, streams: int) -> list[list[str]]:
    return [[f"orders.{n}" for n in range(s, consumers, streams)] for s in range(streams)]


def time_idle(consumers: int, streams: int) -> dict[str, float]:
    """Microseconds of an unchanged sample, and bytes per idle consumer."""
    gc.collect()
    before = rss()
    world = World(spread(consumers, streams))
    for _ in range(WARM_UP):
        world.read()
    spent = min(world.read() for _ in range(5))
    gc.collect()
    return {"us_per_sample": 1e6 * spent / consumers, "bytes_per_consumer": (rss() - before) / consumers}


def time_members(members: int) -> float:
    """Microseconds of a sample of one of so many idle members of one subject."""
    world = World([["orders.>"] * members])
    for _ in range(WARM_UP):
        world.read()
    return 1e6 * min(world.read() for _ in range(3)) / members


def time_busy(consumers: int, minutes: int) -> dict[str, float]:
    """Microseconds of a sample that moved, and resident bytes with so many consumers that never rest: after so many
    readings a minute apart and some minutes of readings INTERVAL apart; and after some OFTEN."""
    world = World(spread(consumers, math.ceil(consumers / IN_STREAM)))
    for turn in range(minutes):
        world.read(busy, turn, after=60.0)
    spent = min(world.read(busy, minutes + turn) for turn in range(LAST_READINGS))
    gc.collect()
    row = {"us_per_sample": 1e6 * spent / consumers, "bytes": rss()}
    for turn in range(LAST_READINGS):
        world.read(busy, minutes + LAST_READINGS + turn, after=OFTEN)
    gc.collect()
    return {**row, "bytes_read_often": rss()}


def measure_sampled(consumers: int) -> int:
    """Bytes more with so many consumers that are never idle and of which every ack is measured, 100 a second."""
    world = World(spread(consumers, 1))
    world.read(busy, 1)
    gc.collect()
    before = rss()
    for n in range(7000):
        world.time.mono += 0.01
        now = world.time.now()
        for _, samples in world.streams:
            for m, one in enumerate(samples):
                seconds = 0.005 * 1.002 ** ((n * 37 + m) % 3000)
                world.intake.hint(AckSeen(one.key, seconds, 1, now), now)
    gc.collect()
    return rss() - before


def time_decoding() -> float:
    """Microseconds of decoding a listed consumer."""
    data, decoder = page(PAGE), msgspec.json.Decoder(ListPage[ConsumerInfo])
    at = Now(1.0, 1.0)

    def once() -> float:
        start = time.process_time()
        for info in decoder.decode(data).consumers or ():
            sample("S", info, at, policy_metadata(info.config.metadata or {})[0])
        return time.process_time() - start

    return 1e6 * min(once() for _ in range(50)) / PAGE


def alone(measure: Callable[..., T], *arguments: int) -> T:
    """Measure in a fresh process: in this one, memory that was freed before would be used again."""
    with get_context("spawn").Pool(1, initializer=end_with_parent) as process:
        return process.apply(measure, arguments)


def main(size: Size = "full") -> Figures:
    scale = SCALES[size]
    figures: Figures = {"decoding a listed consumer": Figure(alone(time_decoding), "us of CPU")}
    for consumers, streams in scale.idle:
        progress(f"{consumers:,} idle consumers")
        row, name = alone(time_idle, consumers, streams), f"{consumers:,} idle consumers, in process"
        figures[f"{name}: judging a sample that says nothing new"] = Figure(row["us_per_sample"], "us of CPU")
        figures[f"{name}: memory per consumer"] = Figure(row["bytes_per_consumer"] / 1024, "KiB")
    for members in scale.members:
        name = f"{members} idle members of one subject: judging a sample"
        figures[name] = Figure(alone(time_members, members), "us of CPU")
    progress("busy consumers")
    few, many = scale.busy
    fewer, row = alone(time_busy, few, scale.minutes), alone(time_busy, many, scale.minutes)
    figures["judging a sample of a consumer that moves"] = Figure(row["us_per_sample"], "us of CPU")
    busy_name = "memory of a busy consumer and its subject after a day"
    one_more = {name: (row[name] - fewer[name]) / (many - few) / 1024 for name in ("bytes", "bytes_read_often")}
    figures[busy_name] = Figure(one_more["bytes"], "KiB", aim=15.0)
    figures[f"{busy_name}, read twice a second"] = Figure(one_more["bytes_read_often"], "KiB")
    sampled = (alone(measure_sampled, many) - alone(measure_sampled, few)) / (many - few)
    figures["memory of the ack metrics of a sampled consumer"] = Figure(sampled / 1024, "KiB", aim=15.0)
    return figures


if __name__ == "__main__":
    command(main)
