"""FakeBus: the ReplicaChannels of many replicas in memory, with loss, delay, cut links and suspended processes."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from nats_backpressure.adapters.nats.replica_channel import LONGEST, UNSENT
from tests.fakes.clock import FakeClock

Receive = Callable[[str, bytes], None]


def covers(pattern: str, topic: str) -> bool:
    """Whether a listener for `pattern`, which may end in `>`, gets a topic."""
    return topic.startswith(pattern[:-1]) and topic != pattern[:-1] if pattern.endswith(">") else topic == pattern


@dataclass
class FakeBus:
    """The channels of all replicas. What it draws is the same in every run of one seed."""

    clock: FakeClock
    seed: int = 1
    loss: float = 0.0
    """The share of messages that are lost, drawn for each receiver."""
    delay: tuple[float, float] = (0.0005, 0.0005)
    """Seconds that a message is under way, at least and at most. Messages of one sender never overtake each other."""
    cut: set[tuple[str, str]] = field(default_factory=set)
    """Pairs (from, to) of names between which every message is lost."""
    channels: dict[str, FakeReplicaChannel] = field(default_factory=dict)
    sent: list[tuple[str, str, bytes]] = field(default_factory=list)
    """Sender, topic and payload of each message, the oldest first, if `record` is set."""
    record: bool = False
    longest: int = LONGEST
    """Bytes of the longest message that the server takes."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._arrives: dict[tuple[str, str], float] = {}
        """When the last message between two replicas arrives."""
        self._under_way: set[asyncio.Task[None]] = set()

    def channel(self, name: str) -> FakeReplicaChannel:
        """The channel of a new process of this name; one of an earlier process gets nothing any more."""
        self.channels[name] = FakeReplicaChannel(self, name)
        return self.channels[name]

    def partition(self, *groups: Collection[str]) -> None:
        """Messages pass inside each group only; `heal` ends it."""
        group_of = {name: n for n, group in enumerate(groups) for name in group}
        names = list(self.channels)
        self.cut = {(a, b) for a in names for b in names if group_of.get(a) != group_of.get(b)}

    def heal(self) -> None:
        self.cut = set()

    def send(self, sender: FakeReplicaChannel, topic: str, payload: bytes) -> None:
        if self.record:
            self.sent.append((sender.name, topic, payload))
        for name, channel in self.channels.items():
            if channel is sender or (sender.name, name) in self.cut or self._random.random() < self.loss:
                continue
            at = self.clock.now().mono + self._random.uniform(*self.delay)
            at = self._arrives[sender.name, name] = max(at, self._arrives.get((sender.name, name), at))
            task = asyncio.ensure_future(self._deliver(channel, topic, payload, at))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _deliver(self, channel: FakeReplicaChannel, topic: str, payload: bytes, at: float) -> None:
        await self.clock.sleep(at - self.clock.now().mono)
        if self.channels.get(channel.name) is channel:  # else its process has ended
            channel.receive(topic, payload)


class FakeReplicaChannel:
    """The ReplicaChannel of one replica. While it is not `connected` it neither sends nor receives; while it is
    `suspended` it sends nothing, and what arrives waits and comes at once with `resume`."""

    def __init__(self, bus: FakeBus, name: str) -> None:
        self._bus, self.name = bus, name
        self.suspended, self._connected = False, True
        self._connected_at, self._suspended_at = bus.clock.now().mono, 0.0
        self.counted: Counter[str] = Counter()
        self._receivers: list[tuple[str, Receive]] = []
        self._waiting: list[tuple[str, bytes]] = []

    @property
    def connected(self) -> bool:
        return self._connected

    @connected.setter
    def connected(self, connected: bool) -> None:
        self._connected, self._connected_at = connected, self._bus.clock.now().mono

    def publish(self, topic: str, payload: bytes) -> bool:
        if not self.connected or len(payload) > self._bus.longest:
            self.counted[UNSENT] += 1
            return False
        if not self.suspended:  # a process that stands still sends nothing
            self._bus.send(self, topic, payload)
        return True

    def longest(self) -> int:
        return self._bus.longest

    def room(self) -> int:
        return self._bus.longest

    def listen(self, topic: str, receive: Receive) -> None:
        self._receivers.append((topic, receive))

    def listening_time(self, since: float) -> float:
        until = self._suspended_at if self.suspended else self._bus.clock.now().mono
        return max(0.0, until - max(since, self._connected_at)) if self._connected else 0.0

    def suspend(self) -> None:
        self.suspended, self._suspended_at = True, self._bus.clock.now().mono

    def resume(self) -> None:
        self.suspended = False
        waiting, self._waiting = self._waiting, []
        for topic, payload in waiting:
            self.receive(topic, payload)

    def receive(self, topic: str, payload: bytes) -> None:
        if self.suspended:
            self._waiting.append((topic, payload))
        elif self.connected:
            for pattern, receive in self._receivers:
                if covers(pattern, topic):
                    receive(topic, payload)
