"""Publishing to the next stage of a chain, on a real server: only while its consumers are not overloaded."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from nats.aio.client import Client
from nats.js.errors import NoStreamResponseError

from nats_backpressure.client import BackpressureClient, Overloaded
from tests.simulations.state_bucket import SUBJECT, States, active, state, wait_for_admission


async def test_a_worker_publishes_unless_the_next_stage_is_overloaded(
    client: BackpressureClient, nc: Client, states: States
) -> None:
    js = nc.jetstream()
    await js.add_stream(name="NEXT", subjects=[SUBJECT])
    await states.put(state())
    await client.watch()
    assert (await client.publish(js, SUBJECT, b"1", headers={"a": "b"})).seq == 1
    await states.put(active(retry_after_seconds=7))
    await wait_for_admission(client, action="reject")
    with pytest.raises(Overloaded, match=r"overloaded \(active\); try again in 7 s") as refused:
        await client.publish(js, SUBJECT, b"2", wait=0.2)
    assert (refused.value.retry_after_seconds, refused.value.subject) == (7, SUBJECT)
    assert (await client.publish(js, SUBJECT, b"3", priority="critical")).seq == 2
    waiting = asyncio.create_task(client.publish(js, SUBJECT, b"4", wait=30.0))
    await states.put(state())
    assert (await waiting).seq == 3


async def test_what_nobody_watches_is_published_and_errors_are_the_streams(
    client: BackpressureClient, nc: Client
) -> None:
    with pytest.raises(NoStreamResponseError):
        await client.publish(nc.jetstream(), "nowhere", b"1")
    assert client.stats.unwatched == 1


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"override": {"action": "reject", "until": "2999-01-01T00:00:00Z"}}, "an operator's override refuses; try"),
        ({"status": "unknown", "on_unknown": "reject"}, "nothing is known of its consumers now"),
    ],
)
async def test_the_error_gives_the_reason(
    client: BackpressureClient, nc: Client, states: States, fields: dict[str, Any], reason: str
) -> None:
    await states.put(state(action="reject", retry_after_seconds=30, **fields))
    await client.watch()
    with pytest.raises(Overloaded, match=reason) as refused:
        await client.publish(nc.jetstream(), SUBJECT)
    assert refused.value.admission.override == ("override" in fields)


def test_the_error_can_come_from_another_process() -> None:
    error = Overloaded(SUBJECT, BackpressureClient.fixed("reject", retry_after_seconds=7).admit(SUBJECT))
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.retry_after_seconds) == (str(error), 7) and copy.admission == error.admission
