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
        self.pulls: list[PullGrants] = []
        self.all: list[Replicas] = []
        for number in range(n):
            channel = bus.channel(str(number))
            self.all.append(Replicas(channel, clock, f"pod-{number}", f"id-{number}", counts))
            self.pulls.append(PullGrants(random.Random(number).random))
            SharedGrants(self.pulls[-1], self.all[-1], channel, clock, counts, reading_of)
