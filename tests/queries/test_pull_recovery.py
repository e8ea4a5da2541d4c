"""Workers behind gates lose no capacity for longer than a burst lasts: no state in which they stay slow by themselves
(Bronson et al., Metastable Failures in Distributed Systems, HotOS 2021), and in calm hardly any question is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hypothesis import given, settings
from hypothesis import strategies as st

from nats_backpressure.client.pull_gate import EARLY_BELOW
from nats_backpressure.core.admission.requesters import OTHERS_FOR
from nats_backpressure.runtime.tasks import cancel_and_wait
from tests.simulations.pulled_stream import PulledStream, Seen, Setting
from tests.support.exploring import examples

OF_CAPACITY = 0.97
"""The share of the workers' rate at which a backlog drains at least."""
SETTLES = 1.0
"""Seconds after a burst until it does so."""
CALM, OTHERS_HOLD = 5.0, 1.0


@asynccontextmanager
async def running(setting: Setting, load: float) -> AsyncIterator[PulledStream]:
    stream = PulledStream(setting)
    tasks = [*stream.tasks()]
    try:
        await stream.clock.run(3.0)  # by then each replica knows what others may have granted before it heard them
        tasks.append(asyncio.create_task(stream.arrive(load * setting.capacity)))
        yield stream
    finally:
        await cancel_and_wait(tasks)


async def calm(stream: PulledStream, load: float) -> None:
    """All that arrives is handled at once, and hardly anybody is told to wait."""
    await stream.clock.run(SETTLES + 2 * stream.setting.service / (1 - load))  # what came meanwhile waited a bit
    stream.seen = seen = Seen()
    await stream.clock.run(CALM)
    arrived = CALM * load * stream.setting.capacity
    assert arrived - 2 <= seen.handled <= arrived + 2
    # Of two that one worker pulled within its wait for a batch, the second waits for the first.
    assert max(seen.waits, default=0.0) <= 2 * stream.setting.service
    assert seen.refused <= 3 + 0.05 * seen.asked


async def recovery(stream: PulledStream) -> float:
    """Seconds until nothing waits, and no more is in flight than two messages for each worker."""
    began = stream.clock.mono()
    while stream.waiting or max(stream.held) > 2 or stream.inflight > 2 * stream.setting.workers:
        assert stream.clock.mono() < began + 300.0, "it does not recover"
        await stream.clock.run(0.05)
    return stream.clock.mono() - began


settings_of_workers = st.builds(
    lambda workers, over, **others: Setting(workers=workers, mark=round(workers * over), **others),
    workers=st.integers(1, 12),
    over=st.sampled_from([1, 1.2, 1.5, 2, 4, 10]),
    batch=st.sampled_from([1, 2, 10, 100]),
    service=st.sampled_from([0.05, EARLY_BELOW, 0.2, 0.5]),
    reads_every=st.sampled_from([0.1, 0.5, 2.0, 5.0]),
    replicas=st.integers(1, 3),
    delay=st.sampled_from([0.0, 0.005, 0.015]),
    early=st.booleans(),
    seed=st.integers(0, 2**16),
)


@settings(max_examples=examples(30, most=500, why="each simulates half a minute of all workers and replicas"))
@given(
    setting=settings_of_workers,
    load=st.sampled_from([0.3, 0.5, 0.8]),
    burst=st.sampled_from([0.5, 2.0, 5.0]),
    others=st.booleans(),
)
async def test_after_a_burst_the_backlog_drains_at_the_workers_rate_and_then_all_is_as_before(
    setting: Setting, load: float, burst: float, others: bool
) -> None:
    """`burst`: in seconds of work. `others`: somebody who does not ask takes in flight past the mark meanwhile."""
    async with running(setting, load) as stream:
        await calm(stream, load)
        stream.publish(round(burst * setting.capacity))
        settles = SETTLES
        if others:
            taken = len(stream.take(setting.mark))
            await stream.clock.run(OTHERS_HOLD)
            stream.inflight -= taken
            # Readings show that they are gone, then the latch holds at half the mark, and what they held is remembered.
            limited = 2 * setting.reads_every + stream.policy.recovery_hold_seconds + OTHERS_FOR
            await stream.clock.run(limited)
            settles += OTHERS_HOLD + limited
        took = settles - SETTLES + await recovery(stream)
        # The last ones are with one worker, which may have taken as many once more.
        at_hand = 2 * (setting.mark / setting.workers + 1) * setting.service
        assert took <= settles + (burst + settles - SETTLES) / (OF_CAPACITY - load) + at_hand
        await calm(stream, load)
        assert others or stream.most <= setting.mark
