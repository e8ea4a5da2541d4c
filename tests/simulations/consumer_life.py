"""A simulated consumer, the subject evaluated from its readings, and loads for it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec.structs import replace

from nats_backpressure.core.model.member import NOTHING_CARRIED
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.signals.tracker import ConsumerTracker
from nats_backpressure.core.subject.inputs import ConsumerJoined, ConsumerRead, Tick
from nats_backpressure.core.subject.record import Record
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.values import Status
from tests.core.signals.test_tracker import KEY, Consumer
from tests.core.subject.test_step import World

QUIET = Policy(alert_on_active=False)
EVERY = 0.2


@dataclass
class Life:
    """A simulated consumer, and the subject evaluated from its readings, with a store that outlives it."""

    policy: Policy = QUIET
    consumer: Consumer = field(default_factory=lambda: Consumer(cap=10_000))

    def __post_init__(self) -> None:
        self.world = World(policy=self.policy, at=self.consumer.at)

    def see(self, after: float = EVERY) -> Reading:
        reading = self.consumer.read(after)
        self.world.at = self.consumer.at
        self.world.feed(ConsumerJoined(KEY, self.policy))
        self.world.feed(ConsumerRead(reading))
        self.world.feed(Tick())
        self.world.perform()
        return reading

    def watch(self, seconds: float, each: Callable[[Consumer], None] = lambda consumer: None) -> Reading:
        for _ in range(round(seconds / EVERY)):
            each(self.consumer)
            reading = self.see()
        return reading

    def restart(self, down: float = 2.0) -> None:
        """Killed, and back after `down` seconds in which the world stood still."""
        self.consumer.at += down
        self.world.at = self.consumer.at
        self.world.start()
        self.consumer.track = ConsumerTracker(carried=self.world.state.carried.get(KEY, NOTHING_CARRIED))

    @property
    def stored(self) -> Record:
        assert self.world.stored is not None
        return self.world.stored

    @property
    def status(self) -> Status:
        return self.stored.status

    @property
    def shown(self) -> tuple[object, ...]:
        record = self.stored
        alerts = tuple(replace(alert, held=0.0) for alert in record.alerts)  # that goes on with each write
        return record.status, record.reasons, record.incident, alerts, record.override


Step = Callable[[Consumer], None]


def nothing(consumer: Consumer) -> None:
    """Nobody works, nothing comes."""


def work(n: int) -> Step:
    """Each time n messages come, and as many are taken and acknowledged."""

    def step(consumer: Consumer) -> None:
        consumer.publish(n)
        consumer.deliver(n)
        consumer.ack(n)

    return step


def steady(chance: random.Random) -> Step:
    """So many messages come each time, so many are taken, so many acknowledged, for as long as there are any."""
    comes, takes = chance.choice([0, 1, 5, 40]), chance.choice([0, 1, 5, 40])
    acks, asks = chance.choice([0, takes, takes, takes]), chance.choice([0, 1])

    def step(consumer: Consumer) -> None:
        consumer.publish(comes)
        free = (consumer.cap or 0) - consumer.inflight
        if taken := min(takes, free, consumer.last - max(consumer.delivered, consumer.first - 1)):
            consumer.deliver(taken)
        if done := min(acks, consumer.inflight):
            consumer.ack(done)
        consumer.waiting = asks

    return step
