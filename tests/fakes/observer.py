"""JetStream in memory, as far as the sidecar sees it: streams, pull consumers, and how their numbers change.

It does what real servers (2.9.10 to 2.15.1, tests/adapters/nats/test_observer.py) were seen to do:
- A purge moves `delivered` and `ack_floor` of every consumer to just before the first sequence left, without any
  delivery (`delivered_consumer` stays); what was in flight there is gone. Of a subject: only consumers of that subject.
- Eviction moves no `delivered`: `first_seq` passes it. What was in flight and is evicted counts as acknowledged.
  With nobody pulling, `pending` stays at what the stream holds.
- A pull that finds nothing more may move `delivered` to the stream's last sequence without a delivery, over what other
  filters take and what was deleted at the end; not always (`skips`). The floor follows with the next ack.
- A deleted message leaves `pending`, or in flight, by one; the sequences stay, first_seq too unless it was the first.
- A NAK changes nothing: the message stays in flight, and until a client pulls nothing shows it. The redelivery
  raises `delivered_consumer`, not `delivered_stream`, and `redelivered`.
- A TERM counts as an acknowledgement. `ack_floor` waits for gaps; `since_ack` shows every ack, gap or not.
- Nothing is redelivered, nor noted as delivered too often, unless a client pulls.
- A stream drops its oldest messages at its limits, on a publish, on an update and by age; under a limit per subject, or
  with a rollup, newer messages take the place of older ones.
- An acknowledged message leaves a work queue; it leaves an interest stream once every consumer that takes it has
  acknowledged it. What nobody takes is not stored there, and counts a sequence all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nats_backpressure.core.model.samples import ConsumerConfig, Retention, Sample, StreamLook
from nats_backpressure.protocol.patterns import covers
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.observations import (
    ConsumerGone,
    ConsumersReading,
    StreamGone,
    StreamsReading,
    Unavailable,
)
from tests.fakes.clock import FakeClock


@dataclass
class FakeConsumer:
    name: str
    created: str
    config: ConsumerConfig
    max_deliver: int = 0
    delivered_stream: int = 0
    delivered_consumer: int = 0
    floor: tuple[int, int] = (0, 0)
    """Stream and consumer sequence up to which all is acknowledged."""
    inflight: dict[int, int] = field(default_factory=dict)
    """Stream sequence to the consumer sequence of its first delivery."""
    deliveries: dict[int, int] = field(default_factory=dict)
    again: list[int] = field(default_factory=list)
    waiting: int = 0
    paused: bool = False
    active: float | None = None
    acked: float | None = None
    lost: int = 0
    """Messages that the stream dropped while they waited for this consumer."""
    withdrawn: int = 0
    """Messages that were deleted, purged or replaced while they waited."""

    def takes(self, subject: str) -> bool:
        return not self.config.filters or any(covers(f, subject) for f in self.config.filters)

    def settle(self, seq: int, at: float) -> None:
        """A message is in flight no more: acknowledged, terminated, deleted or evicted."""
        given = self.inflight.pop(seq, None)
        if given is None:
            return
        self.deliveries.pop(seq, None)
        self.again = [s for s in self.again if s != seq]
        self.acked = at
        if not self.inflight:
            self.floor = (self.delivered_stream, self.delivered_consumer)
        elif given == self.floor[1] + 1:
            self.floor = (seq, given)
            if behind := [s for s in self.inflight if s > seq]:
                self.floor = (min(behind) - 1, self.inflight[min(behind)] - 1)

    def skip_to(self, seq: int) -> None:
        """What a purge does: on to `seq`, without any delivery."""
        self.delivered_stream = max(self.delivered_stream, seq)
        if not self.inflight:
            self.floor = (self.delivered_stream, self.delivered_consumer)
        else:
            self.floor = (max(self.floor[0], seq), self.floor[1])


@dataclass
class FakeStream:
    name: str
    created: str
    subjects: tuple[str, ...]
    retention: Retention
    last_seq: int = 0
    first_seq: int = 0
    messages: dict[int, str] = field(default_factory=dict)
    stored_at: dict[int, float] = field(default_factory=dict)
    ends_at: dict[int, float] = field(default_factory=dict)
    """When a message with a life time of its own goes."""
    consumers: dict[str, FakeConsumer] = field(default_factory=dict)
    origin: str | None = None
    """The stream that it mirrors: then it shows no subjects."""

    def drop(self, seqs: list[int], at: float, *, lost: bool = False) -> None:
        for seq in seqs:
            if (subject := self.messages.pop(seq, None)) is None:
                continue
            self.stored_at.pop(seq, None)
            self.ends_at.pop(seq, None)
            for consumer in self.consumers.values():
                waits = seq > consumer.delivered_stream and consumer.takes(subject)
                consumer.lost += waits and lost
                consumer.withdrawn += waits and not lost
                consumer.settle(seq, at)
        self.first_seq = min(self.messages, default=self.last_seq + 1)

    def store(self, subject: str, at: float, rollup: bool, ttl: float | None = None) -> None:
        """A message arrives; what exceeds the limits is removed, or the message is rejected."""
        kept = self.retention
        if not kept.discards_old and 0 < kept.max_msgs <= len(self.messages):
            return
        self.last_seq += 1
        wanted = any(consumer.takes(subject) for consumer in self.consumers.values())
        if self.retention.policy == "interest" and not wanted:
            self.first_seq = min(self.messages, default=self.last_seq + 1)
            return
        replaced: list[int] = []
        if rollup or self.retention.per_subject:
            same = [seq for seq, other in self.messages.items() if other == subject]
            replaced = same if rollup else same[: max(0, len(same) + 1 - self.retention.per_subject)]
        self.messages[self.last_seq], self.stored_at[self.last_seq] = subject, at
        if ttl is not None:
            self.ends_at[self.last_seq] = at + ttl
        if replaced:
            self.drop(sorted(replaced), at)
        self.first_seq = self.first_seq if self.first_seq in self.messages else min(self.messages)
        self.shrink(at)

    def shrink(self, at: float) -> None:
        """Drop what is beyond the limits now."""
        kept = self.retention
        if not kept.max_age and not self.ends_at and not 0 < kept.max_msgs < len(self.messages):
            return
        seqs = sorted(self.messages)
        over = len(seqs) - kept.max_msgs if kept.max_msgs and kept.discards_old else 0
        old = [seq for seq in seqs if kept.max_age and at - self.stored_at[seq] >= kept.max_age]
        old += [seq for seq, end in self.ends_at.items() if at >= end]
        if going := sorted({*seqs[: max(0, over)], *old}):
            self.drop(going, at, lost=True)

    def acknowledged(self, seq: int, at: float) -> None:
        if (subject := self.messages.get(seq)) is None or self.retention.policy == "limits":
            return
        open_ = [c for c in self.consumers.values() if c.takes(subject)]
        if all(seq <= c.delivered_stream and seq not in c.inflight for c in open_):
            self.drop([seq], at)


class FakeJetStream:
    """The Observer in memory, with methods to change it. `down` makes every reading Unavailable, `hidden` consumers are
    listed as missing, `unreadable` ones as malformed, `unnamed` ones are left out without a name, `incomplete` readings
    show all they have and say that it may not be all, `skips` lets a pull that finds nothing more move the consumer to
    the end of the stream."""

    def __init__(self, clock: FakeClock | None = None) -> None:
        self.clock = clock or FakeClock()
        self.all: dict[str, FakeStream] = {}
        self.epoch = 1
        self.took = 0.001
        self.shows_time = True
        """Whether lists show the server's time, as from 2.10 on."""
        self.down: str | None = None
        self.hidden: set[ConsumerKey] = set()
        self.silent: set[ConsumerKey] = set()
        """Consumers that do not answer when they are read singly."""
        self.incomplete = False
        self.unreadable: set[ConsumerKey] = set()
        self.unnamed: set[ConsumerKey] = set()
        self.unlisted: set[str] = set()
        """Streams that lists name as missing."""
        self.skips = False
        self.asked: list[str] = []
        """What was read, in order: `streams`, `consumers S`, `consumer S c`."""
        self._born = 0

    # The Observer

    async def streams(self) -> StreamsReading:
        self._ask("streams")
        at = self.clock.now().wall if self.shows_time else None
        looks = tuple(self.look(name) for name in self.all if name not in self.unlisted)
        complete = not (self.incomplete or self.unlisted & self.all.keys())
        return StreamsReading(looks, complete, self.took, self.epoch, server_time=at)

    async def stream(self, name: str) -> StreamsReading:
        self._ask(f"stream {name}")
        self._stream(name)
        return StreamsReading((self.look(name),), False, self.took, self.epoch)

    async def consumers(self, stream: str, names: Sequence[str] = ()) -> ConsumersReading:
        if names:
            return self._singly(stream, names)
        self._ask(f"consumers {stream}")
        stored_stream = self._stream(stream)
        away = self.hidden | self.unreadable | self.unnamed
        shown = [c for c in stored_stream.consumers.values() if ConsumerKey(stream, c.name) not in away]

        def names(of: set[ConsumerKey]) -> tuple[str, ...]:
            return tuple(sorted(name for name in stored_stream.consumers if ConsumerKey(stream, name) in of))

        return ConsumersReading(
            look=self.look(stream),
            samples=tuple(self._sample(stored_stream, consumer) for consumer in sorted(shown, key=lambda c: c.name)),
            missing=names(self.hidden),
            complete=not self.incomplete,
            malformed=names(self.unreadable),
            took=self.took,
            epoch=self.epoch,
            unnamed=len(names(self.unnamed)),
        )

    def _singly(self, stream: str, names: Sequence[str]) -> ConsumersReading:
        samples: dict[str, Sample] = {}
        stored_stream = self._stream(stream)
        away = self.unreadable | self.unnamed | self.silent
        for name in names:
            self._ask(f"consumer {stream} {name}")
            if name in stored_stream.consumers and ConsumerKey(stream, name) not in away:
                samples[name] = self._sample(stored_stream, stored_stream.consumers[name])
        missing = tuple(name for name in names if name not in samples)
        self._ask(f"stream {stream}")
        look, found = self.look(stream), tuple(samples.values())
        return ConsumersReading(look, found, missing, False, (), self.took, self.epoch, partial=True)

    async def consumer(self, key: ConsumerKey) -> Sample:
        self._ask(f"consumer {key.stream} {key.consumer}")
        self.of(key)
        if key in self.unreadable | self.unnamed | self.silent:
            raise Unavailable("an impossible answer")
        return self._sample(self._stream(key.stream), self.of(key))

    # Methods that change it

    def of(self, key: ConsumerKey) -> FakeConsumer:
        consumer = self._stream(key.stream).consumers.get(key.consumer)
        if consumer is None:
            raise ConsumerGone("consumer not found")
        return consumer

    def add_stream(
        self, name: str, subjects: tuple[str, ...], *, max_msgs: int = 0, retention: Retention | None = None
    ) -> None:
        self.all[name] = FakeStream(name, self._birth(), subjects, retention or Retention(max_msgs=max_msgs))

    def update_stream(self, name: str, retention: Retention) -> None:
        stream = self._stream(name)
        stream.retention = retention
        stream.shrink(self._at())

    def look(self, name: str) -> StreamLook:
        """The stream alone, as STREAM.INFO shows it."""
        return _look(self._stream(name), self._at())

    def sample(self, key: ConsumerKey) -> Sample:
        """A consumer alone, as CONSUMER.INFO shows it."""
        return self._sample(self._stream(key.stream), self.of(key))

    def delete_stream(self, name: str) -> None:
        del self.all[name]

    def add_consumer(self, key: ConsumerKey, config: ConsumerConfig | None = None, *, max_deliver: int = 0) -> None:
        """A durable pull consumer that begins with the first message there is."""
        config = config or ConsumerConfig(max_ack_pending=1000)
        self._stream(key.stream).consumers[key.consumer] = FakeConsumer(
            key.consumer, self._birth(), config, max_deliver
        )

    def delete_consumer(self, key: ConsumerKey) -> None:
        del self._stream(key.stream).consumers[key.consumer]

    def publish(self, stream: str, subject: str, n: int = 1, *, rollup: bool = False, ttl: float | None = None) -> None:
        stored_stream = self._stream(stream)
        for _ in range(n):
            stored_stream.store(subject, self._at(), rollup, ttl)

    def pull(self, key: ConsumerKey, n: int) -> list[int]:
        """Up to n messages, those to be redelivered first; the stream sequences given."""
        stream, consumer = self._stream(key.stream), self.of(key)
        cap = consumer.config.max_ack_pending
        given: list[int] = []
        for seq in list(consumer.again):
            if len(given) < n:
                consumer.again.remove(seq)
                given += [seq] if self._deliver(consumer, seq) else []
        for seq in self._pending(stream, consumer):
            if len(given) == n or consumer.paused or (cap is not None and len(consumer.inflight) >= cap):
                break
            self._deliver(consumer, seq)
            given.append(seq)
        else:
            if self.skips and len(given) < n:
                consumer.delivered_stream = max(consumer.delivered_stream, stream.last_seq)
        return given

    def ack(self, key: ConsumerKey, *seqs: int) -> None:
        for seq in seqs:
            self.of(key).settle(seq, self._at())
            self._stream(key.stream).acknowledged(seq, self._at())

    term = ack

    def nak(self, key: ConsumerKey, *seqs: int) -> None:
        self.of(key).again += [seq for seq in seqs if seq in self.of(key).inflight]

    def time_out(self, key: ConsumerKey) -> None:
        """The ack wait of everything in flight is over."""
        self.nak(key, *self.of(key).inflight)

    def delete_message(self, stream: str, seq: int) -> None:
        self._stream(stream).drop([seq], self._at())

    def purge(self, stream: str, keep: int = 0, subject: str = ">") -> None:
        stored_stream = self._stream(stream)
        going = [seq for seq, s in sorted(stored_stream.messages.items()) if covers(subject, s)]
        if going or (subject == ">" and not keep):
            stored_stream.drop(going[: max(0, len(going) - keep)], self._at())
        left = [seq for seq, s in stored_stream.messages.items() if covers(subject, s)]
        for consumer in stored_stream.consumers.values():
            filters = consumer.config.filters
            if filters and all(covers(subject, f) for f in filters):
                consumer.skip_to(min(left, default=stored_stream.last_seq + 1) - 1)  # past other subjects, too
            elif consumer.takes(subject):
                consumer.skip_to(stored_stream.first_seq - 1)

    # Inside

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.down is not None:
            raise Unavailable(self.down)

    def _at(self) -> float:
        return self.clock.now().mono

    def _birth(self) -> str:
        self._born += 1
        return f"2026-01-01T00:00:00.{self._born:09d}Z"

    def _stream(self, name: str) -> FakeStream:
        if name not in self.all:
            raise StreamGone("stream not found")
        stream = self.all[name]
        stream.shrink(self._at())
        return stream

    def _deliver(self, consumer: FakeConsumer, seq: int) -> bool:
        if consumer.max_deliver and consumer.deliveries.get(seq, 0) >= consumer.max_deliver:
            consumer.inflight.pop(seq)  # the server drops it without an ack, and keeps counting it as redelivered
            return False
        consumer.delivered_consumer += 1
        consumer.delivered_stream = max(consumer.delivered_stream, seq)
        consumer.inflight.setdefault(seq, consumer.delivered_consumer)
        consumer.deliveries[seq] = consumer.deliveries.get(seq, 0) + 1
        consumer.active = self._at()
        return True

    @staticmethod
    def _pending(stream: FakeStream, consumer: FakeConsumer) -> list[int]:
        waiting = (s for s, subject in stream.messages.items() if consumer.takes(subject))
        return [seq for seq in waiting if seq > consumer.delivered_stream]

    def _sample(self, stream: FakeStream, consumer: FakeConsumer) -> Sample:
        now = self.clock.now()
        return Sample(
            key=ConsumerKey(stream.name, consumer.name),
            created=consumer.created,
            config=consumer.config,
            at=now,
            pending=len(self._pending(stream, consumer)),
            inflight=len(consumer.inflight),
            redelivered=sum(n > 1 for n in consumer.deliveries.values()),
            waiting=consumer.waiting,
            delivered_stream=consumer.delivered_stream,
            delivered_consumer=consumer.delivered_consumer,
            floor_stream=consumer.floor[0],
            floor_consumer=consumer.floor[1],
            since_delivery=None if consumer.active is None else now.mono - consumer.active,
            since_ack=None if consumer.acked is None else now.mono - consumer.acked,
            paused=consumer.paused,
        )


def _look(stream: FakeStream, now: float) -> StreamLook:
    kept, held = stream.retention, len(stream.messages)
    return StreamLook(
        name=stream.name,
        created=stream.created,
        first_seq=stream.first_seq,
        last_seq=stream.last_seq,
        messages=held,
        subjects=() if stream.origin else stream.subjects,
        origin=stream.origin,
        at_limit=0 < kept.max_msgs <= held and kept.discards_old,
        fill=min(1.0, held / kept.max_msgs) if kept.max_msgs else None,
        oldest_age=now - stream.stored_at[stream.first_seq] if held else None,
        retention=kept,
        consumers=len(stream.consumers),
    )
