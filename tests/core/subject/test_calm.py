"""Once a load stays calm, its incident ends and does not return, whatever the windows still contain."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Status
from tests.core.signals.test_tracker import Consumer
from tests.simulations.consumer_life import Life
from tests.support.exploring import examples

pytestmark = pytest.mark.no_cover  # whole lives in memory: traced they take four times as long

LOOK = 0.1
RISES = ("backpressure_warning", "backpressure_active")


@dataclass
class Workshop:
    """Messages one by one: each is taken when a worker is free, and acknowledged when its time is up."""

    sampled: bool
    advisories: bool = True
    workers: int = 1
    pulls: bool = True
    life: Life = field(default_factory=lambda: Life(consumer=Consumer(cap=1000)))
    waits: list[float] = field(default_factory=list)
    """How long each waiting message will take."""
    busy: list[tuple[float, float]] = field(default_factory=list)
    """When each message at work will be done, and when it was taken."""
    returned: list[float] = field(default_factory=list)
    """When each message that was handed back comes again."""
    statuses: list[Status] = field(default_factory=list)

    @property
    def consumer(self) -> Consumer:
        return self.life.consumer

    @property
    def events(self) -> list[str]:
        return [kind for kind in self.life.world.published if kind in (*RISES, "recovery")]

    def arrive(self, *seconds: float) -> None:
        self.consumer.publish(len(seconds))
        self.waits += seconds

    def hand_back(self, delay: float) -> None:
        """The newest message at work is NAKed with a delay."""
        self.busy.pop()
        self.returned.append(self.consumer.at + delay)
        self.consumer.last_delivery = self.consumer.at
        if self.advisories:
            self.consumer.track.nak_seen(Now(self.consumer.at, self.consumer.at))

    def step(self) -> None:
        """LOOK passes: what is done is acknowledged, who is free takes the next, and the sidecar looks."""
        consumer = self.consumer
        now = consumer.at
        for done, taken in [one for one in self.busy if one[0] <= now]:
            self.busy.remove((done, taken))
            consumer.ack(1)
            if self.sampled:
                consumer.track.ack_seen(done - taken, 1, Now(now, now))
        while self.waits and len(self.busy) < self.workers:
            self.busy.append((now + self.waits.pop(0), now))
            consumer.deliver(1)
        consumer.waiting = int(self.pulls and len(self.busy) < self.workers)
        self.life.see(LOOK)
        self.statuses.append(self.life.status)

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / LOOK)):
            self.step()


def rises(statuses: list[Status]) -> int:
    return sum(b > a for a, b in pairwise(statuses))


@pytest.mark.parametrize("sampled", [True, False], ids=["sampled", "estimated"])
def test_after_an_incident_a_message_now_and_then_is_no_news(sampled: bool) -> None:
    shop = Workshop(sampled, workers=30)
    for _ in range(20):
        shop.arrive(*[8.0] * 3)
        shop.run(1.0)
    shop.run(9.0)
    assert max(shop.statuses) >= Status.WARNING
    shop.statuses.clear()
    for _ in range(30):
        shop.arrive(0.05)
        shop.run(3.0)
    assert rises(shop.statuses) == 0
    assert shop.events.count("recovery") == 1
    assert shop.life.status is Status.INACTIVE


def test_acks_that_are_still_slow_do_set_the_latch() -> None:
    shop = Workshop(True, workers=50)
    for _ in range(30):
        shop.arrive(*[6.0] * 2)
        shop.run(1.0)
    assert "latency_p95" in shop.life.stored.reasons
    assert shop.events == ["backpressure_warning"]


times = st.sampled_from([0.05, 0.2, 1.0, 4.0, 8.0])
bursts = st.lists(st.tuples(st.integers(0, 60), times, st.floats(0.2, 8.0)), min_size=1, max_size=6)


@settings(max_examples=examples(60, most=1200, why="0.1 s each: minutes of traffic, message by message"))
@given(bursts, st.booleans(), st.sampled_from([1, 5, 40]), st.lists(st.floats(0.3, 4.0), min_size=8, max_size=20))
def test_when_the_load_is_calm_for_good_the_status_only_falls(
    trouble: list[tuple[int, float, float]], sampled: bool, workers: int, gaps: list[float]
) -> None:
    shop = Workshop(sampled, workers=workers)
    for number, seconds, pause in trouble:
        shop.arrive(*[seconds] * number)
        shop.run(pause)
    for _ in range(100):  # what the trouble left is done, at most 100 s later
        shop.waits[:] = [min(one, 0.05) for one in shop.waits]
        if not shop.waits and not shop.busy:
            break
        shop.run(1.0)
    shop.statuses.clear()
    for gap in gaps:
        shop.arrive(0.05)
        shop.run(gap)
    shop.run(12.0)
    assert rises(shop.statuses) == 0
    assert shop.life.status is Status.INACTIVE


@pytest.mark.parametrize("sampled", [True, False], ids=["sampled", "not sampled"])
@pytest.mark.parametrize("pulls", [True, False], ids=["pulls", "does not pull"])
@pytest.mark.parametrize("after", [0.0, 1.0], ids=["at once", "after a second"])
def test_a_message_returned_with_a_delay_is_no_stall(sampled: bool, pulls: bool, after: float) -> None:
    shop = Workshop(sampled, pulls=pulls)
    shop.arrive(0.05)
    shop.run(20.0)
    shop.arrive(1000.0)
    shop.step()
    shop.run(after)
    shop.hand_back(120.0)
    shop.run(115.0)
    assert shop.events == []
    assert shop.life.see().stall == 0


@pytest.mark.parametrize("after", [0.0, 1.0], ids=["at once", "after a second"])
def test_nor_is_it_while_advisories_are_lost_and_the_worker_pulls(after: float) -> None:
    shop = Workshop(False, advisories=False)
    shop.arrive(0.05)
    shop.run(20.0)
    shop.arrive(1000.0)
    shop.step()
    shop.run(after)
    shop.hand_back(120.0)
    shop.run(115.0)
    assert shop.events == []
    assert shop.life.see().stall == 0


@pytest.mark.parametrize("pulls", [True, False], ids=["pulls", "does not pull"])
def test_nor_is_it_after_a_restart(pulls: bool) -> None:
    shop = Workshop(False, pulls=pulls)
    shop.arrive(0.05)
    shop.run(20.0)
    shop.arrive(1000.0)
    shop.step()
    shop.hand_back(120.0)
    shop.run(5.0)
    shop.life.restart()
    shop.run(100.0)
    assert shop.events == []


def test_a_message_that_is_returned_again_and_again_is_no_stall() -> None:
    shop = Workshop(False)
    shop.arrive(1000.0)
    shop.step()
    for _ in range(10):
        shop.hand_back(15.0)
        shop.run(15.0)
        shop.consumer.given += 1  # it comes again
        shop.consumer.redelivered = 1
        shop.consumer.last_delivery = shop.consumer.at
        shop.busy.append((1e9, shop.consumer.at))
        shop.step()
    assert shop.events == []


@pytest.mark.parametrize("workers", [1, 5], ids=["no pull waits", "others pull"])
def test_a_hung_worker_is_still_seen(workers: int) -> None:
    shop = Workshop(False, workers=workers)
    shop.arrive(0.05)
    shop.run(5.0)
    shop.arrive(*[1e9] * 2)
    shop.run(5.5 if workers == 1 else 29.0)
    if workers > 1:  # the ack wait is over, and the server hands it out again
        shop.consumer.given += 2
        shop.consumer.redelivered = 2
        shop.consumer.at += 2.0
        shop.consumer.last_delivery = shop.consumer.at
        shop.run(6.0)
    assert "stalled" in shop.life.stored.reasons


def test_a_message_that_hangs_after_it_was_returned_is_seen() -> None:
    shop = Workshop(False)
    shop.arrive(1000.0)
    shop.step()
    shop.hand_back(15.0)
    shop.run(15.0)
    shop.consumer.given += 1
    shop.consumer.redelivered = 1
    shop.consumer.last_delivery = shop.consumer.at
    shop.busy.append((1e9, shop.consumer.at))
    shop.run(4.0)
    assert shop.events == []
    shop.run(2.0)
    assert shop.events == ["backpressure_warning"]


def test_a_nak_now_and_then_does_not_hold_a_latch_for_ever() -> None:
    shop = Workshop(False, workers=3, pulls=False)
    shop.arrive(*[8.0] * 6)
    shop.run(17.0)
    assert "latency_p95" in shop.life.stored.reasons
    for n in range(60):
        shop.arrive(*[0.3] * 9)  # nearly always something in flight
        if n % 10 == 0:
            shop.consumer.track.nak_seen(Now(shop.consumer.at, shop.consumer.at))
        shop.run(1.0)
    assert shop.life.status is Status.INACTIVE
