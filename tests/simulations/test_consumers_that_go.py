"""An overloaded consumer goes, under a subject that has others: that is one recovery, whoever notices it first."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from msgspec.structs import replace

from nats_backpressure.core.model.samples import ConsumerConfig
from nats_backpressure.protocol.values import ConsumerKey
from tests.simulations.replicas import KEY, OVERLOAD, SETTINGS, SUBJECT, Replicas
from tests.support.policies import entry

AUDIT = ConsumerKey(KEY.stream, "audit")
LONG_HOLD = replace(
    SETTINGS,
    policies=(
        entry(
            ">",
            pending={"warn": 5, "critical": 10, "overload": 20},
            drain_seconds={"overload": 1_000_000},
            recovery_hold_seconds=5,
            stall_seconds=3600,
        ),
    ),
)


def delete(replicas: Replicas) -> None:
    replicas.js.delete_consumer(AUDIT)


def other_filter(replicas: Replicas) -> None:
    """It does not count under the subject any more, from the next reading on."""
    replicas.js.of(AUDIT).config = ConsumerConfig(filters=("elsewhere",))


@pytest.mark.parametrize("goes", [delete, other_filter])
@pytest.mark.parametrize("late", [0.0, 0.3], ids=["all at once", "some late"])
async def test_an_overloaded_consumer_that_goes_is_one_recovery(goes: Callable[[Replicas], None], late: float) -> None:
    for seed in range(3):
        replicas = Replicas(seed, settings=LONG_HOLD)
        replicas.js.add_consumer(AUDIT, ConsumerConfig())
        async with replicas.running(3):
            replicas.js.publish(KEY.stream, SUBJECT, OVERLOAD)
            replicas.work()  # only the other consumer stays behind
            await replicas.published("warning")
            await replicas.clock.run(6.0)
            for name in ("r0", "r2"):
                replicas.all[name].link.delay = partial(replicas.dice.uniform, 0.0, 0.004 + late)
            goes(replicas)
            await replicas.clock.run(15.0)
            assert [event["type"] for event in replicas.events()] == ["backpressure_warning", "recovery"]
            await replicas.agree()
