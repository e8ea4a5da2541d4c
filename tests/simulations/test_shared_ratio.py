"""Adaptive admission at several replicas: all answer the share that is stored."""

from __future__ import annotations

from collections import deque

from msgspec.structs import replace

from tests.simulations.replicas import KEY, SETTINGS, SUBJECT, Replica, Replicas
from tests.support.policies import entry

STEP = 0.1
"""Seconds."""
CAPACITY, OFFERED = 4, 8
"""Messages per step."""
AGREE = 10
"""Steps after which no replica answers a share that is not stored any more: a second."""
ADAPTIVE = replace(
    SETTINGS,
    policies=(
        entry(
            ">",
            admission={"mode": "adaptive"},
            drain_seconds={"warn": 5, "critical": 10, "overload": 60},
            stall_seconds=3600,
            alert_on_active=False,
        ),
    ),
)


async def test_all_answer_the_stored_share_also_after_the_writer_is_killed() -> None:
    async with Replicas(3, settings=ADAPTIVE).running(3) as replicas:
        stored: deque[float] = deque([1.0], maxlen=AGREE)
        shares = set()
        for n in range(400):
            state = replicas.state()
            share = float(state["admit_ratio"]) if state else 1.0
            arrivals = sum(replicas.dice.random() < share for _ in range(OFFERED))
            replicas.js.publish(KEY.stream, SUBJECT, arrivals)
            replicas.js.ack(KEY, *replicas.js.pull(KEY, CAPACITY))
            if n == 200:
                (writer,) = (
                    one
                    for one in replicas.all.values()
                    if one.service.registry.contexts.others.seen_at(SUBJECT, [KEY.stream], False) is None
                )
                await writer.kill()
            await replicas.clock.run(STEP)
            stored.append(share)
            shares.add(share)
            if n >= AGREE:
                alive = [one for one in replicas.all.values() if one.alive]
                answers = {answer["admit_ratio"] for one in alive if (answer := one.answer()) is not None}
                assert answers <= {*stored, *(share for one in alive for share in newest(one))}, n
        assert len(shares) > 5, "it was steered"


def newest(replica: Replica) -> list[float]:
    """The share of the newest record, and of the one that is being stored."""
    state = replica.service.registry.subjects[SUBJECT]
    records = (state.record, state.writing and state.writing.record)
    return [record.admission.admit_ratio for record in records if record is not None]
