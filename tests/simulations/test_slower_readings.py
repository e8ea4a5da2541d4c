"""What is read more rarely because the server or the budget asks for that is no outage, in any replica."""

from __future__ import annotations

import asyncio

import pytest

from nats_backpressure.core.reading.load import LIMITED_FACTOR, LIMITED_FOR
from nats_backpressure.core.signals.ack_latency import FRESH_ACKS
from nats_backpressure.runtime.observations import ApiLimited
from tests.simulations.replicas import KEY, SUBJECT, Replicas

EVERY = 0.5
"""Seconds for each message."""


async def worked(replicas: Replicas, seconds: float) -> dict[str, set[bool]]:
    """By replica, whether its readings might release a latch, while messages come and are acknowledged."""
    settled: dict[str, set[bool]] = {name: set() for name in replicas.all}
    inflight = replicas.js.of(KEY).inflight
    for _ in range(round(seconds / EVERY)):
        replicas.js.publish(KEY.stream, SUBJECT)
        replicas.js.pull(KEY, 1)
        replicas.js.ack(KEY, *list(inflight)[:-1])
        await replicas.clock.run(EVERY)
        for name, replica in replicas.all.items():
            reading = replica.service.registry.subjects[SUBJECT].members[KEY].reading
            settled[name].add(reading is not None and reading.settled)
    return settled


@pytest.mark.parametrize("n", [1, 2])
def test_a_server_that_asks_for_fewer_requests_is_not_away(n: int) -> None:
    async def scenario() -> None:
        replicas = Replicas()
        async with replicas.running(n):
            await worked(replicas, FRESH_ACKS + 2.0)
            replicas.hint(ApiLimited())
            replicas.js.asked.clear()
            settled = await worked(replicas, LIMITED_FOR)
            reads = sum(what.startswith("consumer") for what in replicas.js.asked)
            assert reads <= 2 * (LIMITED_FOR / LIMITED_FACTOR + 1), "it is read more rarely"
            assert settled == {name: {True} for name in replicas.all}

    asyncio.run(scenario())
