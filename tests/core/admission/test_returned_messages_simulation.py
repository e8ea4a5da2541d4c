"""Simulates workers that return messages with a delay, or drop them, on the JetStream of the pull simulation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import convert

from nats_backpressure.client.lost_messages import LostMessages
from nats_backpressure.core.admission.asked import Asked
from nats_backpressure.policy.schema import InflightRule, Policy
from nats_backpressure.protocol.requests import Due
from tests.core.admission.test_pull_simulation import JetStream, Simulation, Worker
from tests.simulations.granting_tracker import GrantingTracker


@dataclass
class Returning(Simulation):
    """Its workers report what they hold. Of each ten messages at their first `times` deliveries, so many are returned
    with the delay, and so many dropped."""

    returned: int = 0
    dropped: int = 0
    delays: tuple[float, ...] = (1.0,)
    times: int = 2
    deliveries: dict[int, int] = field(default_factory=dict)
    losses: dict[str, LostMessages] = field(default_factory=dict)
    tells: bool = True
    """Whether they report when what they lost comes back."""
    most: int = 0
    """Messages in flight after a pull."""

    def pull(self, worker: Worker, n: int) -> None:
        super().pull(worker, n)
        self.most = max(self.most, len(self.js.inflight))

    def finish(self, worker: Worker, message: int) -> None:
        worker.handled += 1
        n = self.deliveries[message] = self.deliveries.get(message, 0) + 1
        fate = (7 * message + 3 * n) % 10
        if n > self.times or fate >= self.returned + self.dropped:
            self.js.ack(message, self.now)
            return
        worker.lost += 1
        delay = self.delays[message % len(self.delays)] if fate < self.returned else None
        lost = self.losses.setdefault(worker.name, LostMessages())
        lost.add(self.js.deliveries[message], self.now, delay)
        if delay is not None:
            self.js.delay(message, delay, self.now)

    def ask(self, worker: Worker, ahead: int = 0) -> None:
        lost = self.losses.setdefault(worker.name, LostMessages())
        told = lost.fields(self.now)
        lost.answered()
        asked = Asked(
            worker.batch,
            worker.name,
            worker.unused,
            len(worker.holding),
            worker.lost,
            due=convert(told.get("due", ()), tuple[Due, ...]) if self.tells else None,
            earlier=convert(told.get("earlier", ()), tuple[Due, ...]),
        )
        grant = self.decisions.grant_to(asked, self.member, self.now, next(self.jitters))
        worker.unused = worker.lost = 0
        worker.asks_at = self.now + grant.wait
        worker.pulls = (self.now + worker.linger, grant.n) if grant.n else None
        self.note(grant)


def simulated(mark: int, returned: int, dropped: int, ack_wait: float = 6.0, **more) -> Returning:
    workers = [Worker(f"w{i}", 10, 0.01, 0.0, reports=True) for i in range(6)]
    policy = Policy(inflight=InflightRule(mark, mark, mark))
    js = JetStream(3000, 1000, ack_wait)
    return Returning(js, workers, policy, tick=0.01, returned=returned, dropped=dropped, **more)


@pytest.mark.parametrize(
    ("returned", "dropped", "delay", "ack_wait", "within"),
    [
        pytest.param(1, 0, 1.0, 6.0, 18.0, id="some returned with a delay"),
        pytest.param(3, 0, 1.0, 6.0, 36.0, id="many"),
        pytest.param(2, 0, 1.0, 30.0, 27.0, id="however long the ack wait is"),
        pytest.param(2, 0, 5.0, 30.0, 99.0, id="with a long delay"),
        pytest.param(0, 1, 1.0, 2.0, 25.0, id="some dropped"),
    ],
)
def test_messages_that_come_back_are_taken_up_soon_also_where_they_fill_the_mark(
    returned: int, dropped: int, delay: float, ack_wait: float, within: float
) -> None:
    """At best each is in flight for its delay (or ack wait) and what the readings lag, and 40 are in flight."""
    simulation = simulated(40, returned, dropped, ack_wait, delays=(delay,))
    assert simulation.run(4 * within) < within
    assert simulation.js.acked == 3000
    assert not simulation.too_many


@pytest.mark.parametrize("delay", [8.0, 20.0])
def test_while_workers_return_everything_the_mark_is_kept_and_after_that_all_is_taken_up_at_once(delay: float) -> None:
    """What they need is away, say, until the first messages come back."""
    simulation = simulated(40, 10, 0, ack_wait=30.0, delays=(delay,), times=1)
    simulation.js.messages = 440
    simulation.deliveries = dict.fromkeys(range(60, 440), 1)
    took = simulation.run(200.0)
    assert simulation.js.acked == 440
    assert took < 2 * delay + 3.0, took
    assert simulation.most <= 40


def test_one_that_comes_back_much_later_holds_back_none_that_are_due() -> None:
    """Of all delays the longest was told: the mark was empty of work for 25 s."""
    simulation = simulated(40, 10, 0, ack_wait=30.0, delays=(1.0, 1.0, 1.0, 25.0), times=1)
    simulation.js.messages = 440
    simulation.deliveries = dict.fromkeys(range(40, 440), 1)
    simulation.run(8.0)
    assert simulation.js.acked == 430
    assert simulation.most <= 40


def test_a_sidecar_that_started_since_learns_what_comes_back() -> None:
    """It was told to the one before, which was killed: it went by the ack wait, for 16 s after all were due."""
    simulation = simulated(40, 10, 0, ack_wait=60.0, delays=(15.0,), times=1)
    simulation.js.messages = 440
    simulation.deliveries = dict.fromkeys(range(40, 440), 1)
    simulation.run(5.0)
    simulation.decisions = GrantingTracker()
    simulation.run(18.0)
    assert simulation.js.acked >= 300
    assert simulation.most <= 41, "one more before all have told"


@pytest.mark.parametrize(("returned", "dropped"), [(10, 0), (0, 10), (5, 5)])
def test_with_backoff_what_comes_back_after_each_delivery_is_taken_up_soon_and_the_mark_is_kept(
    returned: int, dropped: int
) -> None:
    """The 40 messages that fill the mark come back after 1, 3 and 9 s, a delay 0.2 s earlier or later."""
    simulation = simulated(40, returned, dropped, delays=(0.8, 1.2), times=3)
    simulation.js.backoff = (1.0, 3.0, 9.0)
    simulation.js.messages = 80
    simulation.deliveries = dict.fromkeys(range(40, 80), 3)
    simulation.run(1 + 3 + 9 + 3.0)
    assert simulation.js.acked >= 75
    simulation.run(30.0)
    assert simulation.js.acked == 80
    assert simulation.most <= 40


@pytest.mark.parametrize("due", [(Due(5, 10_000),), (Due(5),), (), None, (Due(2, 10_000),)])
def test_what_one_that_leaves_has_lost_is_in_flight_until_it_comes_back(due: tuple[Due, ...] | None) -> None:
    simulation = simulated(10, 0, 0)
    simulation.sample()

    def ask(name: str, n: int, held: int) -> int:
        return simulation.decisions.grant_to(Asked(n, name, held=held), simulation.member, simulation.now, 0.0).n

    held = dict.fromkeys("ab", 0)
    for name in "abab":
        n = ask(name, 5 - held[name], held[name])
        held[name] += len(simulation.js.pull(n, simulation.now))
        simulation.now += 0.1
        simulation.sample()
    assert held == {"a": 5, "b": 5}
    asked = Asked(1, "a", held=0, lost=5, leaving=True, due=due)
    simulation.decisions.leave(asked, simulation.member.reading, simulation.now)
    assert ask("c", 5, 0) == 0


@given(
    mark=st.sampled_from([1, 5, 20, 40]),
    returned=st.integers(0, 6),
    dropped=st.integers(0, 3),
    delays=st.lists(st.sampled_from([0.05, 0.3, 1.0, 4.0, 12.0]), min_size=1, max_size=3),
    ack_wait=st.sampled_from([0.5, 2.0, 6.0]),
    backoff=st.sampled_from([(), (0.5, 2.0, 6.0), (2.0, 0.5)]),
    times=st.integers(1, 4),
    tells=st.booleans(),
    dies=st.lists(st.floats(0, 8), max_size=5),
    service=st.sampled_from([0.01, 0.05]),
    linger=st.sampled_from([0.0, 0.1, 0.5]),
)
# What one reported as lost was for a moment neither held nor to come, and so taken for one that is due.
@example(20, 4, 3, [0.3], 6.0, (), 3, True, [], 0.01, 0.0)
def test_the_mark_is_kept_whatever_is_returned_or_dropped(
    mark: int,
    returned: int,
    dropped: int,
    delays: list[float],
    ack_wait: float,
    backoff: tuple[float, ...],
    times: int,
    tells: bool,
    dies: list[float],
    service: float,
    linger: float,
) -> None:
    """Where some workers die, and where they do not tell how long a delay is. Then one longer than the ack wait looks
    like a dead worker once no ack moves."""
    delays = tuple(delay if tells and not dies else min(delay, (backoff or (ack_wait,))[0]) for delay in delays)
    simulation = simulated(mark, returned, dropped, ack_wait, delays=delays, times=times, tells=tells)
    simulation.js.backoff = backoff
    simulation.js.messages, simulation.tick = 200, 0.05
    for worker, until in zip(simulation.workers, [*dies, *[math.inf] * 6], strict=False):
        worker.dies, worker.service, worker.linger = until, service, linger
    simulation.run(30.0)
    assert not simulation.too_many
