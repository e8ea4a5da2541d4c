"""The client for the tests of an application: it decides the same for everything, without a connection."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

from nats_backpressure.client import BackpressureClient, ThreadedClient


async def test_it_decides_the_same_for_every_subject_and_never_ages() -> None:
    async with BackpressureClient.fixed("reject", retry_after_seconds=7) as client:
        assert await client.watch(["orders.>"]) and await client.watch()
        refused = client.admit("orders.eu")
        assert (refused.admitted, refused.status, refused.freshness) == (False, "active", "known")
        assert refused.retry_after_seconds == 7
        assert client.admit("a", "critical") and client.stats.shed == 1
        assert client._cached["a"].until == float("inf")


async def test_it_answers_what_it_decides() -> None:
    reject, proceed = BackpressureClient.fixed("reject"), BackpressureClient.fixed("continue")
    assert (await reject.decide("a")).action == "reject"
    assert (await reject.decide("a", priority="critical")).action == "continue"
    assert (await proceed.decide("a")).failed_open is None


@pytest.mark.parametrize(
    ("client", "wanted", "pulled", "action"),
    [
        (BackpressureClient.fixed("reject"), 5, 0, "reject"),
        (BackpressureClient.fixed("throttle"), 5, 3, "throttle"),
        (BackpressureClient.fixed("throttle"), 1, 1, "continue"),
        (BackpressureClient.fixed("throttle", admit_ratio=0.0), 5, 0, "reject"),
        (BackpressureClient.fixed("continue"), 5, 5, "continue"),
    ],
)
async def test_a_consumer_is_answered_by_what_it_is_granted_as_by_the_sidecar(
    client: BackpressureClient, wanted: int, pulled: int, action: str
) -> None:
    answer = await client.decide("a", "consumer", max_messages=wanted)
    assert answer.pull is not None and (answer.pull.max_messages, answer.action) == (pulled, action)
    assert (answer.pull.wait_ms > 0) == (pulled == 0)
    assert (answer.admit_ratio, answer.retry_after_seconds) == (1.0, 0)


async def test_it_can_be_used_again_after_it_was_closed() -> None:
    """Two tests with one application, each with its lifespan."""
    client = BackpressureClient.fixed("reject")
    for _ in range(2):
        async with client:
            await client.on_event(lambda event: None)
            assert await client.watch(["a"]) and not client.admit("a")
            assert {task.get_name() for task in client._tasks} == {"backpressure events"}
    assert client.stats.watch_lost == 0


@pytest.mark.parametrize("make", [BackpressureClient.fixed, ThreadedClient.fixed])
@pytest.mark.parametrize(
    ("action", "ratio", "right"),
    [
        ("throttle", 0.0, True),
        ("throttle", 1.0, True),
        ("throttle", 1.5, False),
        ("reject", 0.0, True),
        ("reject", 0.5, False),
        ("continue", 1.0, True),
        ("continue", 0.5, False),
        ("refuse", None, False),
    ],
)
def test_a_ratio_that_does_not_go_with_the_action_is_refused(
    make: Callable[..., Any], action: str, ratio: float | None, right: bool
) -> None:
    with nullcontext() if right else pytest.raises(ValueError):
        make(action, admit_ratio=ratio)


async def test_a_share_is_admitted_evenly() -> None:
    client = BackpressureClient.fixed("throttle", admit_ratio=0.25)
    assert sum(bool(client.admit("a")) for _ in range(100)) == pytest.approx(25, abs=1)
    assert all(BackpressureClient.fixed().admit("a") for _ in range(10))


@pytest.mark.parametrize(("action", "more"), [("stop", {}), ("throttle", {"admit_ratio": 2.0})])
async def test_what_there_is_not_is_refused(action: Any, more: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"none of|from 0 to 1"):
        BackpressureClient.fixed(action, **more)  # type: ignore[arg-type]
