"""The server is away for a while, and nobody can work: what that alone causes is no overload."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nats_backpressure.core.signals.outages import RECONNECT
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.values import Diagnosis, EventType, Status
from tests.core.subject.test_restart import DYNAMIC, EVERY, WAYS, Way, started
from tests.simulations.consumer_life import QUIET, Consumer, Life, Step

MONITORING = (EventType.MONITORING_LOST, EventType.MONITORING_RESTORED)


def held(n: int, keep: int, waiting: int = 0) -> Step:
    """Each time n messages come and are taken, and what is in flight beyond `keep` is acknowledged."""

    def step(consumer: Consumer) -> None:
        consumer.publish(n)
        consumer.deliver(n)
        consumer.ack(max(0, consumer.inflight - keep))
        consumer.waiting = waiting

    return step


def behind(n: int, backlog: int) -> Step:
    """A worker that keeps up beside a backlog."""

    def step(consumer: Consumer) -> None:
        consumer.publish(n + (0 if consumer.last else backlog))
        consumer.deliver(n)
        consumer.ack(n)

    return step


LOADS = {
    "many in flight for a moment": held(20, 20),
    "few in flight for a second": held(1, 5),
    "pulls wait": held(1, 5, waiting=1),
    "a backlog below the mark": behind(20, 500),
    "a backlog just below the mark": behind(20, 900),
    "a backlog above the mark": behind(100, 1500),
}
POLICIES = {"the default": Policy(), "one signal": replace(QUIET, active_signals=1), "a mark that follows": DYNAMIC}


def away(life: Life, seconds: float) -> None:
    life.consumer.at += seconds
    life.world.at = life.consumer.at


def changes(life: Life) -> list[tuple[EventType, Status, tuple[str, ...]]]:
    return [(one.type, one.now, one.reasons) for one in life.world.stream if one.type not in MONITORING]


@pytest.mark.parametrize("policy", POLICIES.values(), ids=list(POLICIES))
@pytest.mark.parametrize("load", LOADS.values(), ids=list(LOADS))
@pytest.mark.parametrize("down", [1.0, 3.0, 7.0, 20.0, 60.0])
@pytest.mark.parametrize("back", [0.0, 2.5], ids=["workers are back at once", "workers connect later"])
@pytest.mark.no_cover  # traced, it takes four times as long
def test_workers_that_go_on_after_an_outage_are_no_overload(
    policy: Policy, load: Step, down: float, back: float
) -> None:
    life = Life(policy)
    life.watch(20.0, load)
    before = changes(life)
    away(life, down)
    if back:
        life.watch(back)
    life.watch(20.0, load)
    assert changes(life) == before


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.why)
@pytest.mark.parametrize("down", [3.0, 20.0])
@pytest.mark.no_cover  # traced, it takes four times as long
def test_an_outage_ends_nothing_that_goes_on(way: Way, down: float) -> None:
    life = started(way)
    before, shown = changes(life), life.shown
    away(life, down)
    life.watch(15.0, way.each)
    assert (changes(life), life.shown) == (before, shown)


@pytest.mark.parametrize("down", [3.0, 20.0])
def test_workers_that_were_gone_before_an_outage_and_return_after_it_were_not_gone_for_long(down: float) -> None:
    life = Life()
    life.watch(20.0, behind(20, 1500))
    before = changes(life)
    life.watch(4.0)
    away(life, down)
    life.watch(2.5)
    life.watch(20.0, behind(20, 1500))
    assert changes(life) == before


def seconds_until_active(down: float) -> float:
    """After workers have gone, in an outage of so many seconds; less this time."""
    life = Life(replace(QUIET, drain_seconds=replace(QUIET.drain_seconds, overload=1e6)))
    life.watch(20.0, behind(20, 1500))
    assert life.status is Status.WARNING
    away(life, down)
    since = life.consumer.at
    while life.status is not Status.ACTIVE:
        assert life.see().at.mono - since < 60.0
    assert life.stored.reasons == ("pending", "nobody_pulling")
    return life.consumer.at - since


@pytest.mark.parametrize("down", [3.0, 20.0])
def test_workers_that_do_not_return_are_found_to_be_gone_a_moment_later_than_without_an_outage(down: float) -> None:
    assert seconds_until_active(down) <= seconds_until_active(0.0) + RECONNECT + EVERY


@pytest.mark.parametrize("intervals", [(0.2,) * 10 + (2.1,), (0.4, 0.4, 0.4, 2.6), (0.2,) * 20 + (2.1,)])
def test_workers_that_do_not_return_are_found_though_the_sidecar_stands_still_every_few_seconds(
    intervals: tuple[float, ...],
) -> None:
    life = Life(replace(QUIET, drain_seconds=replace(QUIET.drain_seconds, overload=1e6)))
    life.watch(20.0, behind(20, 1500))
    since = life.consumer.at
    for interval in intervals * 40:
        life.see(interval)
        if life.status is Status.ACTIVE:
            break
    assert life.status is Status.ACTIVE
    assert life.consumer.at - since <= 2 * seconds_until_active(0.0)


@pytest.mark.parametrize("every", [4.0, 12.0, 20.0])
def test_an_overload_ends_though_the_sidecar_stands_still_every_few_seconds(every: float) -> None:
    life = Life()
    life.watch(20.0, behind(2, 1500))
    assert life.status is Status.ACTIVE
    fast, since, next_gap = behind(200, 0), life.consumer.at, life.consumer.at + every
    while life.status is Status.ACTIVE:
        if life.consumer.at >= next_gap:
            for _ in range(10):  # the server and the workers go on
                fast(life.consumer)
            away(life, 2.1)
            next_gap += every
        life.watch(EVERY, fast)
        assert life.consumer.at - since <= 25.0


def test_messages_that_were_taken_just_before_an_outage_were_not_stuck_in_it() -> None:
    life = Life()
    life.watch(20.0, held(5, 0))
    before = changes(life)
    life.consumer.publish(40)
    life.consumer.deliver(40)
    away(life, 7.0)
    life.watch(1.0)
    life.consumer.ack(40)
    life.watch(20.0, held(5, 0))
    assert changes(life) == before


def test_where_all_samples_are_rare_none_is_missing() -> None:
    life = Life()
    life.consumer.publish(1500)
    for _ in range(6):
        life.see(5.0)
    assert life.see(5.0).diagnosis is Diagnosis.NOBODY_PULLING
    assert life.status is Status.ACTIVE
