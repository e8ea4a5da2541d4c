"""Simulates callers, gateways, a stream, a worker and the adaptive loop with a computed clock, and measures the result.

Samples go through the real windows, so measured rates lag as on a real server. The tests use it too."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

from nats_backpressure.client.cached_admission import WatchedState
from nats_backpressure.core.admission import adaptive
from nats_backpressure.core.admission.offered_load import OfferedLoad, with_report
from nats_backpressure.core.model.member import Latches
from nats_backpressure.core.model.samples import ConsumerConfig, Sample, StreamLook
from nats_backpressure.core.signals.tracker import ConsumerTracker
from nats_backpressure.core.status import latches, thresholds
from nats_backpressure.policy.schema import AdmissionRule, Policy
from nats_backpressure.protocol.messages import State
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Priority, Status

KEY = ConsumerKey("S", "c")
TICK = 0.01
EPOCH = 1000.0


@dataclass(frozen=True)
class Scenario:
    """One scenario; loads and shares are in units of the worker's capacity, times in seconds."""

    load: tuple[tuple[float, float], ...] = ((0.0, 0.5), (10.0, 10.0))
    """From when on how much is offered, without retries."""
    seconds: float = 120.0
    capacity: float = 100.0
    target: float = 2.0
    floor: float = 0.01
    gateways: int = 1
    watching: bool = False
    """Whether they watch the state and decide as our client does, or ask."""
    reports: float = 0.0
    """The share of the gateways that report, each once a second."""
    direct: float = 0.0
    """The share of the load that comes from producers that use no gateway."""
    interval: float = 0.1
    """Seconds between samples; answers are cached for as long."""
    delay: float = 0.2
    """Seconds until a gateway can see a decision."""
    service: str = "fixed"
    """`fixed` or `exponential` times, one after the other; `batches` of 50, acknowledged together."""
    hold: int = 10
    """Messages the worker holds at once."""
    down: tuple[float, float] | None = None
    """When the worker is dead; what it held comes again after."""
    slow: tuple[float, float] | None = None
    """From when on the worker has this share of its speed."""
    blind: tuple[float, float] | None = None
    """When nothing can be read."""
    retries: int = 0
    """How often a refused caller comes back, each time after Retry-After and up to half of it more."""
    priorities: tuple[tuple[Priority, float], ...] = (("normal", 1.0),)
    seed: int = 1


OVERLOAD = 10.0
"""When most scenarios become too much for the worker."""


def to(load: float, **more: Any) -> Scenario:
    """Half of what can be got through, then so many times it."""
    return Scenario(((0.0, 0.5), (OVERLOAD, load)), **more)


CALM = {
    "half the capacity": to(0.5),
    "nine tenths of it, times vary": to(0.9, service="exponential"),
    "all of it": to(1.0),
}
HELD = {
    "1.2x": to(1.2),
    "3x": to(3),
    "10x": to(10),
    "10x, times vary": to(10, service="exponential"),
    "10x, reports": to(10, reports=1.0),
    "10x, 20 gateways": to(10, gateways=20),
    "10x, 20 gateways, reports": to(10, gateways=20, reports=1.0),
    "10x, 20 gateways, 5 report": to(10, gateways=20, reports=0.25),
    "10x, 3 retries": to(10, retries=3),
    "10x, 20 gateways, retries, times vary": to(10, gateways=20, retries=3, service="exponential"),
    "10x, three priorities": to(10, priorities=(("low", 0.3), ("normal", 0.5), ("high", 0.2))),
    "10x, all low": to(10, priorities=(("low", 1.0),)),
    "10x, all high": to(10, priorities=(("high", 1.0),)),
    "10x, 1000/s": to(10, capacity=1000.0, seconds=60.0),
    "3x, 30 % without a gateway": to(3, direct=0.3),
    "3x, 30 % without a gateway, reports": to(3, direct=0.3, reports=1.0),
    "10x, 5 % without a gateway": to(10, direct=0.05),
    "10x, down to 0.5x, 10x": Scenario(((0.0, 0.5), (10.0, 10.0), (40.0, 0.5), (80.0, 10.0))),
    "10x, down to 3x, 10x": Scenario(((0.0, 0.5), (10.0, 10.0), (40.0, 3.0), (80.0, 10.0))),
    "10x, silence, 10x": Scenario(((0.0, 0.5), (10.0, 10.0), (40.0, 0.0), (75.0, 10.0))),
    "10x, nothing read for 30 s": to(10, blind=(40.0, 70.0)),
    "10x, twice as fast later": to(10, slow=(50.0, 2.0)),
}
ROUGH = {
    "10x, read each 0.5 s": to(10, interval=0.5),
    "10x, read each second": to(10, interval=1.0),
    "3x, 30 % without a gateway, read each second": to(3, direct=0.3, interval=1.0),
    "10x, decisions arrive after a second": to(10, delay=1.0),
    "10x, batches of 50": to(10, service="batches"),
    "10x, 5/s": to(10, capacity=5.0, hold=1),
    "10x, worker dead for 15 s": to(10, down=(50.0, 65.0)),
    "3x, worker dead for 15 s, reports": to(3, down=(50.0, 65.0), reports=1.0),
    "10x, half as fast later": to(10, slow=(50.0, 0.5)),
    "10x, a target of 0.5 s": to(10, target=0.5),
    "50x": to(50),
}
"""Where reaction is slower than the flood: what comes before the first answer cannot be taken back."""


@dataclass
class Gateway:
    report: bool
    watched: WatchedState | None = None
    """What it decides by, where it watches the state itself."""
    known: adaptive.Shedding = adaptive.OPEN
    until: float = -math.inf
    saved: defaultdict[Priority, float] = field(default_factory=lambda: defaultdict(float))
    """Fractions of an admission by priority, so that admissions are spread evenly rather than by dice."""
    offered: int = 0
    admitted: int = 0
    due: float = 0.0


class Simulation:
    def __init__(self, scenario: Scenario) -> None:
        self.s = s = scenario
        self.random_numbers = random.Random(s.seed)
        self.policy = Policy(admission=AdmissionRule("adaptive", s.floor, s.target))
        self.now = 0.0
        self.queue: deque[float] = deque()
        self.held: deque[float] = deque()
        self.done_at = math.inf
        self.delivered = self.acked = self.published = self.arrived = 0
        self.was_down = False
        self.gateways = [
            Gateway(
                n < s.reports * s.gateways,
                WatchedState("s", State("s", "inactive", action="continue")) if s.watching else None,
                due=n / s.gateways,
            )
            for n in range(s.gateways)
        ]
        self.returning: dict[int, Counter[tuple[int, Priority]]] = {}
        self.track = ConsumerTracker()
        self.offered: OfferedLoad | None = None
        self.shedding, self.published_shedding = adaptive.OPEN, deque([(-math.inf, adaptive.OPEN)])
        self.latches, self.status = Latches(), Status.INACTIVE
        self.waits: list[tuple[float, float]] = []
        """When a message was through, and how long that took since it was published."""
        self.acks_at: list[float] = []
        self.backlogs: list[tuple[float, int]] = []
        self.statuses: list[tuple[float, Status]] = [(0.0, Status.INACTIVE)]
        self.shed: list[float] = []
        """When a request was refused."""
        self.ratios: list[tuple[float, float]] = []
        self.retry_afters: list[tuple[float, int]] = []

    def run(self) -> Simulation:
        sampled = 0
        for tick in range(round(self.s.seconds / TICK)):
            self.now = tick * TICK
            self.call(tick)
            self.work()
            if self.now >= sampled * self.s.interval - 1e-9:
                sampled += 1
                self.sample()
        return self

    def load(self) -> float:
        return next(x for at, x in reversed(self.s.load) if at <= self.now) * self.s.capacity

    def call(self, tick: int) -> None:
        """New callers and those who come back, each at one of the gateways; and producers that use no gateway."""
        load = self.load() * TICK
        self.publish(self.poisson(load * self.s.direct))
        calls = self.returning.pop(tick, Counter())
        new = self.poisson(load * (1 - self.s.direct))
        names, weights = zip(*self.s.priorities, strict=True)
        for name in self.random_numbers.choices(names, weights, k=new) if len(names) > 1 else names * new:
            calls[0, name] += 1
        for (attempt, priority), n in calls.items():
            for _ in range(n):
                self.ask(self.random_numbers.choice(self.gateways), attempt, priority)
        for gateway in self.gateways:
            if gateway.report and self.now >= gateway.due:
                gateway.due += 1.0
                self.offered = with_report(self.offered, gateway.offered, gateway.admitted, 1.0, EPOCH + self.now)
                gateway.offered = gateway.admitted = 0

    def ask(self, gateway: Gateway, attempt: int, priority: Priority) -> None:
        if self.now >= gateway.until:
            gateway.known = next(
                decision for at, decision in reversed(self.published_shedding) if at <= self.now - self.s.delay
            )
            gateway.until = self.now + self.s.interval
        gateway.offered += 1
        if self.admits(gateway, priority):
            gateway.admitted += 1
            self.publish(1)
            return
        self.shed.append(self.now)
        if attempt < self.s.retries:
            after = gateway.known.retry_after * self.random_numbers.uniform(1.0, 1.5)
            self.returning.setdefault(round((self.now + after) / TICK) + 1, Counter())[attempt + 1, priority] += 1

    def admits(self, gateway: Gateway, priority: Priority) -> bool:
        ratio = gateway.known.ratio
        if gateway.watched is not None:
            return ratio >= 1 or gateway.watched.admit(ratio, priority, EPOCH + self.now)
        gateway.saved[priority] += adaptive.priority_share(ratio, priority, self.s.floor)
        if gateway.saved[priority] < 1 - 1e-9:
            return False
        gateway.saved[priority] -= 1
        return True

    def publish(self, n: int) -> None:
        self.published += n
        self.queue.extend([self.now] * n)

    def work(self) -> None:
        down = self.s.down is not None and self.s.down[0] <= self.now < self.s.down[1]
        if down:
            self.was_down, self.done_at = True, math.inf
            return
        if self.was_down:
            self.was_down = False
            self.delivered += len(self.held)
        if self.done_at == math.inf:
            self.take(self.now)
        while self.done_at <= self.now:
            at = self.done_at
            for _ in range(len(self.held) if self.s.service == "batches" else 1):
                self.acked += 1
                self.acks_at.append(at)
                self.waits.append((at, at - self.held.popleft()))
            self.take(at)

    def take(self, at: float) -> None:
        """Fill up what is held, and begin with the next one."""
        room = (50 if self.s.service == "batches" else self.s.hold) - len(self.held)
        for _ in range(min(room, len(self.queue))):
            self.held.append(self.queue.popleft())
            self.delivered += 1
        rate = self.s.capacity * (self.s.slow[1] if self.s.slow and at >= self.s.slow[0] else 1.0)
        took = self.random_numbers.expovariate(rate) if self.s.service == "exponential" else 1 / rate
        n = len(self.held) if self.s.service == "batches" else 1
        self.done_at = at + took * n if self.held else math.inf

    def sample(self) -> None:
        self.backlogs.append((self.now, len(self.queue)))
        if self.s.blind and self.s.blind[0] <= self.now < self.s.blind[1]:
            return
        at = Now(EPOCH + self.now, EPOCH + self.now)
        taken = self.published - len(self.queue)
        config = ConsumerConfig(max_ack_pending=1000)
        sample = Sample(
            KEY, "t", config, at, len(self.queue), len(self.held), 0, 1, taken, self.delivered, self.acked, self.acked
        )
        reading = self.track.add_sample(sample, StreamLook("S", "t", 1, self.published, self.published, ("s",)))
        assert not isinstance(reading, str), reading
        self.shedding = adaptive.next_shedding(self.shedding, self.policy, [reading], self.offered, at)
        self.published_shedding.append((self.now, self.shedding))
        while len(self.published_shedding) > 2 and self.published_shedding[1][0] < self.now - self.s.delay - 1:
            self.published_shedding.popleft()
        self.latches = latches.next_latches(self.latches, reading, thresholds.marks(self.policy, reading), self.policy)
        now = latches.status(self.latches, self.policy)
        now = max(now, Status.WARNING) if self.shedding.shedding else now
        if now is not self.statuses[-1][1]:
            self.statuses.append((self.now, now))
        self.ratios.append((self.now, self.shedding.ratio))
        self.retry_afters.append((self.now, self.shedding.retry_after))

    def poisson(self, mean: float) -> int:
        n, product, limit = 0, self.random_numbers.random(), math.exp(-mean)
        while product > limit:
            n += 1
            product *= self.random_numbers.random()
        return n

    def goodput(self, start: float, end: float = math.inf) -> float:
        """What was got through, as a share of what the worker could have done."""
        end = min(end, self.s.seconds)
        could = (end - start) * self.s.capacity
        if self.s.down:
            could -= max(0.0, min(end, self.s.down[1]) - max(start, self.s.down[0])) * self.s.capacity
        if self.s.slow:
            could -= max(0.0, end - max(start, self.s.slow[0])) * self.s.capacity * (1 - self.s.slow[1])
        return sum(start <= at < end for at in self.acks_at) / could

    def busy(self, start: float) -> float:
        """The goodput over the time in which more was offered than can be got through."""
        bounds = [*(at for at, _ in self.s.load), self.s.seconds]
        spans = [(max(a, start), b) for a, b, (_, x) in zip(bounds, bounds[1:], self.s.load, strict=False) if x > 1]
        return min(self.goodput(a, b) for a, b in spans if a < b)

    def wait(self, start: float, end: float = math.inf, share: float = 0.99) -> float:
        """The quantile of the time from publish to ack, in units of the target."""
        waits = sorted(took for at, took in self.waits if start <= at < end)
        return waits[int(share * (len(waits) - 1))] / self.s.target if waits else 0.0

    def highest(self, start: float, end: float = math.inf) -> float:
        """The largest backlog in units of the target."""
        return max(n for at, n in self.backlogs if start <= at < end) / (self.s.capacity * self.s.target)

    def moves(self) -> tuple[int, int]:
        """The most rises, and the most falls, of the status in any minute."""
        pairs = zip(self.statuses, self.statuses[1:], strict=False)
        reading = [(at, now > was) for (_, was), (at, now) in pairs]
        return _most(reading, True), _most(reading, False)

    def whole(self) -> bool:
        """Whether nothing that was published is lost."""
        return self.published == self.acked + len(self.held) + len(self.queue)


def _most(reading: list[tuple[float, bool]], up: bool) -> int:
    times = [at for at, rose in reading if rose is up]
    return max((sum(at <= other < at + 60 for other in times) for at in times), default=0)
