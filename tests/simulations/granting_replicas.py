"""Some replicas that grant pulls of consumers, and tell each other what they grant."""

from __future__ import annotations

import random
from collections.abc import Callable

from nats_backpressure.core.model.reading import Reading
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.queries.pulls import PullGrants
from nats_backpressure.queries.shared_grants import SharedGrants
from nats_backpressure.runtime.ports import ServiceCounts
from nats_backpressure.runtime.replicas import Replicas
from tests.fakes.clock import FakeClock
from tests.fakes.replica_channel import FakeBus


class GrantingReplicas:
    def __init__(
        self,
        n: int,
        clock: FakeClock,
        bus: FakeBus,
        counts: ServiceCounts,
        reading_of: Callable[[ConsumerKey], Reading | None],
    ) -> None:
        self._clock, self._bus, self._counts, self._reading_of = clock, bus, counts, reading_of
        self._started = 0
        self.pulls: list[PullGrants] = []
        self.all: list[Replicas] = []
        for number in range(n):
            self.start(number)

    def start(self, number: int) -> None:
        """One more, or in the place of one that has ended."""
        channel, id_ = self._bus.channel(str(number)), f"id-{self._started}"
        self._started += 1
        replicas = Replicas(channel, self._clock, f"pod-{number}", id_, self._counts)
        pulls = PullGrants(random.Random(number).random)
        SharedGrants(pulls, replicas, channel, self._clock, self._counts, self._reading_of)
        self.all[number : number + 1], self.pulls[number : number + 1] = [replicas], [pulls]
